"""Whether a gateway has lost its state: it says in each reply since when it has kept it. No I/O."""

from __future__ import annotations

# NAT-PMP's rule (RFC 6886 §3.6) differs only in its margins: an eighth slower and two seconds.
_DRIFT = 16  # a sixteenth: how much two clocks may differ, RFC 6887 §8.5
_MARGIN = 2.0  # seconds


class EpochWatch:
    """The replies of one gateway, RFC 6887 §8.5."""

    def __init__(self) -> None:
        self._server: float | None = None
        self._client = 0.0

    def take(self, epoch: int, now: float) -> bool:
        """A reply came at `now` with `epoch`, both in seconds. False: what it granted is gone."""
        before, self._server = self._server, float(epoch)
        client, self._client = self._client, now
        if before is None:
            return True
        if epoch + 1 < before:
            return False
        here, there = now - client, epoch - before
        return here + _MARGIN >= there - there / _DRIFT and there + _MARGIN >= here - here / _DRIFT
