"""PCP's and NAT-PMP's messages: against bytes written by hand after the RFCs, and hostile ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.path.portmap import nat_pmp, pcp
from lattica.path.portmap.mapping import Transport, Want

NONCE = bytes(range(12))
UDP = Want(Transport.UDP, 4242)
TCP = Want(Transport.TCP, 80)
MAPPED_LOCAL = bytes(10) + b"\xff\xff" + bytes((192, 168, 1, 7))
# RFC 6887 §7.2, §11.1: version, R and opcode, reserved, result, lifetime, epoch, reserved.
PCP_HEADER = b"\x02\x81\x00\x00" + b"\x00\x00\x0e\x10" + b"\x00\x00\x00\x2a" + bytes(12)
PCP_ASSIGNED = (
    NONCE + b"\x11\0\0\0" + b"\x10\x92" + b"\xc3\x50" + bytes(10) + b"\xff\xff\x05\x06\x07\x08"
)


def test_a_pcp_request_is_laid_out_as_the_rfc_says() -> None:
    got = pcp.encode_map(UDP, NONCE, client="192.168.1.7", lifetime=3600, outside=50_000)
    header = b"\x02\x01\0\0" + b"\x00\x00\x0e\x10" + MAPPED_LOCAL
    fields = NONCE + b"\x11\0\0\0" + b"\x10\x92" + b"\xc3\x50" + bytes(10) + b"\xff\xff" + bytes(4)
    assert got == header + fields
    assert pcp.encode_announce("192.168.1.7") == b"\x02\0\0\0" + bytes(4) + MAPPED_LOCAL


def test_a_pcp_reply_is_read() -> None:
    assert pcp.decode_reply(PCP_HEADER + PCP_ASSIGNED) == pcp.Reply(
        2, 0, 3600, 42, pcp.Assigned(NONCE, 17, 4242, 50_000, "5.6.7.8")
    )


def test_options_of_a_pcp_reply_are_passed_over() -> None:
    option = b"\x80\0\0\x05" + b"hello" + bytes(3)
    reply = pcp.decode_reply(PCP_HEADER + PCP_ASSIGNED + option)
    assert reply is not None
    assert reply.assigned is not None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        PCP_HEADER[:20],
        PCP_HEADER + PCP_ASSIGNED[:-4],
        PCP_HEADER + PCP_ASSIGNED + b"\0",  # not a multiple of four
        PCP_HEADER + PCP_ASSIGNED + b"\x80\0\0\x09" + bytes(8),  # an option that is cut
        PCP_HEADER + PCP_ASSIGNED + bytes(1100),
        b"\x02\x01" + (PCP_HEADER + PCP_ASSIGNED)[2:],  # a request
        b"\x02\x83" + (PCP_HEADER + PCP_ASSIGNED)[2:],  # of no opcode that was used
        b"\x03\x81\0\0" + bytes(20),  # another version, and no word of it
    ],
)
def test_what_is_no_pcp_reply_is_none(data: bytes) -> None:
    assert pcp.decode_reply(data) is None


def test_a_router_that_speaks_only_nat_pmp_is_understood() -> None:
    reply = pcp.decode_reply(b"\x00\x81\x00\x01\x00\x00\x00\x2a")
    assert reply == pcp.Reply(0, pcp.Result.UNSUPP_VERSION)


def test_nat_pmp_requests_are_laid_out_as_the_rfc_says() -> None:
    assert nat_pmp.encode_address() == b"\0\0"
    assert nat_pmp.encode_map(UDP, lifetime=3600, outside=50_000) == (
        b"\x00\x01\x00\x00\x10\x92\xc3\x50\x00\x00\x0e\x10"
    )
    assert nat_pmp.encode_map(TCP, lifetime=0) == b"\x00\x02\x00\x00\x00\x50" + bytes(6)


def test_nat_pmp_replies_are_read() -> None:
    address = b"\x00\x80\x00\x00\x00\x00\x00\x2a" + bytes((5, 6, 7, 8))
    assert nat_pmp.decode_reply(address) == nat_pmp.Reply(0, 0, 42, host="5.6.7.8")
    mapped = b"\x00\x82\x00\x00\x00\x00\x00\x2a" + b"\x00\x50\xc3\x50\x00\x00\x0e\x10"
    assert nat_pmp.decode_reply(mapped) == nat_pmp.Reply(
        2, 0, 42, assigned=nat_pmp.Assigned(TCP, 50_000, 3600)
    )
    refused = b"\x00\x81\x00\x02\x00\x00\x00\x2a"
    assert nat_pmp.decode_reply(refused) == nat_pmp.Reply(1, 2, 42)


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x80\x00\x00\x00\x00\x00",
        b"\x00\x00\x00\x00\x00\x00\x00\x2a" + bytes(4),  # a request
        b"\x01\x80\x00\x00\x00\x00\x00\x2a" + bytes(4),  # no such version
        b"\x00\x80\x00\x00\x00\x00\x00\x2a" + bytes(5),
        b"\x00\x81\x00\x00\x00\x00\x00\x2a" + bytes(7),
        b"\x00\x83\x00\x00\x00\x00\x00\x2a" + bytes(8),
    ],
)
def test_what_is_no_nat_pmp_reply_is_none(data: bytes) -> None:
    assert nat_pmp.decode_reply(data) is None


@given(st.binary(max_size=1200))
def test_any_bytes_are_a_reply_or_none(data: bytes) -> None:
    for start in (b"", b"\x02\x81", b"\x02\x80", b"\x00\x81"):
        for decode in (pcp.decode_reply, nat_pmp.decode_reply):
            reply = decode(start + data)
            assert reply is None or reply.result >= 0


@pytest.mark.parametrize("result", [2, 7, 200])
def test_a_refusal_has_words(result: int) -> None:
    assert pcp.describe(result)
    assert nat_pmp.describe(result)
