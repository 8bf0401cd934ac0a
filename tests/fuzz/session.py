"""One end of an RPC link with a script of bytes at the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

from lattica.config import KIB, RpcConfig
from lattica.errors import LatticaError, LinkLostError
from lattica.identity import grants
from lattica.identity.keys import Identity, PeerId
from lattica.link.interface import Link, LinkHandler, RemotePeer
from lattica.rpc import Buffer, Rpc, method
from lattica.rpc.methods import methods_of

HERE = Identity(b"here".ljust(32)).peer_id
THERE = Identity(b"there".ljust(32)).peer_id
CONFIG = RpcConfig(stream_window=64 * KIB, max_streams_per_peer=16, max_frame=16 * KIB)
CONTROL = 0  # in a script: the control stream; 1 to 7 are data streams, 8 and up resets of those
CONTROL_STREAM = 4
MAX_STEPS = 64


class Service:
    """Methods of every form, none of which waits."""

    @method()
    async def add(self, a: int, b: int) -> int:
        return a + b

    @method(scope=None)
    async def echo(self, data: Buffer) -> Buffer:
        return data

    @method()
    async def fail(self, text: str) -> None:
        raise ValueError(text)

    @method()
    async def keep(self, values: dict[str, list[float | None]]) -> int:
        return len(values)

    @method()
    async def count(self, items: int) -> AsyncIterator[int]:
        for item in range(min(items, 20)):
            yield item

    @method()
    async def take(self, items: AsyncIterator[int]) -> int:
        return sum([item async for item in items])

    @method()
    async def mirror(self, items: AsyncIterator[int]) -> AsyncIterator[int]:
        async for item in items:
            yield item


class ScriptedLink:
    """See `lattica.link.interface.Link`. What is written goes nowhere."""

    def __init__(self, *, is_dialer: bool) -> None:
        self.is_dialer = is_dialer
        self.is_open = True
        self.rtt = self.rtt_min = 0.0
        self.address = "script"
        self.local = HERE
        self.remote = RemotePeer(THERE, HERE, frozenset(grants.MEMBER), "there")
        self.why = ""
        self._next = {False: 4 if is_dialer else 1, True: 2 if is_dialer else 3}

    def statistics(self) -> ScriptedLink:
        """What windows ask of them: its round trips."""
        return self

    def open_stream(self, *, unidirectional: bool) -> int:
        stream = self._next[unidirectional]
        self._next[unidirectional] += 4
        return stream

    def write(self, stream_id: int, data: object, *, end: bool = False, lent: bool = False) -> None:
        assert self.is_open

    def reset_stream(self, stream_id: int, code: int) -> None: ...

    def stop_stream(self, stream_id: int, code: int) -> None: ...

    def close(self, reason: str = "") -> None:
        self.is_open, self.why = False, reason

    def before_flush(self, write: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_soon(write)


class ScriptedLinks:
    """See `lattica.link.interface.Links`: hands on links that a test makes."""

    local = HERE

    def __init__(self) -> None:
        self.accept: Callable[[Link], LinkHandler]
        self.link: Link | None = None

    def set_acceptor(self, acceptor: Callable[[Link], LinkHandler]) -> None:
        self.accept = acceptor

    def current(self) -> Sequence[Link]:
        return ()

    def find(self, peer: PeerId) -> Link | None:
        return self.link

    def retire(self, reason: str) -> None:
        """Nobody dials here."""


def steps(data: bytes) -> Iterable[tuple[int, bytes, bool]]:
    """A script as streams, what arrives on them, and whether they end. Any bytes are one."""
    for _ in range(MAX_STEPS):
        if len(data) < 3:
            return
        kind, size = data[0], int.from_bytes(data[1:3], "big")
        yield kind >> 4, data[3 : 3 + size], bool(kind & 1)
        data = data[3 + size :]


def step(stream: int, data: bytes, *, end: bool = False) -> bytes:
    """The inverse of one of `steps`."""
    return bytes((stream << 4 | end,)) + len(data).to_bytes(2, "big") + data


class SessionFuzz:
    """Plays scripts to an `Rpc`, each on a link of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._methods = methods_of(Service)  # to look at the class each time takes half the time

    def serve(self, data: bytes) -> None:
        """The script is of a dialer that calls."""
        self._loop.run_until_complete(self._play(data, is_dialer=False))

    def call(self, data: bytes) -> None:
        """The script is of an acceptor that was called."""
        self._loop.run_until_complete(self._play(data, is_dialer=True))

    async def _play(self, data: bytes, *, is_dialer: bool) -> None:
        links = ScriptedLinks()
        async with Rpc(links, config=CONFIG) as rpc:  # type: ignore[arg-type]
            rpc._specs[Service] = self._methods
            rpc.register("service", Service())
            link = ScriptedLink(is_dialer=is_dialer)
            links.link = link  # type: ignore[assignment]
            handler = links.accept(link)  # type: ignore[arg-type]
            session = next(iter(rpc._sessions.values()))
            calls = self._calls(rpc) if is_dialer else []
            await asyncio.sleep(0)
            first = 3 if is_dialer else 2
            for stream, chunk, end in steps(data):
                if not link.is_open:
                    break
                if stream == CONTROL:
                    handler.stream_data(CONTROL_STREAM, chunk, end)
                elif stream & 8:
                    handler.stream_reset(first + 4 * (stream & 7), 1)
                else:
                    handler.stream_data(first + 4 * stream, chunk, end)
                await asyncio.sleep(0)
            for _ in range(3):
                await asyncio.sleep(0)
            assert link.is_open or link.why.startswith("FrameError"), link.why
            session.channel.link_lost(LinkLostError("the script is over"))
            for outcome in await asyncio.gather(*calls, return_exceptions=True):
                assert not isinstance(outcome, Exception) or isinstance(outcome, LatticaError)
        assert not len(session.calls)
        assert not len(session.serving)

    def _calls(self, rpc: Rpc) -> list[asyncio.Task[object]]:
        stub = rpc.client(THERE, Service, "service")

        async def read() -> None:
            async for _ in stub.count(3):
                pass

        jobs = [
            *(stub.add(1, 2), stub.echo(Buffer(bytes(30_000))), read(), stub.fail("x")),
            stub.take([1, 2, 3]),  # type: ignore[arg-type]
        ]
        return [asyncio.ensure_future(job) for job in jobs]  # type: ignore[arg-type]
