"""How large a datagram a path carries, found by probes (RFC 8899, DPLPMTUD). No I/O.

One search serves one direction of one path. It says which sizes to probe and is told
which probes arrived; a probe that stays unanswered is a lost probe and nothing more.

RFC 8899's phases are here: the base size is what the handshake has shown to pass; from there the
search tries the sizes that networks are built for, all in one round, and then narrows what
is left; a finished search rests until it is time to look for more, and somebody could use it.
While datagrams larger than the base are in use, one probe of that size each `confirm_every` shows
that they still pass. If only small ones do (a black hole, §4.3) the size falls to the base at once.
Whether anything passes at all (the RFC's error phase) is for the link to watch.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import msgspec

BASE = 1200  # bytes; RFC 8899 §5.1.2, and what every QUIC path must carry (RFC 9000 §14)
# UDP payloads: IPv6's least, WireGuard, Ethernet over IPv6 with PPPoE to spare and over
# IPv4, jumbo frames of two kinds, and what only loopback and a few fabrics carry.
SIZES = (1232, 1392, 1452, 1472, 4_000, 8_952, 16_384, 61_440)
MAX_LOST = 3  # probes of up to a size that are lost before it counts as too large (MAX_PROBES)
PRECISION = 32  # bytes; a search that has come so close to the limit is done
NARROWING = 3  # sizes in a round between two that are known
BLACK_HOLE = 2  # times that a base probe arrives and the one sent with it does not
NEVER = float("inf")


class Phase(Enum):
    """How far a search is."""

    SEARCHING = "searching"
    COMPLETE = "complete"


class MtuTimers(msgspec.Struct, frozen=True, kw_only=True):
    """In seconds."""

    probe_timeout: float = 0.1  # at least; round trips make it longer
    confirm_every: float = 1.0  # while datagrams larger than the base are in use
    raise_every: float = 600.0  # RFC 8899 §5.1.1, PMTU_RAISE_TIMER


class MtuSearch:
    """The largest size that passes. Times in seconds of one monotonic clock, sizes in bytes."""

    def __init__(
        self, now: float, *, start: int = BASE, limit: int, timers: MtuTimers | None = None
    ) -> None:
        """`start` is in use already, and is checked first; `limit` is never exceeded."""
        self._timers = timers or MtuTimers()
        self._limit = max(limit, BASE)
        self.size = min(max(start, BASE), self._limit)
        self.phase = Phase.SEARCHING
        self.black_holes = 0
        self.is_used = False  # full datagrams were sent since the last proof that they pass
        self._too_large = self._limit + 1  # the least size known not to pass
        self._lost: dict[int, int] = {}  # probes of each size above `size`
        self._flying: dict[int, float] = {}  # sizes of unanswered probes, and until when
        self._raise_at = NEVER
        self._is_wanted = False  # full datagrams were sent since the last search
        self._is_suspect = self.size > BASE
        self._confirmed = now
        self._evidence: int | None = None  # of a black hole; None: not looking for one
        self._base_arrived = False

    @property
    def due(self) -> float:
        """When `probes` may have something to say."""
        at = min(self._flying.values(), default=NEVER)
        if self.phase is Phase.SEARCHING and not self._flying:
            return 0.0
        if self.size > BASE and self._evidence is None:
            if self._is_suspect:
                return 0.0
            if self.is_used:
                at = min(at, self._confirmed + self._timers.confirm_every)
        return min(at, self._raise_at) if self._is_wanted else at

    def probes(self, now: float, rtt: float) -> Sequence[int]:
        """The sizes to probe now."""
        if now < self.due:
            return ()
        deadline = now + max(self._timers.probe_timeout, 3 * rtt)
        self._expire(now)
        sizes = self._confirming(now)
        if self._is_wanted and now >= self._raise_at:
            self._restart()
        if self.phase is Phase.SEARCHING and not any(size > self.size for size in self._flying):
            sizes += self._next_round(now)
        for size in sizes:
            self._flying[size] = deadline
        return sizes

    def arrived(self, size: int, now: float) -> None:
        """A probe of `size` was answered, however late."""
        self._flying.pop(size, None)
        if size >= self.size:
            self.size = min(size, self._limit)
            self._confirmed = now
            self.is_used = self._is_suspect = False
            self._evidence = None
            # What is smaller passes as well: it need not be waited for.
            self._flying = {each: at for each, at in self._flying.items() if each > size}
            self._lost = {each: lost for each, lost in self._lost.items() if each > size}
            if size >= self._too_large:
                self._too_large = self._limit + 1
        else:
            self._base_arrived = True

    def too_big(self, size: int, now: float) -> None:
        """This machine refuses to send datagrams of `size`."""
        self._flying.pop(size, None)
        if size <= BASE:
            return  # then no QUIC passes here, and the link will notice
        if size <= self.size:
            self._fall(now)
        self._too_large = min(self._too_large, size)

    def used(self) -> None:
        """Datagrams as large as any were sent."""
        self.is_used = self._is_wanted = True

    def suspect(self) -> None:
        """Larger datagrams seem to be lost: find out now."""
        self._is_suspect = True

    # ------------------------------------------------------------------ inside

    def _expire(self, now: float) -> None:
        late = [size for size, at in self._flying.items() if at <= now]
        for size in late:
            del self._flying[size]
            if size > self.size:
                self._lost[size] = self._lost.get(size, 0) + 1
        # A size that does not pass takes all larger ones with it, so their losses add up.
        total = 0
        for size in sorted(self._lost):
            total += self._lost[size]
            if total >= MAX_LOST:
                self._too_large = min(self._too_large, size)
                break

    def _confirming(self, now: float) -> list[int]:
        """See whether the size in use passes: alone, and if not, beside one of the base size."""
        if self.size == BASE or self.size in self._flying:
            return []
        if self._evidence is None:
            pause = self._timers.confirm_every
            if not self._is_suspect and not (self.is_used and now >= self._confirmed + pause):
                return []
            self._evidence = 0
            self._base_arrived = False
            return [self.size]
        if self._base_arrived:
            self._evidence += 1
        if self._evidence >= BLACK_HOLE:
            self._fall(now)
            return []
        self._base_arrived = False
        return [self.size, BASE]

    def _fall(self, now: float) -> None:
        self.black_holes += 1
        self.size = BASE
        self._confirmed = now
        self.is_used = self._is_suspect = False
        self._evidence = None
        self._restart()

    def _restart(self) -> None:
        """Search anew above the size in use."""
        self.phase = Phase.SEARCHING
        self._raise_at = NEVER
        self._is_wanted = False
        self._too_large = self._limit + 1
        self._lost.clear()
        self._flying.clear()

    def _next_round(self, now: float) -> list[int]:
        low, high = self.size, self._too_large
        sizes = [size for size in (*SIZES, self._limit) if low < size < high]
        if sizes:
            return sorted({size for size in sizes if size <= self._limit})
        if high - low > PRECISION and low < self._limit:
            step = (high - low) / (NARROWING + 1)
            return [low + int(step * each) for each in range(1, NARROWING + 1)]
        self.phase = Phase.COMPLETE
        if low < self._limit:
            self._raise_at = now + self._timers.raise_every
        return []
