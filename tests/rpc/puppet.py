"""A peer that says whatever a test wants, and one that serves it."""

from __future__ import annotations

from typing import Any

import msgspec

from lattica.config import MIB
from lattica.errors import LinkError
from lattica.link.interface import Link
from lattica.rpc import Buffer
from lattica.rpc import messages as m
from lattica.rpc.framing import FrameReader, frame
from tests.rpc.mesh import Mesh, until
from tests.rpc.services import Bench
from tests.rpc.upload_services import Intake

NIL = msgspec.Raw(b"\xc0")


class Puppet:
    """A peer that speaks raw bytes, and keeps what it hears."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.reader = FrameReader(64 * MIB)
        self.heard: list[Any] = []
        self.data: dict[int, bytes] = {}
        self.stopped: dict[int, int] = {}
        self.error: LinkError | None = None
        self.control = link.open_stream(unidirectional=False)

    def stream_data(self, stream_id: int, data: bytes, end: bool) -> None:
        if stream_id == self.control:
            for payload in self.reader.feed(data):
                self.heard += msgspec.msgpack.decode(payload, type=list[m.Control])
        else:
            self.data[stream_id] = self.data.get(stream_id, b"") + data

    def stream_reset(self, stream_id: int, code: int) -> None: ...

    def stream_stopped(self, stream_id: int, code: int) -> None:
        self.stopped[stream_id] = code

    def link_lost(self, error: LinkError) -> None:
        self.error = error

    def say(self, *messages: Any) -> None:
        self.link.write(self.control, frame(msgspec.msgpack.encode(messages)))

    def greet(self) -> None:
        self.say(m.Hello(m.VERSION, MIB, 100))

    def open(self, header: Any) -> int:
        stream = self.link.open_stream(unidirectional=True)
        self.link.write(stream, frame(msgspec.msgpack.encode(header)))
        return stream

    def outcomes(self) -> list[Any]:
        return [one for one in self.heard if isinstance(one, m.Result | m.Failure)]

    async def outcome(self) -> Any:
        """The first outcome: what `b` returned, or the name of its error's class."""
        await until(lambda: bool(self.outcomes()))
        first = self.outcomes()[0]
        if isinstance(first, m.Result):
            return msgspec.msgpack.decode(first.value)
        return first.type_name.rpartition(".")[2]


class Stage(Mesh):
    """`b` serves a `Bench` and an `Intake`; the member `a` is a puppet."""

    puppet: Puppet

    async def __aenter__(self) -> Stage:
        await super().__aenter__()
        self.bench = Bench()
        self.b.register("bench", self.bench)
        self.intake = Intake()
        self.b.register("intake", self.intake)
        self.a.links.set_acceptor(self._puppet)
        await self.a.links.connect(self.b.local)
        return self

    def _puppet(self, link: Link) -> Puppet:
        self.puppet = Puppet(link)
        return self.puppet

    async def refused(self, *, says: str = "") -> None:
        """The link was closed for a bad frame, which was counted; others are served on."""
        await until(lambda: self.puppet.error is not None)
        assert "FrameError" in str(self.puppet.error)
        assert says in str(self.puppet.error)
        assert self.b.counters["bad_frame"] == 1
        assert await self.stranger.client(self.b.local, Bench, "bench").echo(Buffer(b"x"))
        await until(lambda: len(self.b._sessions) == 1)


def call(
    n: int, method: str = "add", args: Any = (1, 1), *, service: str = "bench", **kwargs: Any
) -> m.Call:
    raw = msgspec.Raw(msgspec.msgpack.encode(args))
    return m.Call(n, service, method, 5.0, raw, **kwargs)


def item(value: Any, *sizes: int) -> bytes:
    raw = msgspec.Raw(msgspec.msgpack.encode(value))
    return frame(msgspec.msgpack.encode(m.Item(raw, sizes)))


END = frame(msgspec.msgpack.encode(m.End()))
