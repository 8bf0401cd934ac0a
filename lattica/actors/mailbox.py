"""The order of an actor's calls: as each caller made them, whichever arguments come first."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Generic, TypeVar

from lattica.identity.keys import PeerId

C = TypeVar("C")


class Mailbox(Generic[C]):
    """Calls wait until their arguments are there, and no longer than their caller's earlier ones.

    One caller's wait does not hold up another's calls.
    """

    def __init__(self) -> None:
        self._callers: dict[PeerId, deque[C]] = {}
        self._ready: deque[C] = deque()
        self._complete: set[int] = set()  # by id(): complete, but behind one that is not

    def __len__(self) -> int:
        return len(self._ready) + sum(map(len, self._callers.values()))

    def add(self, caller: PeerId, call: C, *, complete: bool) -> None:
        """A call has arrived."""
        if complete and caller not in self._callers:
            self._ready.append(call)
            return
        self._callers.setdefault(caller, deque()).append(call)
        if complete:
            self._complete.add(id(call))

    def complete(self, caller: PeerId, call: C) -> None:
        """A call's arguments are there."""
        self._complete.add(id(call))
        self._advance(caller)

    def remove(self, caller: PeerId, call: C) -> bool:
        """Forget a call that has not been taken; False: it has been."""
        self._complete.discard(id(call))
        if call in self._ready:
            self._ready.remove(call)
            return True
        waiting = self._callers.get(caller)
        if waiting is None or call not in waiting:
            return False
        waiting.remove(call)
        self._advance(caller)
        return True

    def take(self) -> C | None:
        """The next call that may begin."""
        return self._ready.popleft() if self._ready else None

    def put_back(self, calls: Iterable[C]) -> None:
        """Calls that were taken but did not begin; they come first again, in this order."""
        self._ready.extendleft(reversed(list(calls)))

    def clear(self) -> list[C]:
        """Forget all; the calls that were waiting."""
        calls = [*self._ready, *(call for waiting in self._callers.values() for call in waiting)]
        self._ready.clear()
        self._callers.clear()
        self._complete.clear()
        return calls

    def _advance(self, caller: PeerId) -> None:
        waiting = self._callers.get(caller)
        if waiting is None:
            return
        while waiting and id(waiting[0]) in self._complete:
            call = waiting.popleft()
            self._complete.discard(id(call))
            self._ready.append(call)
        if not waiting:
            del self._callers[caller]
