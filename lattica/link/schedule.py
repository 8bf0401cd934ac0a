"""Which links are to be looked at when, without a look at every link each time. No I/O.

A wheel of buckets, each a step of time: what is due within one step is found with one
look-up, and a change of mind costs an append.
"""

from __future__ import annotations

from lattica.link.quic_link import QuicLink


class Schedule:
    """Each link has one time at which it is due next, rounded up to the step."""

    def __init__(self, step: float) -> None:
        """`step` in seconds."""
        self._step = step
        self._due: dict[QuicLink, int] = {}
        self._buckets: dict[int, list[QuicLink]] = {}

    def __len__(self) -> int:
        return len(self._due)

    def set(self, link: QuicLink, at: float) -> None:
        """`link` is due at `at`, no longer at another time."""
        number = -int(-at // self._step)
        if self._due.get(link) != number:
            self._due[link] = number
            bucket = self._buckets.get(number)
            if bucket is None:
                self._buckets[number] = [link]
            else:
                bucket.append(link)

    def hasten(self, link: QuicLink, at: float) -> None:
        """`link` is due at `at`, if that is sooner than it was."""
        number = self._due.get(link)
        if number is None or at < number * self._step:
            self.set(link, at)

    def drop(self, link: QuicLink) -> None:
        """`link` is due no more."""
        self._due.pop(link, None)  # its bucket forgets it when its time comes

    def pop(self, now: float) -> list[QuicLink]:
        """The links that are due; set them again."""
        current = int(now / self._step)
        found = []
        for number in sorted(each for each in self._buckets if each <= current):
            for link in self._buckets.pop(number):
                if self._due.get(link) == number:
                    del self._due[link]
                    found.append(link)
        return found
