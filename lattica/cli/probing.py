"""Measures the links of a running peer, for `lattica ping` and `lattica bench`."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable

import anyio

from lattica.actors.messages import NodeInfo
from lattica.cli.reports import LinkReport, PingReport, ReplyReport, SpeedReport
from lattica.config import KIB, MIB
from lattica.errors import ControlError, LatticaError
from lattica.link.interface import Link
from lattica.peer import Peer
from lattica.rpc import Buffer
from lattica.rpc.builtin import PeerService, peer_client

PING_TIMEOUT = 5.0  # seconds
MAX_AT_ONCE = 1024
MAX_PING = 4 * MIB  # bytes
MAX_SECONDS = 8.0
PIECE = 256 * KIB
UPLOADS = 8  # calls in flight
CALLS = 64
SMALL = 128  # bytes
MIN_ID = 4  # characters of an id that may stand for it

Step = Callable[[PeerService, float], Awaitable[tuple[float, str]]]


class Probing:
    """Answers the control socket's questions about links."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    async def ping(self, who: str, size: int, count: int) -> PingReport:
        """Send `count` pings of `size` bytes at once.

        Raises:
            ControlError: no such peer, or out of bounds.
        """
        if not 0 < count <= MAX_AT_ONCE or not 0 <= size <= MAX_PING:
            raise ControlError(
                f"a ping has at most {MAX_PING // MIB} MiB, and at most {MAX_AT_ONCE} go at once"
            )
        info = await self.find(who)
        service = self._service(info)
        body = Buffer(bytes(size))
        replies = await asyncio.gather(*(_ping(service, body) for _ in range(count)))
        link = self._peer.endpoint.find(info.peer)
        return PingReport(replies=replies, link=None if link is None else _report(info, link))

    async def measure(self, who: str, what: str, seconds: float) -> SpeedReport:
        """Take one figure of the link to a peer.

        Raises:
            ControlError: no such peer, figure or time.
            LatticaError: the link failed meanwhile.
        """
        step = STEPS.get(what)
        if step is None or not 0 < seconds <= MAX_SECONDS:
            raise ControlError(
                f"measures are {', '.join(STEPS)}, each for at most {MAX_SECONDS:g} s"
            )
        info = await self.find(who)
        service = self._service(info)
        await service.ping(None)  # dials, if need be
        before = self._link(info).statistics()
        start, cpu = time.perf_counter(), time.process_time()
        value, unit = await step(service, seconds)
        spent = time.perf_counter() - start
        share = (time.process_time() - cpu) / spent
        link = self._link(info)
        after = link.statistics()
        return SpeedReport(
            value=value,
            unit=unit,
            seconds=spent,
            cpu=share,
            lost=max(0, after.packets_lost - before.packets_lost),
            sent=max(0, after.packets_out - before.packets_out),
            link=_report(info, link),
        )

    async def find(self, who: str) -> NodeInfo:
        """The live peer called `who`: a name, a PeerId, or the beginning of one.

        Raises:
            ControlError: none is, or several are; says who is there.
        """
        nodes = await self._peer.core.nodes()
        own = self._peer.identity.peer_id
        others = [node for node in nodes if node.peer != own]
        found = [node for node in others if node.name == who]
        if not found and len(who) >= MIN_ID:
            found = [node for node in others if str(node.peer).startswith(who)]
        if len(found) == 1:
            return found[0]
        there = ", ".join(f"{node.name} ({node.peer.short})" for node in found or others)
        if found:
            raise ControlError(f"several peers answer to {who!r}; use an id: {there}")
        if who in (self._peer.name, str(own), own.short):
            raise ControlError(
                f"{who!r} is this machine's own peer; name another: {there or 'none is there yet'}"
            )
        raise ControlError(
            f"no peer {who!r} in this mesh; there are: {there}"
            if others
            else f"no peer {who!r}: this peer is alone in its mesh; "
            "join from another machine: lattica join TICKET"
        )

    def _service(self, info: NodeInfo) -> PeerService:
        self._peer.endpoint.learn(info.peer, info.addresses)
        return peer_client(self._peer.rpc, info.peer, timeout=PING_TIMEOUT)

    def _link(self, info: NodeInfo) -> Link:
        link = self._peer.endpoint.find(info.peer)
        if link is None:
            raise ControlError(f"the link to {info.name} was lost; try again")
        return link


async def _ping(service: PeerService, body: Buffer) -> ReplyReport:
    start = time.perf_counter()
    try:
        answer = await service.ping(body)
    except LatticaError as error:
        return ReplyReport(ms=None, error=f"{type(error).__name__}: {error}")
    if answer is None or len(answer) != len(body):
        return ReplyReport(ms=None, error="the answer is not what was sent")
    return ReplyReport(ms=(time.perf_counter() - start) * 1000)


async def _latency(service: PeerService, seconds: float) -> tuple[float, str]:
    body, end = Buffer(bytes(SMALL)), time.perf_counter() + seconds
    samples: list[float] = []
    while (start := time.perf_counter()) < end or not samples:
        await service.ping(body)
        samples.append(time.perf_counter() - start)
    return statistics.median(samples) * 1000, "ms"


async def _calls(service: PeerService, seconds: float) -> tuple[float, str]:
    body = Buffer(bytes(SMALL))
    return await _rate(lambda: service.ping(body), CALLS, seconds), "calls/s"


async def _upload(service: PeerService, seconds: float) -> tuple[float, str]:
    body = Buffer(bytes(PIECE))
    return await _rate(lambda: service.sink(body), UPLOADS, seconds) * PIECE / 1e6, "MB/s"


async def _download(service: PeerService, seconds: float) -> tuple[float, str]:
    total, start = 0, time.perf_counter()
    async for piece in service.source(PIECE, seconds):
        total += len(piece)
    return total / (time.perf_counter() - start) / 1e6, "MB/s"


async def _rate(call: Callable[[], Awaitable[object]], in_flight: int, seconds: float) -> float:
    """Calls a second; each caller waits for its answer before its next call."""
    done, start = 0, time.perf_counter()

    async def caller() -> None:
        nonlocal done
        while time.perf_counter() - start < seconds:
            await call()
            done += 1

    try:
        async with anyio.create_task_group() as tasks:
            for _ in range(in_flight):
                tasks.start_soon(caller)
    except* LatticaError as group:
        raise group.exceptions[0] from None
    return done / (time.perf_counter() - start)


STEPS: dict[str, Step] = {
    "latency": _latency,
    "calls": _calls,
    "upload": _upload,
    "download": _download,
}


def _report(info: NodeInfo, link: Link) -> LinkReport:
    seen = link.statistics()
    return LinkReport(
        name=info.name,
        peer=str(info.peer),
        path=seen.path,
        engine=seen.engine,
        rtt_ms=round(seen.rtt * 1000, 3),
        rtt_min_ms=round(seen.rtt_min * 1000, 3),
        datagram=seen.datagram,
        window=seen.window,
        packets_out=seen.packets_out,
        packets_lost=seen.packets_lost,
    )
