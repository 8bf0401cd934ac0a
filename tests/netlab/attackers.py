"""What attackers in the real lab run in their own processes, and what their victims count."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.netlab.lab import LabHost
from tests.netlab.processes import LabProcess

# Every packet that comes in, a line of hexadecimal each, with its IP header.
_WIRETAP = """
import socket, sys
tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
tap.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
print("ready", flush=True)
with open(sys.argv[1], "w", buffering=1) as file:
    while True:
        data, place = tap.recvfrom(65535)
        if place[2] != socket.PACKET_OUTGOING:
            print(data.hex(), file=file)
"""

# Sends the last packets of such a file again: from itself, and as they were, whoever sent them.
_COPIER = """
import pathlib, socket, sys
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
lines = pathlib.Path(sys.argv[1]).read_text().splitlines()[-int(sys.argv[3]):]
for line in lines:
    packet = bytearray.fromhex(line)
    target = socket.inet_ntoa(packet[16:20]), 0
    raw.sendto(packet, target)
    head = (packet[0] & 15) * 4
    packet[12:16] = socket.inet_aton(sys.argv[2])
    packet[head + 6:head + 8] = bytes(2)  # no checksum, for the source is another one
    raw.sendto(packet, target)
print(len(lines))
"""


async def wiretap(host: LabHost, file: Path) -> LabProcess:
    """Write down what a host gets, as somebody on its line could."""
    process = await host.run([sys.executable, "-c", _WIRETAP, str(file)])
    assert (await process.stdout.readline()).strip() == b"ready"
    return process


async def send_copies(thief: LabHost, file: Path, most: int) -> int:
    """Have a host send what a wiretap took; how many packets, each twice."""
    command = [sys.executable, "-c", _COPIER, str(file), thief.address, str(most)]
    return int(await (await thief.run(command)).output())


async def received(host: LabHost) -> tuple[int, int]:
    """IP packets that a host's kernel has got so far, and their bytes."""
    text = await (await host.run(["cat", "/proc/net/snmp", "/proc/net/netstat"])).output()
    lines = [line.split() for line in text.splitlines()]
    found: dict[str, int] = {}
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        told = zip(names[1:], values[1:], strict=True)
        found |= {names[0] + name: int(value) for name, value in told}
    return found["Ip:InReceives"], found["IpExt:InOctets"]
