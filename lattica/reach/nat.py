"""What a peer finds out about its own NAT from what other peers see of it. No I/O.

Every peer with a link tells where it sees our main socket (probe replies carry it), so there is no
need for fixed public servers. A single voice proves little: two at different places must
agree before a mapping counts as independent, and one liar among three is outvoted. What
others say costs them little and us at most a few packets to a wrong address.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from lattica.config import NatConfig
from lattica.path import addresses as text
from lattica.path.scopes import Scope, scope_of
from lattica.reach.allocation import Allocation, Sighting, allocation
from lattica.reach.contacts import Contacts, Filters
from lattica.reach.report import (
    MAX_LIFETIME,
    Filtering,
    Mapping,
    NatReport,
    Ports,
    decode_report,
    public_endpoint,
)

__all__ = ["Filtering", "Mapping", "NatObserver", "NatReport", "Ports", "decode_report"]

NEVER = float("-inf")


class _Observation(msgspec.Struct):
    """Where one remote sees us."""

    party: str  # who it is, so that nobody has many voices
    seen: tuple[str, int]
    first: float  # when it first saw us there
    last: float
    order: int  # of the first times

    @property
    def family(self) -> int:
        return 6 if ":" in self.seen[0] else 4


class NatObserver:
    """One main socket's observations, and what follows from them.

    Attributes:
        version: rises when the mapping or the public address changes.
        moves: rises when this may be another network, and all that was found is forgotten.
        counters: what was not believed, and why.
    """

    def __init__(self, config: NatConfig | None = None) -> None:
        self._config = config or NatConfig()
        self.version = 0
        self.moves = 0
        self.counters: Counter[str] = Counter()
        self._seen: dict[str, _Observation] = {}
        self._contacts = Contacts(self._config)
        self._own: frozenset[str] | None = None
        self._local = 0
        self._order = 0
        self._now = NEVER
        self._filters = Filters(self._config.finding_ttl)
        self._hairpin: bool | None = None
        self._udp: bool | None = None
        self._survived = 0.0
        self._died = float("inf")
        self._shown: object = (Mapping.UNKNOWN, (), 0)

    # ------------------------------------------------------------------ what happened

    def interfaces(self, addresses: Iterable[str]) -> None:
        """This machine's addresses, whenever they are looked at.

        If those of IPv4 have changed, this may be another network: what was found is forgotten.
        """
        own = frozenset(each.partition("%")[0] for each in addresses)
        moved = self._own is not None and _of_ipv4(own) != _of_ipv4(self._own)
        self._own = own
        if moved:
            self.moves += 1
            self._seen.clear()
            self._contacts = Contacts(self._config)
            self._filters = Filters(self._config.finding_ttl)
            self._hairpin = self._udp = None
            self._survived, self._died = 0.0, float("inf")
        self._compare()

    def observed(self, remote: str, seen: str, local: str, now: float) -> None:
        """The peer at `remote` saw our main socket, bound at `local`, at `seen`."""
        self._now = max(self._now, now)
        source, here = public_endpoint(remote), public_endpoint(seen)
        if source is None or here is None:
            self.counters["not_public"] += 1
            return
        self._udp = True
        port = text.split(local)[1]
        if port != self._local:
            self._local = port
            self._seen.clear()
        known = self._seen.get(remote)
        if known is not None and known.seen == here:
            known.last = now
            return
        party = text.party(source[0])
        if known is not None:
            self._changed_its_mind(known)
        self._make_room(remote, party, now)
        self._order += 1
        self._seen[remote] = _Observation(party, here, now, now, self._order)
        self._compare()

    def confirmed(self, remote: str, seen: str, now: float) -> None:
        """The mapping that `remote` saw still carries packets: its word is as good as new.

        This makes no news: a word that counts no more is not taken up again.
        """
        self._now = max(self._now, now)
        known = self._seen.get(remote)
        if known is not None and text.join(*known.seen) == seen:
            known.last = now

    def contacted(self, remote: str, now: float) -> None:
        """We sent to `remote`; its port is 0 if we sent to many ports of that host."""
        self._now = max(self._now, now)
        self._contacts.add(remote, now)

    def unsolicited(self, remote: str, now: float) -> None:
        """An authentic packet of `remote` came to the main socket, perhaps from a stranger.

        Whether it was one is judged here. Others at our own public address do not count.
        """
        self._now = max(self._now, now)
        if self._is_outside(remote):
            self._filters.let_in(self._contacts.knows(remote, now), now)

    def kept_out(self, remote: str, now: float) -> None:
        """A peer tells that it sent from `remote` to our public address; nothing came."""
        self._now = max(self._now, now)
        if self._is_outside(remote):
            self._filters.kept_out(self._contacts.knows(remote, now), now)

    def hairpinned(self, works: bool) -> None:
        """Whether a packet to our own public address came back."""
        self._hairpin = works

    def idled(self, seconds: float, survived: bool) -> None:
        """A mapping was silent for so long, and did or did not outlive that."""
        if survived:
            self._survived = max(self._survived, seconds)
            self._died = self._died if self._died > seconds else float("inf")
        else:
            self._died = min(self._died, seconds)
            self._survived = self._survived if self._survived < seconds else 0.0

    @property
    def safe_silence(self) -> float:
        """Seconds for which a mapping may be silent; infinite if none was seen to die."""
        if self._died == float("inf"):
            return self._died
        return self._survived / 2 if self._survived else self._died / 4

    def udp_blocked(self) -> None:
        """Everything was tried by UDP, nothing answered, and TCP works."""
        self._udp = False

    # ------------------------------------------------------------------ what follows

    def report(self, now: float) -> NatReport:
        """All that is known."""
        self._now = max(self._now, now)
        self._expire(now)
        self._compare()
        live = self._family()
        mapping, group = self._judge(live)
        public = list(dict.fromkeys(each.seen for each in _newest_first(group)))
        ports = self._allocation(mapping, group)
        return NatReport(
            mapping=mapping,
            ports=ports.ports,
            filtering=self._filters.judge(now),
            hairpin=self._hairpin,
            lifetime=int(min(self._survived, MAX_LIFETIME)),
            udp=self._udp,
            public=tuple(text.join(*each) for each in public[: self._config.max_public]),
            latest=public[0][1] if public else 0,
            low=ports.low,
            high=ports.high,
        )

    # ------------------------------------------------------------------ inside

    def _judge(self, live: Sequence[_Observation]) -> tuple[Mapping, Sequence[_Observation]]:
        """The mapping, and the observations that tell of it."""
        groups: dict[tuple[str, int], list[_Observation]] = {}
        for each in live:
            groups.setdefault(each.seen, []).append(each)
        if not groups:
            return Mapping.UNKNOWN, ()
        own = [each for each in live if each.seen[0] in (self._own or ())]
        if 2 * _voices(own) > _voices(live) or len(own) == len(live):
            return Mapping.NONE, own
        best = max(groups.values(), key=lambda group: (_voices(group), group[-1].order))
        agreeing = _voices(best)
        if agreeing >= 2 and 3 * agreeing >= 2 * _voices(live):
            return Mapping.INDEPENDENT, best
        return (Mapping.UNKNOWN if len(groups) == 1 else Mapping.DEPENDENT), live

    def _allocation(self, mapping: Mapping, group: Sequence[_Observation]) -> Allocation:
        if mapping is Mapping.UNKNOWN or not group:
            return Allocation(Ports.UNKNOWN)
        if mapping is not Mapping.DEPENDENT:
            kept = all(each.seen[1] == self._local for each in group)
            return Allocation(Ports.PRESERVED if kept else Ports.RANDOM)
        newest = max(group, key=lambda each: each.order)
        sightings: dict[int, Sighting] = {}
        for each in sorted(group, key=lambda each: each.order):
            if each.seen[0] == newest.seen[0]:  # a carrier may have several addresses
                sightings.setdefault(each.seen[1], Sighting(each.seen[1], each.first))
        return allocation(tuple(sightings.values()), self._local)

    def _family(self) -> list[_Observation]:
        """Those of IPv4, where there are any: with IPv6 nobody translates, as a rule."""
        every = list(self._seen.values())
        return [each for each in every if each.family == 4] or every

    def _is_outside(self, remote: str) -> bool:
        source = public_endpoint(remote)
        return source is not None and all(source[0] != each.seen[0] for each in self._seen.values())

    def _changed_its_mind(self, known: _Observation) -> None:
        """Where several had agreed, the mapping was lost for all: the others' word is old."""
        agreed = [remote for remote, each in self._seen.items() if each.seen == known.seen]
        if _voices(self._seen[each] for each in agreed) >= 2:
            for each in agreed:
                del self._seen[each]

    def _make_room(self, remote: str, party: str, now: float) -> None:
        self._expire(now)
        self._seen.pop(remote, None)
        same = [each for each, kept in self._seen.items() if kept.party == party]
        crowd = same if len(same) >= self._config.max_per_party else list(self._seen)
        if crowd is same or len(crowd) >= self._config.max_observers:
            del self._seen[min(crowd, key=lambda each: self._seen[each].last)]

    def _expire(self, now: float) -> None:
        oldest = now - self._config.observation_ttl
        self._seen = {each: kept for each, kept in self._seen.items() if kept.last >= oldest}

    def _compare(self) -> None:
        """Raise `version` if something that others must know is different.

        Where everybody sees another port, a new one is nothing new.
        """
        mapping, group = self._judge(self._family())
        seen = {each.seen for each in group}
        where = {host for host, _ in seen} if mapping is Mapping.DEPENDENT else seen
        shown = (mapping, tuple(sorted(map(str, where))), self._local)
        if shown != self._shown:
            self._shown = shown
            self.version += 1


def _voices(observations: Iterable[_Observation]) -> int:
    return len({each.party for each in observations})


def _newest_first(observations: Iterable[_Observation]) -> list[_Observation]:
    return sorted(observations, key=lambda each: each.order, reverse=True)


def _of_ipv4(addresses: frozenset[str]) -> frozenset[str]:
    """Those that tell one network from another; IPv6 ones come and go by themselves."""
    scopes = (Scope.HOME, Scope.CARRIER, Scope.EVERYBODY)
    return frozenset(each for each in addresses if ":" not in each and scope_of(each) in scopes)
