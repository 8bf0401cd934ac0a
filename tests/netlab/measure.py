"""What a way between two sockets of one process does: delay, loss and rate, one way."""

from __future__ import annotations

import asyncio
import time

from tests.netlab.lab import LabSocket
from tests.netlab.nat import Address

SIZE = 1200  # bytes of a datagram
_END = 0.5  # seconds without a datagram after which none comes


async def delays(sender: LabSocket, receiver: LabSocket, *, count: int) -> list[float]:
    """Seconds from sending to arrival of so many datagrams, one after the other."""
    found = []
    for _ in range(count):
        began = time.monotonic()
        sender.send(b"@", receiver.address)
        received = await receiver.receive(2.0)
        assert received is not None, "a datagram was lost"
        found.append(time.monotonic() - began)
    return found


async def loss(sender: LabSocket, receiver: LabSocket, *, count: int) -> float:
    """The part of so many datagrams that does not arrive."""
    counting = asyncio.create_task(_arrivals(receiver))
    for number in range(count):
        sender.send(b"@", receiver.address)
        if number % 10 == 0:
            await asyncio.sleep(0.001)  # no queue on the way is to overflow
    return 1.0 - len(await counting) / count


async def rate(
    sender: LabSocket, receiver: LabSocket, to: Address | None = None, *, offered: float
) -> float:
    """Bytes/s of IP packets that arrive when `offered` bytes/s are sent for a second."""
    counting = asyncio.create_task(_arrivals(receiver))
    began = time.monotonic()
    sent = 0
    while (passed := time.monotonic() - began) < 1.0:
        while sent < offered * passed:
            sender.send(bytes(SIZE), to or receiver.address)
            sent += SIZE
        await asyncio.sleep(0.001)
    arrivals = await counting
    # The queue before the line is full after a moment, and empties at the line's rate.
    return (len(arrivals) - 1) * (SIZE + 28) / (arrivals[-1] - arrivals[0])


async def _arrivals(receiver: LabSocket) -> list[float]:
    times: list[float] = []
    while await receiver.receive(_END) is not None:
        times.append(time.monotonic())
    return times
