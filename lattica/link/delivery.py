"""How fast a flow delivers: samples of its rate, one for each acknowledgement. Sans-IO.

Method of draft-cheng-iccrg-delivery-rate-estimation: each packet carries what the flow had
delivered when it was sent; when it is acknowledged, the difference over the time says how
fast the flow was in between. Sizes are bytes, times seconds.
"""

from __future__ import annotations

from typing import NamedTuple


class Sent(NamedTuple):
    """A packet in flight, and how the flow stood when it was sent."""

    at: float
    size: int
    delivered: int
    delivered_at: float
    first_sent_at: float  # start of the flight that the sample of this packet measures
    in_flight: int  # with this packet
    lost: int
    is_app_limited: bool


class Sample(NamedTuple):
    """What one acknowledgement tells. Measured over the flight of the newest packet in it."""

    acked: int  # by this acknowledgement
    delivered: int  # during the flight
    rate: float  # bytes/s; 0.0: cannot be told
    prior_delivered: int  # by the flow, when that packet was sent
    in_flight: int  # when that packet was sent
    lost: int  # during the flight
    is_app_limited: bool  # the rate may be that of the application, not of the path


class Flow:
    """Counts what is in flight, delivered and lost."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.delivered = 0
        self.lost = 0
        self._delivered_at = 0.0
        self._first_sent_at = 0.0
        self._limited_until = -1  # app-limited until so much is delivered
        self._newest: Sent | None = None
        self._acked = 0

    @property
    def is_app_limited(self) -> bool:
        """Whether what is in flight includes what was sent for want of more."""
        return self.delivered <= self._limited_until

    def sent(self, size: int, now: float) -> Sent:
        """A packet leaves."""
        if self.in_flight == 0:
            self._first_sent_at = self._delivered_at = now
        self.in_flight += size
        return Sent(
            now,
            size,
            self.delivered,
            self._delivered_at,
            self._first_sent_at,
            self.in_flight,
            self.lost,
            self.delivered <= self._limited_until,
        )

    def acked(self, packet: Sent, now: float) -> None:
        """A packet has arrived."""
        size = packet.size
        self.in_flight -= size
        self.delivered += size
        self._acked += size
        self._delivered_at = now
        newest = self._newest
        if newest is None or packet.at >= newest.at:
            self._newest = packet
            self._first_sent_at = packet.at

    def gone(self, packet: Sent, *, is_lost: bool) -> None:
        """A packet is not waited for any longer, because it is lost or its data is sent anew."""
        self.in_flight -= packet.size
        if is_lost:
            self.lost += packet.size

    def ran_dry(self) -> None:
        """There was room for more, and nothing to send."""
        self._limited_until = self.delivered + max(self.in_flight, 1)

    def take_sample(self, now: float) -> Sample | None:
        """What was acknowledged since the last call tells; None if nothing was."""
        newest = self._newest
        if newest is None:
            return None
        acked, self._acked, self._newest = self._acked, 0, None
        # The slower of both ends: acknowledgements come in bunches, and so do packets.
        interval = max(newest.at - newest.first_sent_at, now - newest.delivered_at)
        delivered = self.delivered - newest.delivered
        return Sample(
            acked,
            delivered,
            delivered / interval if interval > 0 else 0.0,
            newest.delivered,
            newest.in_flight,
            self.lost - newest.lost,
            newest.is_app_limited,
        )
