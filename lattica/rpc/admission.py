"""Which calls run now, which wait, and whose turn is next. Sans-IO.

A call needs a place under four limits: of everything here, of its method, of its peer, and
of the pool of threads or processes its method runs in. While one of them is reached it
waits in its method's queue. The next place goes to the peer that was served least recently,
so one peer's flood delays a call of another by one service time at most; each call counts
the same (deficit round robin, Shreedhar and Varghese 1995, with a quantum of one call).
When a queue is over its bounds, the peer with the most in it loses its newest call (as
the longest queue drops in McKenney's stochastic fair queueing, 1990): who asks for less than
its share is not refused because of who asks for more.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

E = TypeVar("E")

GUESS = 0.1  # seconds a call takes, before one has ended
SHORTEST, LONGEST = 0.01, 30.0  # seconds after which a refused caller may try again
WEIGHT = 1 / 8  # of the newest call in the running mean of a method's service time


class Limit:
    """How many run, and how many may."""

    __slots__ = ("limit", "running")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.running = 0


class Share(Limit):
    """What one peer has of the whole."""

    __slots__ = ("__weakref__", "turn")

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.turn = 0  # when one of its calls last started, in starts


class Line(Generic[E]):
    """The calls of one peer that wait for one method, and their bytes."""

    __slots__ = ("entries", "nbytes")

    def __init__(self) -> None:
        self.entries: OrderedDict[E, int] = OrderedDict()
        self.nbytes = 0


class Gate(Limit, Generic[E]):
    """One method: its limit, and who waits for it."""

    __slots__ = (
        "max_queue",
        "max_queue_bytes",
        "moved",
        "nbytes",
        "pool",
        "queued",
        "seconds",
        "waiting",
    )

    def __init__(
        self, limit: int, *, max_queue: int, max_queue_bytes: int, pool: Limit | None = None
    ) -> None:
        super().__init__(limit)
        self.max_queue = max_queue
        self.max_queue_bytes = max_queue_bytes
        self.pool = pool
        self.waiting: dict[Share, Line[E]] = {}
        self.queued = 0  # calls in these lines,
        self.nbytes = 0  # and their bytes
        self.seconds = 0.0  # a call takes, the running mean; 0: none has ended yet
        self.moved = 0.0  # when a call last started from the queue, or the first entered it

    @property
    def is_over(self) -> bool:
        """Whether more waits than may. One call may wait however large it is."""
        return self.queued > self.max_queue or (
            self.nbytes > self.max_queue_bytes and self.queued > 1
        )

    def heaviest(self, share: Share) -> Share:
        """Who has most in the queue; `share` if it has no less than the average."""
        lines = self.waiting
        if self.queued > self.max_queue:
            if len(lines[share].entries) * len(lines) >= self.queued:
                return share
            return max(lines, key=lambda each: len(lines[each].entries))
        if lines[share].nbytes * len(lines) >= self.nbytes:
            return share
        return max(lines, key=lambda each: lines[each].nbytes)

    def next(self) -> Share | None:
        """The peer whose turn it is; None: no place, or nobody who may take it."""
        pool = self.pool
        if self.running >= self.limit or (pool is not None and pool.running >= pool.limit):
            return None
        return min(
            (share for share in self.waiting if share.running < share.limit),
            key=lambda share: share.turn,
            default=None,
        )

    def remove(self, share: Share, entry: E) -> bool:
        """Take a call out of the queue; False if it does not wait."""
        line = self.waiting.get(share)
        nbytes = line.entries.pop(entry, None) if line is not None else None
        if line is None or nbytes is None:
            return False
        line.nbytes -= nbytes
        self.nbytes -= nbytes
        self.queued -= 1
        if not line.entries:
            del self.waiting[share]
        return True


class Admission(Limit, Generic[E]):
    """All gates of one `Rpc`. Nobody waits who could run."""

    __slots__ = ("_turn", "_waiting")

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._turn = 0
        self._waiting: dict[Gate[E], None] = {}  # gates that somebody waits at

    @property
    def queued(self) -> int:
        """Calls that wait."""
        return sum(gate.queued for gate in self._waiting)

    def enter(self, gate: Gate[E], share: Share) -> bool:
        """Take a place if there is one, and nobody of the same peer waits for it."""
        pool = gate.pool
        if (
            self.running >= self.limit
            or gate.running >= gate.limit
            or share.running >= share.limit
            or (gate.queued and share in gate.waiting)
            or (pool is not None and pool.running >= pool.limit)
        ):
            return False
        # As in `_take`: this is on the way of every call.
        self.running += 1
        gate.running += 1
        share.running += 1
        if pool is not None:
            pool.running += 1
        self._turn = share.turn = self._turn + 1
        return True

    def wait(self, gate: Gate[E], share: Share, entry: E, nbytes: int, now: float) -> list[E]:
        """Queue a call that could not enter; the result are calls that are refused for it.

        The refused may include `entry` itself. `now` is in seconds on any clock.
        """
        line = gate.waiting.get(share)
        if line is None:
            line = gate.waiting[share] = Line()
        if not gate.queued:
            gate.moved = now
            self._waiting[gate] = None
        line.entries[entry] = nbytes
        line.nbytes += nbytes
        gate.nbytes += nbytes
        gate.queued += 1
        refused = []
        while gate.is_over:
            heaviest = gate.heaviest(share if share in gate.waiting else next(iter(gate.waiting)))
            newest = next(reversed(gate.waiting[heaviest].entries))
            self.withdraw(gate, heaviest, newest)
            refused.append(newest)
        return refused

    def withdraw(self, gate: Gate[E], share: Share, entry: E) -> bool:
        """A call waits no more: its outcome is known. False if it did not wait."""
        removed = gate.remove(share, entry)
        if removed and not gate.queued:
            del self._waiting[gate]
        return removed

    def leave(self, gate: Gate[E], share: Share, seconds: float, now: float) -> Sequence[E]:
        """A call that ran for `seconds` is over; the result are those that start instead."""
        self.running -= 1
        gate.running -= 1
        share.running -= 1
        if (pool := gate.pool) is not None:
            pool.running -= 1
        mean = gate.seconds
        gate.seconds = mean + (seconds - mean) * WEIGHT if mean else seconds
        if not self._waiting:
            return ()
        # Where only the method's limit was reached, only its queue can go on.
        others = (
            self.running + 1 >= self.limit
            or share.running + 1 >= share.limit
            or (pool is not None and pool.running + 1 >= pool.limit)
        )
        return self._start(tuple(self._waiting) if others else (gate,), now)

    def is_hopeless(self, gate: Gate[E], share: Share) -> bool:
        """Whether one more call would be refused, as far as can be told without its bytes."""
        if gate.running < gate.limit or gate.queued < gate.max_queue:
            return False
        line = gate.waiting.get(share)
        if line is None:
            return not gate.max_queue
        return len(line.entries) * len(gate.waiting) >= gate.queued

    def retry_after(self, gate: Gate[E], now: float) -> float:
        """Seconds after which the queue of a method has gone on: what a refused caller waits."""
        between = (gate.seconds or GUESS) / max(1, gate.running)
        if gate.queued:
            between = max(between, now - gate.moved)  # slower than ever
        return min(max(gate.queued * between, between, SHORTEST), LONGEST)

    def _take(self, gate: Gate[E], share: Share) -> None:
        self.running += 1
        gate.running += 1
        share.running += 1
        if gate.pool is not None:
            gate.pool.running += 1
        self._turn = share.turn = self._turn + 1

    def _start(self, gates: Iterable[Gate[E]], now: float) -> list[E]:
        started: list[E] = []
        while self.running < self.limit:
            turns = [(share.turn, gate, share) for gate in gates if (share := gate.next())]
            if not turns:
                break
            _, gate, share = min(turns, key=lambda turn: turn[0])
            entry = next(iter(gate.waiting[share].entries))
            self.withdraw(gate, share, entry)
            self._take(gate, share)
            gate.moved = now
            started.append(entry)
        return started
