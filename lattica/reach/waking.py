"""Was this machine asleep, or this process stopped? Others have lived on meanwhile. No I/O."""

from __future__ import annotations

from collections.abc import Callable

LEAST = 3.0  # seconds more than there should have been between two looks


class Waking:
    """To be looked at regularly.

    The event loop's clock does not count while the machine sleeps, so nothing that waits for
    it notices: routers have forgotten mappings, others have given up links, leases are over.
    """

    def __init__(self, elapsed: Callable[[], float], every: float) -> None:
        """`elapsed()` counts seconds also in sleep; looks are `every` seconds apart."""
        self._elapsed = elapsed
        self._every = every
        self._last = elapsed()

    def slept(self) -> float:
        """Seconds missed since the last look; 0.0 if it was not long ago."""
        now = self._elapsed()
        missed = now - self._last - self._every
        self._last = now
        return missed if missed >= LEAST else 0.0
