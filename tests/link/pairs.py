"""Two engines and a pipe between them, without loop, path or clock."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from lattica.link import header
from lattica.link.certificate import Certificate
from lattica.link.engine import Engine, EngineConfig
from lattica.link.engines import choose
from lattica.path.interface import VirtualAddress

ADDRESS = VirtualAddress("test", 1)
CERTIFICATE = Certificate.generate()


class Sink:
    """Remembers events."""

    def __init__(self) -> None:
        self.is_ready = False
        self.data: dict[int, bytearray] = defaultdict(bytearray)
        self.ended: list[int] = []
        self.resets: list[tuple[int, int]] = []
        self.stops: list[tuple[int, int]] = []
        self.ids: set[bytes] = set()
        self.over: tuple[int | None, str] | None = None

    def handshake_done(self) -> None:
        assert not self.is_ready
        self.is_ready = True

    def stream_data(self, stream_id: int, data: bytes, end: bool) -> None:
        assert stream_id not in self.ended
        self.data[stream_id] += data
        if end:
            self.ended.append(stream_id)

    def stream_reset(self, stream_id: int, code: int) -> None:
        self.resets.append((stream_id, code))

    def stream_stopped(self, stream_id: int, code: int) -> None:
        self.stops.append((stream_id, code))

    def connection_id_added(self, connection_id: bytes) -> None:
        self.ids.add(connection_id)

    def connection_id_removed(self, connection_id: bytes) -> None:
        self.ids.discard(connection_id)

    def closed(self, code: int | None, reason: str) -> None:
        assert self.over is None
        self.over = (code, reason)


class End:
    """An engine with what it has said and heard."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.sink = Sink()
        self.sizes: list[int] = []  # of the datagrams it sent

    def open(self, *, unidirectional: bool = True) -> int:
        return self.engine.next_stream_id(unidirectional=unidirectional)


class EnginePair:
    """A client and a server, `delay` seconds apart; `keep` decides which datagrams arrive."""

    def __init__(
        self,
        client: str,
        server: str,
        *,
        client_config: EngineConfig | None = None,
        server_config: EngineConfig | None = None,
        delay: float = 0.01,
    ) -> None:
        self.now = 100.0
        self.keep: Callable[[bytes], bool] = lambda _: True
        self._delay = delay
        self._names = client, server
        self._server_config = server_config or config(is_client=False)
        self._flying: list[tuple[float, bool, bytes]] = []
        self.client = End(choose(client).near(client_config or config(is_client=True)))
        self.server: End | None = None
        self.client.engine.connect(ADDRESS, self.now)

    @property
    def ends(self) -> tuple[End, End]:
        assert self.server is not None
        return self.client, self.server

    def connect(self) -> EnginePair:
        self.run_until(
            lambda: (
                self.client.sink.is_ready and self.server is not None and self.server.sink.is_ready
            )
        )
        return self

    def run_until(self, condition: Callable[[], object], seconds: float = 30.0) -> None:
        end = self.now + seconds
        while not condition():
            assert self.now < end, "nothing came of it"
            self.step(end)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.step(end)

    def step(self, end: float) -> None:
        """Send what can be sent, then let the next thing happen."""
        self._flush()
        times = [at for at, _, _ in self._flying[:1]]
        each: End | None
        for each in (self.client, self.server):
            at = None if each is None else each.engine.timer()
            if at is not None:
                times.append(at)
        self.now = min(end, max(self.now + 1e-6, min(times, default=end)))
        due = [item for item in self._flying if item[0] <= self.now]
        del self._flying[: len(due)]
        for to_server in (True, False):
            datagrams = [data for _, direction, data in due if direction is to_server]
            if datagrams:
                self._deliver(datagrams, to_server=to_server)
        for each in (self.client, self.server):
            at = None if each is None else each.engine.timer()
            if each is not None and at is not None and at <= self.now:
                each.engine.handle_timer(self.now)
                each.engine.drain(each.sink)

    def _deliver(self, datagrams: list[bytes], *, to_server: bool) -> None:
        if to_server and self.server is None:
            first = header.parse_long(datagrams[0])
            assert first is not None
            self.server = End(
                choose(self._names[1]).near(
                    self._server_config, original_destination=first.destination
                )
            )
        end = self.server if to_server else self.client
        assert end is not None
        end.engine.receive_many(datagrams, ADDRESS, self.now)
        end.engine.drain(end.sink)

    def _flush(self) -> None:
        each: End | None
        for each, to_server in ((self.client, True), (self.server, False)):
            if each is None:
                continue
            for datagram in each.engine.datagrams(self.now):
                each.sizes.append(len(datagram))
                if self.keep(datagram):
                    self._flying.append((self.now + self._delay, to_server, datagram))


def config(*, is_client: bool, datagram: int = 1452, **options: int) -> EngineConfig:
    return EngineConfig(is_client=is_client, certificate=CERTIFICATE, datagram=datagram, **options)
