"""Rewritten packets are those that a host would have sent: checked against its own checksums."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.netlab.ip_packets import parse, rewrite
from tests.netlab.nat import OTHER, TCP, UDP, Packet

V4 = st.ip_addresses(v=4).map(str)
V6 = st.ip_addresses(v=6).map(lambda each: socket.inet_ntop(socket.AF_INET6, each.packed))
PORT = st.integers(0, 65_535)
NUMBERS = {UDP: socket.IPPROTO_UDP, TCP: socket.IPPROTO_TCP}


def checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def built(packet: Packet, payload: bytes) -> bytes:
    """An IP packet from nothing, as RFCs 791, 8200, 768 and 9293 have it."""
    family = socket.AF_INET6 if ":" in packet.source[0] else socket.AF_INET
    addresses = b"".join(socket.inet_pton(family, end[0]) for end in packet[:2])
    number = NUMBERS[packet.protocol]
    ports = struct.pack("!HH", packet.source[1], packet.target[1])
    if packet.protocol == UDP:
        before, after = ports + struct.pack("!H", 8 + len(payload)), payload
    else:
        before, after = ports + struct.pack("!IIBBH", 1, 2, 5 << 4, 16, 1000), b"\0\0" + payload
    size = len(before) + 2 + len(after)
    pseudo = addresses + struct.pack("!IHH", size, 0, number)
    value = checksum(pseudo + before + b"\0\0" + after)
    if packet.protocol == UDP and value == 0:
        value = 0xFFFF
    body = before + struct.pack("!H", value) + after
    if family == socket.AF_INET6:
        return struct.pack("!IHBB", 6 << 28, size, number, 64) + addresses + body
    head = struct.pack("!BBHHHBB", 0x45, 0, 20 + size, 7, 0, 64, number)
    return head + struct.pack("!H", checksum(head + b"\0\0" + addresses)) + addresses + body


def verifies(data: bytes) -> bool:
    """As a receiving host does."""
    start, addresses = (40, data[8:40]) if data[0] >> 4 == 6 else (20, data[12:20])
    protocol = data[6] if start == 40 else data[9]
    pseudo = addresses + struct.pack("!IHH", len(data) - start, 0, protocol)
    return (start == 40 or checksum(data[:20]) == 0) and checksum(pseudo + data[start:]) == 0


@given(
    st.sampled_from([V4, V6]).flatmap(
        lambda ip: st.lists(st.tuples(ip, PORT), min_size=4, max_size=4)
    ),
    st.sampled_from([UDP, TCP]),
    st.binary(max_size=40),
)
def test_what_is_rewritten_verifies(ends, protocol: str, payload: bytes) -> None:
    before = Packet(*ends[:2], protocol)
    after = Packet(*ends[2:], protocol)
    sent = built(before, payload)
    assert verifies(sent)
    assert parse(sent) == before
    changed = rewrite(sent, after)
    assert parse(changed) == after
    assert verifies(changed)
    assert len(changed) == len(sent)
    assert changed.endswith(payload)


def test_udp_without_a_checksum_stays_without() -> None:
    before = Packet(("10.0.0.1", 1), ("10.0.0.2", 2))
    sent = bytearray(built(before, b"data"))
    sent[26:28] = b"\0\0"
    changed = rewrite(bytes(sent), Packet(("198.18.0.1", 9), ("10.0.0.2", 2)))
    assert changed[26:28] == b"\0\0"
    assert checksum(changed[:20]) == 0


def test_a_later_fragment_and_another_protocol_have_no_ports() -> None:
    sent = bytearray(built(Packet(("10.0.0.1", 1), ("10.0.0.2", 2)), b"data"))
    sent[6:8] = struct.pack("!H", 100)
    assert parse(bytes(sent)) == Packet(("10.0.0.1", 0), ("10.0.0.2", 0), OTHER)
    sent[6:8], sent[9] = b"\0\0", socket.IPPROTO_ICMP
    assert parse(bytes(sent)) == Packet(("10.0.0.1", 0), ("10.0.0.2", 0), OTHER)


@pytest.mark.parametrize("data", [b"", b"\x45", b"\x60" + bytes(20), bytes(60)])
def test_what_is_no_ip_is_nothing(data: bytes) -> None:
    assert parse(data) is None
