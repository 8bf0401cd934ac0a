"""Calls of actors: in order per caller and actor, to wherever the actor lives now."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextlib import aclosing
from typing import Any, Protocol

import anyio.abc
import msgspec

from lattica.actors.directory import Directory
from lattica.actors.host_service import HostService
from lattica.actors.messages import ActorCall, ActorId, ActorInfo, Failure, ObjectId, Outcome
from lattica.actors.names import ActorService, owner_of
from lattica.actors.submission import DID_NOT_RUN, Results, cancelled, items_of
from lattica.errors import (
    CallLostError,
    LatticaError,
    LinkError,
    StreamTruncatedError,
)
from lattica.identity import grants
from lattica.identity.keys import PeerId
from lattica.rpc import Rpc
from lattica.rpc.doubts import Doubts

FOREVER = float("inf")  # a call takes as long as it takes; a lost link ends it
SETTLE_WITHIN = 2.0  # seconds in which an owner notices that a host is gone
PATIENCE = 30.0  # seconds a call that did not run is tried again for
PAUSE_LEAST = 0.05  # seconds
MAX_IDLE = 4096  # actors whose place is remembered

log = logging.getLogger("lattica.actors")


class Local(Protocol):
    """This peer's own actors."""

    async def locate(self, actor: ActorId) -> ActorInfo | Failure:
        """Wait until the actor has a host."""
        ...


class Call:
    """One call of an actor's method."""

    def __init__(self, call: ActorCall, number: int, let_go: Callable[[], None]) -> None:
        self.call = call
        self.number = number
        self.let_go = let_go
        self.retries: int | None = None  # known once the actor has been located
        self.first_failed = 0.0  # when it was first tried in vain, on the loop's clock
        self.host: PeerId | None = None  # where it is now
        self.cancelled = False
        self.done = False
        self.items = 0


class Dispatcher:
    """All calls that this peer makes, to its own actors and to others'."""

    def __init__(
        self,
        rpc: Rpc,
        directory: Directory,
        doubts: Doubts,
        local: Local,
        results: Results,
        tasks: anyio.abc.TaskGroup,
    ) -> None:
        self.rpc = rpc
        self.directory = directory
        self.doubts = doubts
        self.results = results
        self.tasks = tasks
        self._local = local
        self._lines: dict[ActorId, _Line] = {}
        self._by_return: dict[ObjectId, tuple[_Line, Call]] = {}

    def call(self, call: ActorCall) -> None:
        """Start a call; never blocks."""
        line = self._lines.get(call.actor)
        if line is None:
            self._forget_idle()
            line = self._lines[call.actor] = _Line(self, call.actor)
        made = line.add(call, self.results.hold((*call.arg_refs, *call.args.refs)))
        for object_id in _results_of(call):
            self._by_return[object_id] = (line, made)

    def _forget_idle(self) -> None:
        if len(self._lines) >= MAX_IDLE:
            self._lines = {actor: line for actor, line in self._lines.items() if line.is_open}

    async def cancel(self, object_id: ObjectId, *, force: bool) -> bool:
        """Cancel the call that makes an object; False: there is none (any more)."""
        line, call = self._by_return.get(object_id, (None, None))
        if line is None or call is None:
            return False
        call.cancelled = True
        if call.host is None:
            self.finish(call, cancelled(call.call.method))
        else:
            try:
                await self.host(call.host, 5.0).cancel(call.call.task, force)
            except LatticaError as error:
                log.debug("cancelling %s: %s", call.call.method, error)
        return True

    async def idle(self, actor: ActorId) -> None:
        """Wait until no call to an actor is in flight."""
        line = self._lines.get(actor)
        if line is not None:
            await line.idle()

    async def locate(self, actor: ActorId) -> ActorInfo | Failure:
        """Where an actor is, by its owner's word."""
        owner = owner_of(actor)
        if owner == self.rpc.local:
            return await self._local.locate(actor)
        try:
            link = await self.directory.reach(owner)
            service: Any = self.rpc.client(owner, ActorService, "actors", timeout=FOREVER)
            found: ActorInfo | Failure = await service.locate(actor)
        except (LinkError, CallLostError) as error:
            name = self.directory.name_of(owner)
            return Failure(
                "actor_died",
                f"the actor's owner {name} is gone, and its actors with it: {error}",
                peer=owner,
                peer_name=name,
                may_have_run=False,
            )
        except LatticaError as error:
            return Failure("refused", f"{owner.short} does not say where the actor is: {error}")
        del link
        return found

    def host(self, peer: PeerId, timeout: float) -> HostService:
        """The host service of a peer."""
        return self.rpc.client(peer, HostService, "host", timeout=timeout)

    def finish(self, call: Call, outcomes: list[Outcome] | Failure) -> None:
        """Settle a call, once."""
        if call.done:
            return
        call.done = True
        call.let_go()
        for object_id in _results_of(call.call):
            self._by_return.pop(object_id, None)
        stream = call.call.stream
        if stream is not None:
            if isinstance(outcomes, Failure):
                self.results.item(stream, outcomes)
            self.results.end(stream)
            return
        returns = call.call.returns
        if not isinstance(outcomes, Failure) and len(outcomes) != len(returns):
            failed = next((each for each in outcomes if isinstance(each, Failure)), None)
            outcomes = failed or Failure(
                "task", f"{len(outcomes)} results arrived instead of {len(returns)}"
            )
        each = [outcomes] * len(returns) if isinstance(outcomes, Failure) else outcomes
        for object_id, outcome in zip(returns, each, strict=True):
            self.results.settle(object_id, outcome)


class _Line:
    """The calls to one actor, in order."""

    def __init__(self, dispatcher: Dispatcher, actor: ActorId) -> None:
        self._dispatcher = dispatcher
        self._actor = actor
        self._queue: deque[Call] = deque()
        self._count = 0
        self._open = 0
        self._sending = False
        self._info: ActorInfo | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    def add(self, call: ActorCall, let_go: Callable[[], None]) -> Call:
        made = Call(call, self._count, let_go)
        self._count += 1
        self._open += 1
        self._idle.clear()
        self._queue.append(made)
        self._send_soon()
        return made

    @property
    def is_open(self) -> bool:
        """Whether calls are in flight."""
        return self._open > 0

    async def idle(self) -> None:
        await self._idle.wait()

    def _send_soon(self) -> None:
        if not self._sending:
            self._sending = True
            self._dispatcher.tasks.start_soon(self._send)

    async def _send(self) -> None:
        try:
            while self._queue:
                call = self._queue[0]
                if call.done or not await self._ready(call):
                    if self._queue and self._queue[0] is call:
                        self._queue.popleft()
                    self._closed()
                    continue
                info = await self._locate()
                if isinstance(info, Failure):
                    self._info = None
                    self._finish_first(call, info)
                    continue
                if call.retries is None:
                    call.retries = info.max_task_retries
                if not await self._reach(info.host):
                    await self._give_way(call, info.host)
                    continue
                if self._queue and self._queue[0] is call:
                    self._queue.popleft()
                    call.host = info.host
                    # A new task's first step writes the call to the link, which is there:
                    # calls leave in the order of their tasks.
                    self._dispatcher.tasks.start_soon(self._run, call, info.host)
        finally:
            self._sending = False

    async def _ready(self, call: Call) -> bool:
        failure = await self._dispatcher.results.dependencies(call.call.arg_refs)
        if failure is not None:
            self._dispatcher.finish(call, failure)
        return not call.done

    async def _locate(self) -> ActorInfo | Failure:
        if self._info is None:
            found = await self._dispatcher.locate(self._actor)
            if isinstance(found, Failure):
                return found
            self._info = found
        return self._info

    async def _reach(self, host: PeerId) -> bool:
        """Whether there is a link to the host, and the host holds a grant."""
        if host == self._dispatcher.rpc.local:
            return True
        try:
            link = await self._dispatcher.directory.reach(host)
        except LatticaError:
            return False
        # What it answers is unpickled here.
        return grants.HOST in link.remote.scopes

    async def _give_way(self, call: Call, host: PeerId) -> None:
        """The host cannot be reached: find out whether the actor is elsewhere, or gone."""
        self._info = None
        found = await self._moved(host)
        if isinstance(found, Failure):
            self._finish_first(call, found)
        elif found is None and not self._patient(call):
            self._finish_first(call, self._unavailable(host, "it cannot be reached", False))
        else:
            self._info = found

    def _finish_first(self, call: Call, failure: Failure) -> None:
        if self._queue and self._queue[0] is call:
            self._queue.popleft()
        self._dispatcher.finish(call, failure)
        self._closed()

    async def _run(self, call: Call, host: PeerId) -> None:
        try:
            with self._dispatcher.doubts.waiting(host):
                outcomes = await self._call(call, host)
        except (CallLostError, LinkError, StreamTruncatedError) as error:
            ran = getattr(error, "may_have_run", isinstance(error, StreamTruncatedError))
            outcomes = self._unavailable(host, str(error), ran)
        except LatticaError as error:
            outcomes = self._unavailable(host, str(error), not isinstance(error, DID_NOT_RUN))
        except Exception as error:
            log.exception("calling %s", call.call.method)
            outcomes = Failure("task", f"{type(error).__name__}: {error}")
        call.host = None
        failure = _failure(outcomes)
        if failure is not None and failure.kind in ("actor_unavailable", "actor_died"):
            final = await self._after(call, host, failure)
            if final is None:
                return  # it is in the queue again
            outcomes = final
        self._dispatcher.finish(call, outcomes)
        self._closed()

    async def _call(self, call: Call, host: PeerId) -> list[Outcome] | Failure:
        service = self._dispatcher.host(host, FOREVER)
        stream = call.call.stream
        if stream is None:
            return await service.call(call.call)
        results = self._dispatcher.results
        skip = call.items
        async with aclosing(items_of(service.call_stream(call.call))) as items:
            async for outcome in items:
                if skip:
                    skip -= 1
                    continue
                if isinstance(outcome, Failure):
                    return outcome
                call.items += 1
                results.item(stream, outcome)
                await results.room(stream)
        return []

    async def _after(self, call: Call, host: PeerId, failure: Failure) -> Failure | None:
        """What becomes of a call that failed for its host's sake; None: it is queued again."""
        if self._info is not None and self._info.host == host:
            self._info = None
        if call.cancelled:
            return cancelled(call.call.method)
        found = await self._moved(host)
        if isinstance(found, Failure):
            # The owner knows why; whether this call ran is known here.
            return msgspec.structs.replace(
                found,
                message=f"{found.message}; the call of {call.call.method}() "
                + ("may have run" if failure.may_have_run else "did not run"),
                may_have_run=failure.may_have_run,
            )
        if failure.may_have_run:
            if not call.retries:
                return failure
            call.retries -= 1  # from -1 it never comes to 0
        elif not self._patient(call):
            return failure
        self._info = found
        self._requeue(call)
        return None

    async def _moved(self, host: PeerId) -> ActorInfo | Failure | None:
        """Where the actor is now; None: still there, as far as its owner knows."""
        pause, waited = PAUSE_LEAST, 0.0
        while True:
            found = await self._dispatcher.locate(self._actor)
            if isinstance(found, Failure) or found.host != host:
                return found
            if host == self._dispatcher.rpc.local or waited >= SETTLE_WITHIN:
                return None
            if self._dispatcher.rpc.links.find(host) is not None:
                return None
            await asyncio.sleep(pause)  # the owner has not noticed yet
            waited += pause
            pause = min(2 * pause, 0.5)

    def _patient(self, call: Call) -> bool:
        now = asyncio.get_running_loop().time()
        call.first_failed = call.first_failed or now
        return now - call.first_failed < PATIENCE

    def _requeue(self, call: Call) -> None:
        later = [each for each in self._queue if each.number > call.number]
        earlier = [each for each in self._queue if each.number < call.number]
        self._queue = deque([*earlier, call, *later])
        self._send_soon()

    def _closed(self) -> None:
        self._open -= 1
        if self._open == 0:
            self._idle.set()

    def _unavailable(self, host: PeerId, reason: str, may_have_run: bool) -> Failure:
        name = self._dispatcher.directory.name_of(host)
        ran = "the call may have run" if may_have_run else "the call did not run"
        return Failure(
            "actor_unavailable",
            f"the actor on peer {name} does not answer: {reason}; {ran}",
            peer=host,
            peer_name=name,
            may_have_run=may_have_run,
        )


def _results_of(call: ActorCall) -> tuple[ObjectId, ...]:
    return call.returns if call.stream is None else (call.stream,)


def _failure(outcomes: list[Outcome] | Failure) -> Failure | None:
    if isinstance(outcomes, Failure):
        return outcomes
    return next((each for each in outcomes if isinstance(each, Failure)), None)
