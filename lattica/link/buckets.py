"""Token buckets, one for each source, in a table of bounded size. No I/O."""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from lattica.errors import AddressError
from lattica.path import addresses

MAX_SOURCES = 4096


class _Bucket(msgspec.Struct):
    level: float
    at: float


class Buckets:
    """Each source may do `burst` things at once and `rate` a second. Times in seconds."""

    def __init__(self, rate: float, burst: float, *, max_sources: int = MAX_SOURCES) -> None:
        self._rate = rate
        self._burst = burst
        self._max_sources = max_sources
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()  # the least recent one first

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, source: str, now: float) -> bool:
        """Whether `source` may act now; if so, it has."""
        bucket = self._buckets.pop(source, None)
        if bucket is None:
            bucket = _Bucket(self._burst, now)
            if len(self._buckets) >= self._max_sources:
                self._buckets.popitem(last=False)
        self._buckets[source] = bucket
        bucket.level = min(self._burst, bucket.level + (now - bucket.at) * self._rate)
        bucket.at = now
        if bucket.level < 1.0:
            return False
        bucket.level -= 1.0
        return True


def source_of(address: str) -> str:
    """Who is behind a `host:port`: an IPv4 address, an IPv6 network, or the text itself."""
    try:
        host, _ = addresses.split(addresses.strip_scheme(address))
        return addresses.party(host)
    except (AddressError, ValueError):
        return address
