"""What an `Rpc` tells about itself, for people and for metrics."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec

from lattica.identity.keys import PeerId
from lattica.link.statistics import LinkStatistics
from lattica.rpc.admission import Gate
from lattica.rpc.meter import Meter, bounds


class MethodStats(msgspec.Struct, frozen=True, kw_only=True):
    """One method, served or called, since the `Rpc` was made. Sizes in bytes, times in seconds.

    `buckets` are a histogram of what calls took from their arrival (of a called method: from
    their first step) to their outcome or their last item, time in the queue included:
    `buckets[i]` calls took less than `RpcStats.bounds[i]`, and not less than the bound before
    it; the last bucket has no upper bound.
    """

    calls: int  # that were begun; of a served method also those that it then refused
    in_flight: int  # those of them without an outcome; for a served method, until it is over
    queued: int  # those of `in_flight` that wait for a place here
    errors: dict[str, int]  # outcomes that were no value, by the error's class; each call once
    bytes_in: int  # arguments of a served method, results of a called one; items that came
    bytes_out: int  # the reverse. Items count with their framing, calls of a peer to itself not
    seconds: float  # that all calls with an outcome took together
    buckets: tuple[int, ...]
    blocked: float  # the longest that a handler kept the event loop

    def quantile(self, share: float) -> float:
        """The bound below which `share` of all calls were over: 0.99 for the slowest hundredth.

        0.0 where there were none, inf beyond the last bound.
        """
        wanted = share * sum(self.buckets)
        if not wanted:
            return 0.0
        so_far = itertools.accumulate(self.buckets)
        limits = (*bounds(), float("inf"))
        return next(limit for limit, n in zip(limits, so_far, strict=True) if n >= wanted)


class SessionStats(msgspec.Struct, frozen=True, kw_only=True):
    """One link, and the calls on it."""

    peer: PeerId
    name: str  # what the peer calls itself
    calls_out: int  # in flight
    calls_in: int  # in flight: arriving, waiting or running
    arguments_in: int  # bytes of arguments of `calls_in`
    link: LinkStatistics


class RpcStats(msgspec.Struct, frozen=True, kw_only=True):
    """All of it. The names of methods are those of the service and the method: `peer.ping`."""

    served: dict[str, MethodStats]
    called: dict[str, MethodStats]
    links: tuple[SessionStats, ...]
    counters: dict[str, int]  # refusals and drops, as `refused:permission` or `bad_frame`
    running: int  # calls that run here now
    queued: int  # and those that wait for a place
    bounds: tuple[float, ...]  # of the histograms, in seconds


def served_stats(meter: Meter, gate: Gate[Any]) -> MethodStats:
    """Of a method served here."""
    return _stats(meter, queued=gate.queued)


def called_stats(meter: Meter) -> MethodStats:
    """Of a method called elsewhere."""
    return _stats(meter, queued=0)


def _stats(meter: Meter, *, queued: int) -> MethodStats:
    return MethodStats(
        calls=meter.calls,
        in_flight=meter.in_flight,
        queued=queued,
        errors=dict(meter.errors),
        bytes_in=meter.bytes_in,
        bytes_out=meter.bytes_out,
        seconds=meter.seconds,
        buckets=tuple(meter.buckets),
        blocked=meter.blocked,
    )
