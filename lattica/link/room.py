"""Who gets one of the places for links, and who makes room. No I/O.

A peer's key costs nothing, so whoever has one can have many. An address costs more: each source
has a share of the places. Where it is used up, or all places are, the oldest link that nobody
needs ends: of that source, or of the one that has most. So a crowd displaces itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from lattica.config import LinkConfig
from lattica.errors import LinkError
from lattica.identity.keys import PeerId
from lattica.link.quic_link import QuicLink
from lattica.link.refusals import LinkBusyError
from lattica.link.table import LinkTable


class Room:
    """The places of one endpoint."""

    def __init__(
        self,
        config: LinkConfig,
        links: LinkTable,
        counters: Counter[str],
        is_kept: Callable[[PeerId], bool],
    ) -> None:
        """`is_kept`: whether this end wants to be linked with a peer at all times."""
        self._share = config.max_links_per_source
        self._places = config.max_links
        self._links = links
        self._counters = counters
        self._is_kept = is_kept

    def make(self, link: QuicLink) -> LinkError | None:
        """Have a place for a proven dialer, if need be another's; or why there is none."""
        if len(self._links) <= min(self._share, self._places):
            return None
        taken = [each for each in self._links if each is not link and each.proven is not None]
        crowd = [each for each in taken if each.source and each.source == link.source]
        if len(crowd) < self._share:
            if len(taken) < self._places:
                return None
            crowd = _largest(taken)
        for each in crowd:  # the oldest first
            if each.is_open and each.leaving.is_idle and not self._is_kept(each.remote.peer):
                self._counters["links:displaced"] += 1
                each.close("it was idle, and its place is needed")
                return None
        self._counters["links:refused"] += 1
        return LinkBusyError("there is no place for another link now; try again later")


def _largest(links: Sequence[QuicLink]) -> list[QuicLink]:
    """Those of the source that has most."""
    counts = Counter(each.source for each in links if each.source)
    most = max(counts.values(), default=0)
    sources = {source for source, count in counts.items() if count == most}
    return [each for each in links if each.source in sources]
