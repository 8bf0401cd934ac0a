"""What owners and borrowers of objects say to each other."""

from __future__ import annotations

from collections import Counter
from typing import Protocol

from lattica.actors.messages import Failure, ObjectId, Value
from lattica.actors.objects import ObjectTable
from lattica.actors.waiting import wait_ready
from lattica.clock import Clock
from lattica.errors import PermissionDeniedError
from lattica.identity import grants
from lattica.rpc import caller, method

MAX_POLL = 30.0  # seconds an unready object is waited for within one call
MAX_IDS = 10_000  # in one message

FREED = Failure("object_lost", "the value was freed: nobody held a ref to it any more")
TRUSTED = frozenset({grants.SUBMIT, grants.HOST})


def require_trust(counters: Counter[str], what: str) -> None:
    """Refuse a caller that may neither submit work nor host it.

    Raises:
        PermissionDeniedError: it holds neither grant.
    """
    call = caller()
    if not TRUSTED & call.scopes:
        counters["refused:objects"] += 1
        raise PermissionDeniedError(
            f"{call.peer.short} may not {what}: it holds neither a 'submit' nor a 'host' grant"
        )


class CancelTask(Protocol):
    """Cancels the task that will make an object."""

    async def __call__(self, object_id: ObjectId, *, force: bool) -> None: ...


class ObjectService:
    """Serves the objects that this peer owns; registered as "objects"."""

    def __init__(
        self,
        table: ObjectTable,
        clock: Clock,
        lease: float,
        counters: Counter[str],
        cancel: CancelTask,
    ) -> None:
        """`lease` is how long a borrower's claim lasts, in seconds."""
        self._table = table
        self._clock = clock
        self._lease = lease
        self._counters = counters
        self._cancel = cancel

    @method(scope=None)
    async def fetch(self, object_id: ObjectId, wait: float) -> Value | Failure | None:
        """The object's outcome; None if it is not ready within `wait` seconds."""
        require_trust(self._counters, "fetch objects")
        slot = self._table.find(object_id)
        if slot is None or self._table.is_lost(object_id):
            return FREED
        await wait_ready([slot], 1, min(wait, MAX_POLL))
        return slot.outcome

    @method(scope=None)
    async def borrow(self, object_ids: list[ObjectId]) -> list[bool]:
        """Hold objects for the caller until `lease` seconds from now; False where there is none."""
        require_trust(self._counters, "borrow objects")
        until = self._clock.monotonic() + self._lease
        peer = caller().peer
        return [self._table.lend(each, peer, until) for each in object_ids[:MAX_IDS]]

    @method(scope=None)
    async def give_back(self, object_ids: list[ObjectId]) -> None:
        """The caller holds these no longer."""
        require_trust(self._counters, "give objects back")
        for each in object_ids[:MAX_IDS]:
            self._table.take_back(each, caller().peer)

    @method(scope=grants.SUBMIT)
    async def cancel(self, object_id: ObjectId, force: bool) -> None:
        """Cancel the task that will make an object."""
        await self._cancel(object_id, force=force)
