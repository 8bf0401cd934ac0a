"""Where packets go: to the connection they belong to, or to the door as a stranger's first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from lattica.link import beat, header
from lattica.link.closing import Closing
from lattica.link.quic_link import QuicLink
from lattica.path.interface import Path, VirtualAddress
from lattica.path.probes import tag_of


class Reception:
    """Knows the connections of one endpoint by their ids. Times in seconds of its loop."""

    def __init__(
        self,
        path: Path,
        counters: Counter[str],
        accept: Callable[[header.LongHeader, VirtualAddress, float], QuicLink | None],
    ) -> None:
        """`accept(first, from, now)` decides on a stranger's first packet."""
        self._path = path
        self._counters = counters
        self._accept = accept
        self._by_id: dict[bytes, QuicLink] = {}
        self._by_tag: dict[bytes, QuicLink] = {}  # of probes
        self._closing = Closing()

    def __len__(self) -> int:
        """How many ids are known."""
        return len(self._by_id)

    def add(self, link: QuicLink, connection_id: bytes) -> None:
        """Packets for this id are the link's."""
        self._by_id[connection_id] = link

    def add_tag(self, link: QuicLink, tag: bytes) -> None:
        """Probes with this tag are the link's."""
        self._by_tag[tag] = link

    def remove(self, link: QuicLink, connection_id: bytes) -> None:
        """No more packets come for this id."""
        if self._by_id.get(connection_id) is link:
            del self._by_id[connection_id]

    def close(self, link: QuicLink, last_words: list[bytes], now: float) -> None:
        """The link has ended; `last_words` are repeated to an end that missed them."""
        self._closing.add(link.connection_ids, last_words, link.current_address, now)
        for connection_id in link.connection_ids:
            self._by_id.pop(connection_id, None)
        if link.probe_tag is not None:
            self._by_tag.pop(link.probe_tag, None)

    def expire(self, now: float) -> None:
        """Forget the last words whose time is over."""
        self._closing.expire(now)

    def packets(self, packets: Sequence[tuple[bytes, VirtualAddress]], now: float) -> None:
        """Take in what arrived in one wake-up."""
        find = self._by_id.get
        batches: dict[QuicLink, list[bytes]] = {}
        for datagram, address in packets:
            if len(datagram) == beat.SIZE:
                self._beat(datagram, now)
                continue
            if datagram[0] & header.LONG_HEADER:
                link = self._long(datagram, address, now)
            else:
                connection_id = header.short_destination(datagram)
                link = find(connection_id)
                if link is None:
                    self._stray(connection_id)
            if link is None:
                continue
            batch = batches.get(link)
            if batch is None:
                batches[link] = [datagram]
            else:
                batch.append(datagram)
        for link, batch in batches.items():
            link.receive(batch, now)
            link.handle_events()

    def probes(self, probes: Sequence[tuple[bytes, VirtualAddress]], now: float) -> None:
        """Take in probes of the path."""
        for datagram, address in probes:
            link = self._by_tag.get(tag_of(datagram))
            if link is None:
                self._counters["probe:unkeyed"] += 1
            else:
                link.vitals.receive_probe(datagram, address, now)

    # ------------------------------------------------------------------ inside

    def _beat(self, datagram: bytes, now: float) -> None:
        connection_id = header.short_destination(datagram)
        link = self._by_id.get(connection_id)
        if link is None:
            self._stray(connection_id)
        else:
            link.vitals.receive_beat(datagram, now)

    def _long(self, datagram: bytes, address: VirtualAddress, now: float) -> QuicLink | None:
        """The connection of a long header packet, made new for a stranger's first one."""
        parsed = header.parse_long(datagram)
        if parsed is None:
            self._counters["malformed"] += 1
            return None
        link = self._by_id.get(parsed.destination)
        if link is not None:
            return link
        if parsed.version != header.VERSION_1:
            # Never longer than what it answers, and never an answer to an answer.
            if parsed.version != 0 and len(datagram) >= header.MIN_INITIAL:
                self._counters["version_negotiation"] += 1
                answer = header.version_negotiation(parsed, [header.VERSION_1])
                self._path.send([answer], address)
            else:
                self._counters["unknown_version"] += 1
            return None
        is_first = parsed.is_initial and len(datagram) >= header.MIN_INITIAL
        # A late copy, to a connection that was, must not begin another.
        if not is_first or self._closing.has(parsed.destination):
            self._stray(parsed.destination)
            return None
        return self._accept(parsed, address, now)

    def _stray(self, connection_id: bytes) -> None:
        """A packet of a connection that is no more, or never was."""
        answer = self._closing.answer(connection_id)
        if answer is None:
            self._counters["unknown_connection"] += 1
        else:
            self._path.send(answer.datagrams, answer.address)
