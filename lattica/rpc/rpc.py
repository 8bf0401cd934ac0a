"""`Rpc`: serve objects to peers, call theirs."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from types import TracebackType
from typing import Any, TypeVar, cast

from lattica.config import RpcConfig
from lattica.errors import DeadlineError, FrameError, LinkError, LinkLostError
from lattica.identity.keys import PeerId
from lattica.link.interface import Link, LinkHandler, Links
from lattica.rpc import messages as m
from lattica.rpc.calls import Calls, OpenStream, Timer
from lattica.rpc.channel import Channel, Sink
from lattica.rpc.codec import Encoder
from lattica.rpc.local import LocalCalls
from lattica.rpc.methods import MethodSpec, methods_of
from lattica.rpc.serving import Registry, Serving

log = logging.getLogger("lattica.rpc")
T = TypeVar("T")


class Session:
    """Both sides of the calls on one link."""

    def __init__(self, rpc: Rpc, link: Link) -> None:
        self._rpc = rpc
        self.link = link
        config = rpc.config
        encoder = Encoder(inline_limit=config.inline_limit, message_limit=config.max_frame // 2)
        self.channel = Channel(link, config, self)
        self.calls = Calls(self.channel, rpc._timer, encoder)
        self.serving = Serving(self.channel, rpc._registry, rpc._timer, encoder, rpc._tasks)

    def message(self, message: m.Call | m.Result | m.Failure | m.Cancel) -> None:
        """See `Events`."""
        kind = type(message)
        if kind is m.Call:
            self.serving.call(message)
        elif kind is m.Result:
            self.calls.result(message)
        elif kind is m.Failure:
            self.calls.failure(message)
        else:
            self.serving.cancel(message.call)

    def claim(self, header: m.Header, stream: int) -> Sink | None:
        """See `Events`."""
        if isinstance(header, m.Body) and not header.of_result:
            return self.serving.claim(header, stream)
        return self.calls.claim(header, stream)

    def flushed(self) -> None:
        """See `Events`."""
        self.calls.flushed()

    def bad_frame(self, error: FrameError) -> None:
        """See `Events`."""
        self._rpc.counters["bad_frame"] += 1
        log.warning("closing the link to %s: %s", self.link.remote.peer.short, error)

    def lost(self, error: LinkError) -> None:
        """See `Events`."""
        self._rpc._forget(self)
        self.calls.lost(error)
        self.serving.lost()


class Rpc:
    """Calls between peers over their links. An async context manager; owns its handlers."""

    def __init__(self, links: Links, *, config: RpcConfig | None = None, name: str = "") -> None:
        """`name` is this peer's, as errors tell it."""
        self.links = links
        self.config = config or RpcConfig()
        self.name = name or links.local.short
        self.counters: Counter[str] = Counter()
        self._registry = Registry(self.counters)
        self._specs: dict[type[Any], dict[str, MethodSpec]] = {}
        self._sessions: dict[PeerId, Session] = {}
        self._dials: dict[PeerId, _Dial] = {}
        self._local = LocalCalls(self._registry, links.local, self.name)
        self._tasks: asyncio.TaskGroup
        self._timer: Timer
        self._running = False

    @property
    def local(self) -> PeerId:
        """This peer."""
        return self.links.local

    async def __aenter__(self) -> Rpc:
        self._timer = Timer()
        self._tasks = asyncio.TaskGroup()
        await self._tasks.__aenter__()
        self._running = True
        self.links.set_acceptor(self._accept)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._running = False
        for session in tuple(self._sessions.values()):
            session.channel.link_lost(LinkLostError("this peer is shutting down"))
        for dial in tuple(self._dials.values()):
            dial.cancel()
        try:
            await self._tasks.__aexit__(kind, error, traceback)
        finally:
            self._timer.close()

    def register(self, name: str, instance: object) -> None:
        """Serve the `@method`s of `instance` as the service `name`.

        Raises:
            TypeError: a method lacks annotations, or none is marked.
            ValueError: the name is taken.
        """
        self._registry.add(name, instance, self._methods(type(instance)))

    def unregister(self, name: str) -> None:
        """Serve `name` no more; calls in flight go on."""
        self._registry.services.pop(name, None)

    def client(
        self,
        peer: PeerId,
        service: type[T],
        name: str,
        *,
        timeout: float | None = None,
        stream_timeout: float | None = None,
    ) -> T:
        """The service `name` of `peer`, typed as `service`.

        Calls connect on demand. `timeout` (seconds, math.inf for none) bounds each call,
        connecting included; `stream_timeout` bounds a whole item stream (default: none).
        """
        stub = Stub(
            self,
            peer,
            name,
            self._methods(service),
            self.config.default_timeout if timeout is None else timeout,
            math.inf if stream_timeout is None else stream_timeout,
        )
        return cast(T, stub)

    def stats(self) -> dict[str, dict[str, int]]:
        """Per served method: calls, errors, and those running now."""
        return {
            f"{service}.{name}": {
                "calls": handler.calls,
                "errors": handler.errors,
                "running": handler.running,
            }
            for service, handlers in self._registry.services.items()
            for name, handler in handlers.items()
        }

    def __repr__(self) -> str:
        services = ", ".join(sorted(self._registry.services))
        waiting = sum(len(session.calls) for session in self._sessions.values())
        return f"Rpc({self.name}, serves [{services}], {len(self._sessions)} links, {waiting} calls out)"

    # --------------------------------------------------------------- sessions

    def _methods(self, service: type[Any]) -> dict[str, MethodSpec]:
        specs = self._specs.get(service)
        if specs is None:
            specs = self._specs[service] = methods_of(service)
        return specs

    def _accept(self, link: Link) -> LinkHandler:
        session = Session(self, link)
        if self._running:
            self._sessions[link.remote.peer] = session
        else:
            session.channel.link_lost(LinkLostError("this peer is shutting down"))
        return session.channel

    def _forget(self, session: Session) -> None:
        if self._sessions.get(session.link.remote.peer) is session:
            del self._sessions[session.link.remote.peer]

    def _find(self, peer: PeerId) -> Session | None:
        """The session that can be used at once, unless calls made earlier wait for it."""
        if peer in self._dials:
            return None
        session = self._sessions.get(peer)
        return session if session is not None and session.link.is_open else None

    async def _connect(self, peer: PeerId, deadline: float) -> Session:
        if not self._running:
            raise LinkLostError("this Rpc is not running")
        dial = self._dials.get(peer)
        if dial is None:
            dial = self._dials[peer] = _Dial(self, peer)
        return await dial.wait(deadline)


class _Dial:
    """Calls that wait for a link, let through in the order they were made."""

    def __init__(self, rpc: Rpc, peer: PeerId) -> None:
        self._rpc = rpc
        self._peer = peer
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._error: LinkError | None = None
        self._done = False
        self._task = rpc._tasks.create_task(self._run())

    def cancel(self) -> None:
        """The Rpc is shutting down."""
        self._task.cancel()
        self._finish(LinkLostError("this peer is shutting down"))

    async def wait(self, deadline: float) -> Session:
        """The session, once dialled.

        Raises:
            LinkError, DeadlineError.
        """
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        if self._done and len(self._waiters) == 1:
            waiter.set_result(None)
        try:
            async with asyncio.timeout_at(None if math.isinf(deadline) else deadline):
                await waiter
        except TimeoutError:
            raise DeadlineError(f"no link to {self._peer.short} in time") from None
        finally:
            self._waiters.remove(waiter)
            if self._done:
                self._next()
        if self._error is not None:
            raise self._error.with_traceback(None)
        session = self._rpc._sessions.get(self._peer)
        if session is None:
            raise LinkLostError(f"the link to {self._peer.short} was lost at once")
        return session

    async def _run(self) -> None:
        try:
            await self._rpc.links.connect(self._peer)
        except LinkError as error:
            self._finish(error)
        else:
            self._finish(None)

    def _finish(self, error: LinkError | None) -> None:
        if not self._done:
            self._done, self._error = True, error
            self._next()

    def _next(self) -> None:
        if not self._waiters:
            if self._rpc._dials.get(self._peer) is self:
                del self._rpc._dials[self._peer]
            if not self._task.done() and self._done:
                return
        elif not self._waiters[0].done():
            self._waiters[0].set_result(None)


class Stub:
    """A peer's service: attributes are its methods."""

    def __init__(
        self,
        rpc: Rpc,
        peer: PeerId,
        name: str,
        specs: dict[str, MethodSpec],
        timeout: float,
        stream_timeout: float,
    ) -> None:
        self._rpc = rpc
        self._peer = peer
        self._name = name
        self._specs = specs
        self._timeout = timeout
        self._stream_timeout = stream_timeout

    def __getattr__(self, attribute: str) -> Any:
        spec = self._specs.get(attribute)
        if spec is None:
            raise AttributeError(f"{self._name!r} has no method {attribute!r}")
        call = StreamMethod(self, spec) if spec.is_stream else UnaryMethod(self, spec)
        self.__dict__[attribute] = call  # found without this detour from now on
        return call

    def __repr__(self) -> str:
        return f"Stub({self._name} of {self._peer.short})"


class UnaryMethod:
    """One method of a stub that returns one value."""

    __slots__ = ("_spec", "_stub")

    def __init__(self, stub: Stub, spec: MethodSpec) -> None:
        self._stub = stub
        self._spec = spec

    def __call__(self, *args: Any, **kwargs: Any) -> Awaitable[Any]:
        arguments = self._spec.bind(args, kwargs)
        return self._call(arguments)

    async def _call(self, arguments: Any) -> Any:
        stub = self._stub
        rpc = stub._rpc
        deadline = rpc._timer.now() + stub._timeout
        if stub._peer == rpc.local:
            return await rpc._local.call(stub._name, self._spec, arguments, deadline)
        session = rpc._find(stub._peer)
        if session is None:
            session = await rpc._connect(stub._peer, deadline)
        return await session.calls.call(stub._name, self._spec, arguments, deadline)


class StreamMethod:
    """One method of a stub that returns items."""

    __slots__ = ("_spec", "_stub")

    def __init__(self, stub: Stub, spec: MethodSpec) -> None:
        self._stub = stub
        self._spec = spec

    def __call__(self, *args: Any, **kwargs: Any) -> ItemStream:
        return ItemStream(self._open, self._spec.bind(args, kwargs))

    async def _open(self, arguments: Any) -> OpenStream | AsyncIterator[Any]:
        stub = self._stub
        rpc = stub._rpc
        deadline = rpc._timer.now() + stub._stream_timeout
        if stub._peer == rpc.local:
            return rpc._local.stream(stub._name, self._spec, arguments, deadline)
        session = rpc._find(stub._peer)
        if session is None:
            session = await rpc._connect(
                stub._peer, min(deadline, rpc._timer.now() + stub._timeout)
            )
        return await session.calls.start_stream(stub._name, self._spec, arguments, deadline)


class ItemStream:
    """Items of a call, an async iterator. The call starts with the first `__anext__`.

    Dropping it, or `aclose()`, cancels the handler.
    """

    def __init__(
        self, start: Callable[[Any], Awaitable[OpenStream | AsyncIterator[Any]]], arguments: Any
    ) -> None:
        self._start = start
        self._arguments = arguments
        self._source: OpenStream | AsyncIterator[Any] | None = None
        self._ended = False

    def __aiter__(self) -> ItemStream:
        return self

    async def __anext__(self) -> Any:
        if self._ended:
            raise StopAsyncIteration
        try:
            if self._source is None:
                self._source = await self._start(self._arguments)
            if isinstance(self._source, OpenStream):
                return await self._source.next()
            return await self._source.__anext__()
        except BaseException:
            # As in an async generator, whatever ends one step ends the stream.
            self._ended = True
            if isinstance(self._source, OpenStream):
                self._source.close()
            raise

    async def aclose(self) -> None:
        """Want no more items; the handler is cancelled."""
        self._ended = True
        if isinstance(self._source, OpenStream):
            self._source.close()
        elif self._source is not None:
            await cast(Any, self._source).aclose()

    def __del__(self) -> None:
        if isinstance(self._source, OpenStream):
            self._source.close()

    def __await__(self) -> Generator[Any, None, Any]:
        raise TypeError("an item stream is read with `async for`, not awaited")
