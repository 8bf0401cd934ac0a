"""What is counted of one method, at a cost that a call does not notice."""

from __future__ import annotations

from collections import Counter

FIRST_BOUND = 1e-4  # seconds: calls below it are in the first bucket; each next one doubles
BUCKETS = 22  # the last but one ends at 105 s, the last has no end
MAX_KINDS = 64  # of errors that are counted apart
OTHER = "other"

_PER_SECOND = round(1 / FIRST_BOUND)
_LAST = BUCKETS - 1


def bounds() -> tuple[float, ...]:
    """Upper bounds of all buckets but the last, in seconds."""
    return tuple(FIRST_BOUND * 2**i for i in range(_LAST))


class Meter:
    """Counters of one method, served or called. No locks: all is on the loop's thread.

    Each call is counted in `calls` once, and once by `took`; between the two it is in flight.
    """

    __slots__ = (
        "blocked",
        "buckets",
        "bytes_in",
        "bytes_out",
        "calls",
        "errors",
        "seconds",
    )

    def __init__(self) -> None:
        self.calls = 0  # that were begun
        self.errors: Counter[str] = Counter()  # outcomes that were no value, by kind
        self.bytes_in = 0  # those of data streams as they come and go
        self.bytes_out = 0
        self.seconds = 0.0  # that all calls took together
        self.blocked = 0.0  # the longest that a handler kept the event loop, in seconds
        self.buckets = [0] * BUCKETS

    @property
    def in_flight(self) -> int:
        """Calls without an outcome."""
        return self.calls - sum(self.buckets)

    def took(self, seconds: float) -> None:
        """A call had its outcome after `seconds`."""
        self.seconds += seconds
        index = int(seconds * _PER_SECOND).bit_length()
        try:
            self.buckets[index] += 1
        except IndexError:
            self.buckets[_LAST] += 1

    def failed(self, kind: str) -> None:
        """The outcome of a call was an error of this kind."""
        if kind not in self.errors and len(self.errors) >= MAX_KINDS:
            kind = OTHER
        self.errors[kind] += 1


class CalledMeter(Meter):
    """That of a method called elsewhere."""

    __slots__ = ("around",)

    def __init__(self, around: int) -> None:
        """`around`: bytes of a `Call` beside its id, its arguments and its trace id."""
        super().__init__()
        self.around = around
