"""NAT-PMP's messages, RFC 6886: what came before PCP, and what many routers still speak. No I/O."""

from __future__ import annotations

import ipaddress
import struct
from enum import IntEnum

import msgspec

from lattica.path.portmap.mapping import Transport, Want

VERSION = 0
_RESPONSE = 0x80
_OPCODES = {Transport.UDP: 1, Transport.TCP: 2}
_TRANSPORTS = {opcode: transport for transport, opcode in _OPCODES.items()}
_REQUEST = struct.Struct(">BBxxHHI")
_REPLY = struct.Struct(">BBHI")
_MAPPED = struct.Struct(">HHI")


class Result(IntEnum):
    """§3.5. Others are possible and mean a refusal."""

    SUCCESS = 0
    UNSUPPORTED_VERSION = 1
    NOT_AUTHORIZED = 2
    NETWORK_FAILURE = 3
    OUT_OF_RESOURCES = 4
    UNSUPPORTED_OPCODE = 5


class Assigned(msgspec.Struct, frozen=True):
    """The part of a reply that is about a port."""

    want: Want
    port: int  # outside
    lifetime: int  # seconds


class Reply(msgspec.Struct, frozen=True):
    """Of `host` and `assigned` one is set in a success, none in an error."""

    opcode: int  # of the request
    result: int
    epoch: int  # seconds since the gateway last lost its state
    host: str = ""  # the gateway's address, outside
    assigned: Assigned | None = None


def encode_map(want: Want, *, lifetime: int, outside: int = 0) -> bytes:
    """A request for a port (§3.3); lifetime 0 removes the mapping (§3.4)."""
    opcode = _OPCODES[want.transport]
    return _REQUEST.pack(VERSION, opcode, want.port, outside, lifetime)


def opcode_of(want: Want | None) -> int:
    """What a reply about `want` has, or one about the gateway's address."""
    return 0 if want is None else _OPCODES[want.transport]


def encode_address() -> bytes:
    """A request for the gateway's address outside (§3.2)."""
    return bytes((VERSION, 0))


def decode_reply(data: bytes) -> Reply | None:
    """A reply to either request, or an announcement; None: it is none."""
    if len(data) < _REPLY.size or data[0] != VERSION or not data[1] & _RESPONSE:
        return None
    _, opcode, result, epoch = _REPLY.unpack_from(data)
    opcode &= ~_RESPONSE
    rest = data[_REPLY.size :]
    if result != Result.SUCCESS:
        return Reply(opcode, result, epoch)
    if opcode == 0 and len(rest) == 4:
        return Reply(opcode, result, epoch, host=str(ipaddress.IPv4Address(rest)))
    if opcode in _TRANSPORTS and len(rest) == _MAPPED.size:
        internal, port, lifetime = _MAPPED.unpack(rest)
        want = Want(_TRANSPORTS[opcode], internal)
        return Reply(opcode, result, epoch, assigned=Assigned(want, port, lifetime))
    return None


def describe(result: int) -> str:
    """A result for people."""
    try:
        return Result(result).name.lower().replace("_", " ")
    except ValueError:
        return f"result {result}"
