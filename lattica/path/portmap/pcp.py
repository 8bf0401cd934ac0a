"""PCP's messages, RFC 6887: asking a gateway for a port, and what it answers. No I/O."""

from __future__ import annotations

import ipaddress
import struct
from enum import IntEnum

import msgspec

from lattica.path.portmap.mapping import Want

VERSION = 2
PORT = 5351  # of the gateway; its announcements go to the next one
ANNOUNCEMENTS = ("224.0.0.1", 5350)
NONCE = 12  # bytes
MAX_SIZE = 1100  # bytes, §7
_RESPONSE = 0x80
_ANNOUNCE, _MAP = 0, 1
_REQUEST_HEADER = struct.Struct(">BBxxI16s")
_REPLY_HEADER = struct.Struct(">BBxBII12x")
_MAP_FIELDS = struct.Struct(">12sB3xHH16s")
_OPTION = struct.Struct(">BxH")


class Result(IntEnum):
    """§7.4. Others are possible and mean a refusal."""

    SUCCESS = 0
    UNSUPP_VERSION = 1
    NOT_AUTHORIZED = 2
    MALFORMED_REQUEST = 3
    UNSUPP_OPCODE = 4
    UNSUPP_OPTION = 5
    MALFORMED_OPTION = 6
    NETWORK_FAILURE = 7
    NO_RESOURCES = 8
    UNSUPP_PROTOCOL = 9
    USER_EX_QUOTA = 10
    CANNOT_PROVIDE_EXTERNAL = 11
    ADDRESS_MISMATCH = 12
    EXCESSIVE_REMOTE_PEERS = 13


class Assigned(msgspec.Struct, frozen=True):
    """The part of a reply that is about a port. In an error it repeats the request."""

    nonce: bytes
    transport: int
    internal: int  # port
    port: int  # outside
    host: str  # outside


class Reply(msgspec.Struct, frozen=True):
    """Times in seconds."""

    version: int  # not ours: the gateway speaks that one, and nothing but `result` is known
    result: int
    lifetime: int = 0  # of the mapping, or until it makes sense to ask again
    epoch: int = 0  # since the gateway last lost its state
    assigned: Assigned | None = None  # None: the answer to an announcement


def encode_map(want: Want, nonce: bytes, *, client: str, lifetime: int, outside: int = 0) -> bytes:
    """A MAP request (§11.1) from the address `client`; lifetime 0 removes the mapping.

    `outside` is the port wished for, 0 for any.
    """
    header = _REQUEST_HEADER.pack(VERSION, _MAP, lifetime, _pack(client))
    any_host = _pack("0.0.0.0")
    return header + _MAP_FIELDS.pack(nonce, want.transport.value, want.port, outside, any_host)


def encode_announce(client: str) -> bytes:
    """An ANNOUNCE request (§14.1): does the gateway still know us?"""
    return _REQUEST_HEADER.pack(VERSION, _ANNOUNCE, 0, _pack(client))


def decode_reply(data: bytes) -> Reply | None:
    """A reply to either request, or an announcement; None: it is none (§8.3)."""
    if len(data) < 4 or len(data) > MAX_SIZE or not data[1] & _RESPONSE:
        return None
    if data[0] != VERSION:
        # Not further defined, except that NAT-PMP has its result in the same octet (appendix A).
        return Reply(data[0], data[3]) if data[3] == Result.UNSUPP_VERSION else None
    if len(data) < _REPLY_HEADER.size or len(data) % 4:
        return None
    version, opcode, result, lifetime, epoch = _REPLY_HEADER.unpack_from(data)
    opcode &= ~_RESPONSE
    rest = data[_REPLY_HEADER.size :]
    assigned = None
    if opcode == _MAP:
        if len(rest) < _MAP_FIELDS.size:
            return None
        nonce, transport, internal, port, packed = _MAP_FIELDS.unpack_from(rest)
        assigned = Assigned(nonce, transport, internal, port, _unpack(packed))
        rest = rest[_MAP_FIELDS.size :]
    elif opcode != _ANNOUNCE:
        return None
    # The copy of a request that was not understood may be cut anywhere.
    if result == Result.SUCCESS and not _are_options(rest):
        return None
    return Reply(version, result, lifetime, epoch, assigned)


def describe(result: int) -> str:
    """A result for people."""
    try:
        return Result(result).name.lower().replace("_", " ")
    except ValueError:
        return f"result {result}"


def _are_options(data: bytes) -> bool:
    """Whether options fill `data` (§7.3). None was asked for, so all are passed over."""
    while data:
        if len(data) < _OPTION.size:
            return False
        _, length = _OPTION.unpack_from(data)
        size = _OPTION.size + (length + 3) // 4 * 4
        if size > len(data):
            return False
        data = data[size:]
    return True


def _pack(host: str) -> bytes:
    address = ipaddress.ip_address(host)
    if isinstance(address, ipaddress.IPv4Address):
        return bytes(10) + b"\xff\xff" + address.packed
    return address.packed


def _unpack(packed: bytes) -> str:
    address = ipaddress.IPv6Address(packed)
    return str(address.ipv4_mapped or address)
