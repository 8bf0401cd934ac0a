"""`Rpc`: serve objects to peers, call theirs."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine
from types import TracebackType
from typing import Any, TypeVar, cast

from lattica.config import RpcConfig
from lattica.errors import LinkLostError
from lattica.identity.keys import PeerId
from lattica.link.interface import Link, LinkHandler, Links
from lattica.rpc.dial import Dial
from lattica.rpc.local import LocalCalls
from lattica.rpc.messages import around_call
from lattica.rpc.meter import CalledMeter, bounds
from lattica.rpc.methods import MethodSpec, methods_of
from lattica.rpc.open_stream import OpenStream
from lattica.rpc.registry import Registry
from lattica.rpc.retry import Retry, retried
from lattica.rpc.session import Session
from lattica.rpc.statistics import RpcStats, called_stats, served_stats
from lattica.rpc.stubs import Stub, UnaryCall

T = TypeVar("T")
UnaryOnce = Callable[[float, MethodSpec, Any], Coroutine[Any, Any, Any]]  # the timeout comes first


class _Route:
    """Where the calls of one stub go: the session to its peer, while that can be used."""

    __slots__ = ("meters", "peer", "service", "session")

    def __init__(self, peer: PeerId, service: str) -> None:
        self.peer = peer
        self.service = service
        self.session: Session | None = None
        self.meters: dict[str, CalledMeter] = {}  # by method


class Rpc:
    """Calls between peers over their links. An async context manager; owns its handlers.

    Attributes:
        links: the links underneath.
        counters: refusals and drops, as `refused:permission` or `bad_frame`.
    """

    def __init__(self, links: Links, *, config: RpcConfig | None = None, name: str = "") -> None:
        """`name` is this peer's, as errors tell it."""
        self.links = links
        self.config = config or RpcConfig()
        self.name = name or links.local.short
        self.counters: Counter[str] = Counter()
        self._registry = Registry(self.counters, self.config)
        self._specs: dict[type[Any], dict[str, MethodSpec]] = {}
        self._sessions: dict[int, Session] = {}  # by the id() of its link
        self._dials: dict[PeerId, Dial] = {}
        self._called: dict[str, CalledMeter] = {}
        self._local = LocalCalls(self._registry, links.local, self.name)
        self._tasks: asyncio.TaskGroup
        self._now: Callable[[], float] = time.monotonic  # the loop's, once it runs
        self._running = False

    @property
    def local(self) -> PeerId:
        """This peer."""
        return self.links.local

    async def __aenter__(self) -> Rpc:
        self._now = asyncio.get_running_loop().time
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
        self.links.retire("this peer is shutting down")
        try:
            if kind is None:
                await self._drain()
        finally:
            await self._end(kind, error, traceback)

    async def _drain(self) -> None:
        """Let the calls in flight finish, up to a bound, while no new ones begin."""
        timeout, reason = self.config.drain_timeout, "this peer is shutting down"
        async with asyncio.TaskGroup() as tasks:
            for session in tuple(self._sessions.values()):
                tasks.create_task(session.link.drain(timeout, reason))

    async def _end(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for session in tuple(self._sessions.values()):
            session.channel.link_lost(LinkLostError("this peer is shutting down"))
            session.link.close("this peer is shutting down")  # its calls to us end now as well
        for dial in tuple(self._dials.values()):
            dial.cancel()
        try:
            await self._tasks.__aexit__(kind, error, traceback)
        except BaseExceptionGroup as group:
            # The body's own error is not this task group's to wrap.
            if error is not None and group.exceptions == (error,):
                return
            raise
        finally:
            await self._registry.executors.close()

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
        retries: int | Retry = 0,
    ) -> T:
        """The service `name` of `peer`, typed as `service`.

        Calls connect on demand. `timeout` (seconds, `math.inf` for none) bounds each call
        with its connecting, and the connecting of a stream; `stream_timeout` bounds a call
        with a stream, either way, from its first step to its end (default: no bound).

        With `retries`, so many more attempts are made of a call that returns one value, within
        its `timeout`: see `Retry` for which, and for how to say more. Streams are not retried.
        """
        if timeout is None:
            timeout = self.config.default_timeout
        timeout = float(timeout)  # as which it is sent
        if stream_timeout is None:
            stream_timeout = math.inf
        once: UnaryOnce
        route = _Route(peer, name)
        if peer == self.local:
            once = functools.partial(self._local_unary, route)
        else:
            once = functools.partial(self._unary, route)
        policy = retries if isinstance(retries, Retry) else Retry(attempts=retries + 1)
        unary: UnaryCall
        if policy.attempts > 1:
            unary = functools.partial(self._retrying, once, policy, timeout)
        else:
            unary = functools.partial(once, timeout)
        stub = Stub(
            f"{name} of {peer.short}",
            self._methods(service),
            unary,
            functools.partial(self._stream, route, timeout, stream_timeout),
            functools.partial(self._upload, route, timeout, stream_timeout),
        )
        return cast(T, stub)

    def stats(self) -> RpcStats:
        """What was served and called so far, what goes on, and how the links do."""
        admission = self._registry.admission
        return RpcStats(
            served={
                handler.name: served_stats(handler.meter, handler.gate)
                for handlers in self._registry.services.values()
                for handler in handlers.values()
            },
            called={name: called_stats(meter) for name, meter in self._called.items()},
            links=tuple(session.stats() for session in self._sessions.values()),
            counters=dict(self.counters),
            running=admission.running,
            queued=admission.queued,
            bounds=bounds(),
        )

    def __repr__(self) -> str:
        services = ", ".join(sorted(self._registry.services))
        out = sum(len(session.calls) for session in self._sessions.values())
        return f"Rpc({self.name}: [{services}], {len(self._sessions)} links, {out} calls out)"

    # ------------------------------------------------------------------ calls

    async def _unary(self, route: _Route, timeout: float, spec: MethodSpec, arguments: Any) -> Any:
        began = self._now()
        deadline = began + timeout
        meter = route.meters.get(spec.name) or self._meter(route, spec)
        meter.calls += 1
        try:
            session = route.session
            if session is None or session.channel.error is not None or not session.link.is_open:
                self._check_running()
                session = route.session = self._find(route.peer)
                if session is None:
                    session = await self._connect(route.peer, deadline)
                    timeout = deadline - self._now()
            calls = session.calls
            value = await calls.call(route.service, spec, arguments, deadline, timeout, meter)
        except BaseException as error:
            meter.failed(type(error).__name__)
            meter.took(self._now() - began)
            raise
        meter.took(self._now() - began)
        return value

    def _meter(self, route: _Route, spec: MethodSpec) -> CalledMeter:
        name = f"{route.service}.{spec.name}"
        meter = self._called.get(name)
        if meter is None:
            around = around_call(route.service, spec.name)
            meter = self._called[name] = CalledMeter(around)
        route.meters[spec.name] = meter
        return meter

    async def _retrying(
        self, once: UnaryOnce, policy: Retry, timeout: float, spec: MethodSpec, arguments: Any
    ) -> Any:
        self._check_running()
        return await retried(
            lambda left: once(left, spec, arguments),
            policy,
            idempotent=spec.offer.idempotent,
            deadline=self._now() + timeout,
        )

    async def _local_unary(
        self, route: _Route, timeout: float, spec: MethodSpec, arguments: Any
    ) -> Any:
        began = self._now()
        meter = route.meters.get(spec.name) or self._meter(route, spec)
        meter.calls += 1
        try:
            self._check_running()
            return await self._local.call(route.service, spec, arguments, began + timeout)
        except BaseException as error:
            meter.failed(type(error).__name__)
            raise
        finally:
            meter.took(self._now() - began)

    async def _upload(
        self,
        route: _Route,
        timeout: float,
        stream_timeout: float,
        spec: MethodSpec,
        arguments: Any,
        source: Any,
    ) -> Any:
        began, peer, name = self._now(), route.peer, route.service
        deadline = began + stream_timeout
        meter = route.meters.get(spec.name) or self._meter(route, spec)
        meter.calls += 1
        try:
            self._check_running()
            if peer == self.local:
                return await self._local.call(name, spec, arguments, deadline, source)
            soon = min(deadline, began + timeout)
            session = self._find(peer) or await self._connect(peer, soon)
            return await session.calls.upload(name, spec, arguments, source, deadline, meter)
        except BaseException as error:
            meter.failed(type(error).__name__)
            raise
        finally:
            meter.took(self._now() - began)

    async def _stream(
        self,
        route: _Route,
        timeout: float,
        stream_timeout: float,
        spec: MethodSpec,
        arguments: Any,
        source: Any = None,
    ) -> OpenStream | AsyncGenerator[Any, None]:
        began, peer, name = self._now(), route.peer, route.service
        deadline = began + stream_timeout
        meter = route.meters.get(spec.name) or self._meter(route, spec)
        meter.calls += 1
        try:
            self._check_running()
            if peer == self.local:
                items = self._local.stream(name, spec, arguments, deadline, source)
                return self._counted(items, meter, began)
            soon = min(deadline, began + timeout)
            session = self._find(peer) or await self._connect(peer, soon)
            return await session.calls.start_stream(
                name, spec, arguments, source, deadline, meter, began
            )
        except BaseException as error:
            meter.failed(type(error).__name__)
            meter.took(self._now() - began)
            raise

    async def _counted(
        self, items: AsyncGenerator[Any, None], meter: CalledMeter, began: float
    ) -> AsyncGenerator[Any, None]:
        try:
            async with contextlib.aclosing(items):
                async for item in items:
                    yield item
        except BaseException as error:
            is_left = isinstance(error, GeneratorExit)
            meter.failed((asyncio.CancelledError if is_left else type(error)).__name__)
            raise
        finally:
            meter.took(self._now() - began)

    def _check_running(self) -> None:
        if not self._running:
            raise LinkLostError("this Rpc is not running: use `async with`")

    # --------------------------------------------------------------- sessions

    def _methods(self, service: type[Any]) -> dict[str, MethodSpec]:
        specs = self._specs.get(service)
        if specs is None:
            specs = self._specs[service] = methods_of(service)
        return specs

    def _accept(self, link: Link) -> LinkHandler:
        session = self._sessions[id(link)] = Session(
            link, self.config, self._registry, self._tasks, self._forget
        )
        if not self._running:
            session.channel.link_lost(LinkLostError("this peer is shutting down"))
            link.close("this peer is shutting down")
        return session.channel

    def _forget(self, session: Session) -> None:
        self._sessions.pop(id(session.link), None)

    def _find(self, peer: PeerId) -> Session | None:
        """The session that can be used at once, unless calls made earlier wait for it."""
        if peer in self._dials:
            return None
        link = self.links.find(peer)
        return None if link is None else self._sessions.get(id(link))

    async def _connect(self, peer: PeerId, deadline: float) -> Session:
        dial = self._dials.get(peer)
        if dial is None:
            dial = self._dials[peer] = Dial(
                self.links, peer, self._tasks, lambda: self._undial(peer, dial)
            )
        link = await dial.wait(deadline)
        session = self._sessions.get(id(link))
        if session is None:
            raise LinkLostError(f"the link to {peer.short} was lost at once")
        return session

    def _undial(self, peer: PeerId, dial: Dial | None) -> None:
        if self._dials.get(peer) is dial:
            del self._dials[peer]
