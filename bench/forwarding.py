"""`python -m bench.forwarding`: frames that a relay forwards in a second of its CPU time.

First the decisions alone, then with the path and the kernel: frames that wait in a UDP socket
are received, forwarded, and sent to another socket on this machine. Frames have 1,200 bytes; they
are forwarded 16 at a time, and from the socket as many as one wake-up brings.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import cast

import msgspec

from lattica.config import RelayConfig
from lattica.identity.keys import PeerId
from lattica.path import addresses
from lattica.path.combined import CombinedPath
from lattica.path.interface import RELAY, Path, VirtualAddress
from lattica.path.relay import Batch
from lattica.path.udp import UdpPath
from lattica.reach.forwarding import Forwarder

BATCH, SIZE, ROUNDS = 16, 1200, 5
TURNS = 100
WAITING = 256  # frames in the socket before the relay looks
UNLIMITED = RelayConfig(
    rate=1e12, rate_per_peer=1e12, burst=1 << 40, max_sessions=5000, max_reservations=5000
)


class Place(msgspec.Struct):
    """A leg whose peer stays where it is."""

    current: VirtualAddress

    def has(self, address: VirtualAddress) -> bool:
        """See `lattica.path.relay.Leg`."""
        return address == self.current


class Nowhere:
    """A path that takes everything."""

    def send(self, datagrams: Sequence[bytes], address: VirtualAddress) -> None:
        """See `lattica.path.interface.Path`."""


class Receiver:
    """Who has no use for anything but relay frames."""

    def packets_received(self, packets: Sequence[tuple[bytes, VirtualAddress]]) -> None: ...

    def probes_received(self, probes: Sequence[tuple[bytes, VirtualAddress]]) -> None: ...

    def path_refused(self, address: VirtualAddress) -> None: ...

    def path_too_big(self, address: VirtualAddress, size: int) -> None: ...


class Relay:
    """A forwarder with sessions between pairs of places."""

    def __init__(self, path: Path, pairs: Sequence[tuple[VirtualAddress, VirtualAddress]]) -> None:
        legs: dict[PeerId, Place] = {}
        self.frames: Batch = []  # one of each session, from its first end
        self.forwarder = Forwarder(
            path,
            legs.get,
            UNLIMITED,
            whose=lambda _: None,
            counters=Counter(),
            now=time.monotonic,
        )
        for source, target in pairs:
            ends = PeerId(os.urandom(32)), PeerId(os.urandom(32))
            legs |= dict(zip(ends, map(Place, (source, target)), strict=True))
            session = os.urandom(8)
            self.forwarder.reserve(ends[1])
            self.forwarder.open(session, *ends)
            self.frames.append(((bytes((RELAY,)) + session).ljust(SIZE, b"\x40"), source))


def decisions(sessions: int, *, mixed: bool) -> float:
    """Frames a second; `mixed` batches have each frame of another session."""
    places = [VirtualAddress("udp", number) for number in range(2 * sessions)]
    relay = Relay(cast(Path, Nowhere()), list(zip(places[::2], places[1::2], strict=True)))
    batches: list[Batch] = []
    for first in range(sessions):
        chosen = [(first + step * mixed) % sessions for step in range(BATCH)]
        batches.append([relay.frames[each] for each in chosen])
    count = 100_000 // BATCH
    began = time.process_time()
    for number in range(count):
        relay.forwarder.forward(batches[number % len(batches)])
    taken = time.process_time() - began
    assert relay.forwarder.statistics().frames_out == count * BATCH
    return count * BATCH / taken


async def sockets() -> float:
    """Frames a second, from one UDP socket's buffer to another's."""
    udp = UdpPath.bind("127.0.0.1:0")
    path = CombinedPath({addresses.UDP: udp})
    path.start(Receiver())
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink,
    ):
        for each in (sender, sink):
            each.bind(("127.0.0.1", 0))
            each.setblocking(False)
        ports = [each.getsockname()[1] for each in (sender, sink)]
        ends = [await path.resolve(f"127.0.0.1:{port}") for port in ports]
        relay = Relay(path, [(ends[0], ends[1])])
        left, is_done = 0, asyncio.Event()

        def forward(frames: Batch) -> None:
            nonlocal left
            relay.forwarder.forward(frames)
            left -= len(frames)
            if left == 0:
                is_done.set()

        path.relay.forward = forward
        (frame, _), *_ = relay.frames
        where = ("127.0.0.1", addresses.split(path.addresses[0])[1])
        taken = 0.0
        for _ in range(TURNS):
            for _ in range(WAITING):
                sender.sendto(frame, where)
            left = WAITING
            is_done.clear()
            began = time.process_time()
            await asyncio.wait_for(is_done.wait(), 5.0)
            taken += time.process_time() - began
            while _read(sink):
                pass
    path.close()
    return TURNS * WAITING / taken


def _read(sink: socket.socket) -> bool:
    try:
        sink.recv(65536)
    except BlockingIOError:
        return False
    return True


def main() -> None:
    """Print the best of a few rounds of each."""
    rows: dict[str, Callable[[], float]] = {
        "decisions, one session": lambda: decisions(1, mixed=False),
        "decisions, 1,000 sessions, one a batch": lambda: decisions(1000, mixed=False),
        "decisions, 1,000 sessions, 16 a batch": lambda: decisions(1000, mixed=True),
        "with UDP sockets": lambda: asyncio.run(sockets()),
    }
    for name, measure in rows.items():
        print(f"{name:40} {max(measure() for _ in range(ROUNDS)):>12,.0f} frames/s")


if __name__ == "__main__":
    main()
