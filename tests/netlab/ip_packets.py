"""IP packets as boxes see them: addresses and ports read, and written with their checksums."""

from __future__ import annotations

import socket
from functools import lru_cache
from struct import Struct

from tests.netlab.nat import OTHER, TCP, UDP, Packet

_PORTS = Struct("!HH")
_WORD = Struct("!H")
_PROTOCOLS = {socket.IPPROTO_UDP: UDP, socket.IPPROTO_TCP: TCP}
_CHECKSUM_AT = {UDP: 6, TCP: 16}  # from the transport's header on
_FRAGMENT = 0x1FFF


@lru_cache(maxsize=4096)
def _text(raw: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)


@lru_cache(maxsize=4096)
def _raw(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def parse(data: bytes) -> Packet | None:
    """Who sends what to whom; ports are 0 in fragments and other protocols. None for no IP."""
    version = data[0] >> 4 if data else 0
    if version == 4 and len(data) >= 20:
        start = (data[0] & 15) * 4
        source, target, protocol = data[12:16], data[16:20], _PROTOCOLS.get(data[9], OTHER)
        if _WORD.unpack_from(data, 6)[0] & _FRAGMENT:
            protocol = OTHER
    elif version == 6 and len(data) >= 40:
        start = 40
        source, target, protocol = data[8:24], data[24:40], _PROTOCOLS.get(data[6], OTHER)
    else:
        return None
    if protocol == OTHER or len(data) < start + 8:
        return Packet((_text(source), 0), (_text(target), 0), OTHER)
    source_port, target_port = _PORTS.unpack_from(data, start)
    return Packet((_text(source), source_port), (_text(target), target_port), protocol)


def rewrite(data: bytes, packet: Packet) -> bytes:
    """`data` with the addresses and ports of `packet`; checksums follow (RFC 1624)."""
    before = parse(data)
    if before is None or before == packet:
        return data
    changed = bytearray(data)
    is_ipv6 = data[0] >> 4 == 6
    start = 40 if is_ipv6 else (data[0] & 15) * 4
    first, last = (8, 40) if is_ipv6 else (12, 20)
    changed[first:last] = _raw(packet.source[0]) + _raw(packet.target[0])
    difference = _sum(changed[first:last]) - _sum(data[first:last])
    if not is_ipv6:
        _adjust(changed, 10, difference)
    if packet.protocol == OTHER:
        return bytes(changed)
    _PORTS.pack_into(changed, start, packet.source[1], packet.target[1])
    difference += _sum(changed[start : start + 4]) - _sum(data[start : start + 4])
    at = start + _CHECKSUM_AT[packet.protocol]
    if packet.protocol == TCP or changed[at : at + 2] != b"\0\0":  # 0: UDP without a checksum
        _adjust(changed, at, difference)
        if packet.protocol == UDP and changed[at : at + 2] == b"\0\0":
            changed[at : at + 2] = b"\xff\xff"
    return bytes(changed)


def _sum(words: bytes | bytearray) -> int:
    return int.from_bytes(words, "big") % 0xFFFF  # 2**16 is 1 modulo 0xFFFF


def _adjust(data: bytearray, at: int, difference: int) -> None:
    if at + 2 > len(data):
        return
    total = (~_WORD.unpack_from(data, at)[0] & 0xFFFF) + difference
    _WORD.pack_into(data, at, ~(total % 0xFFFF) & 0xFFFF)
