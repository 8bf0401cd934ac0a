"""The links that relayed frames travel on, by peer."""

from __future__ import annotations

from lattica.identity.keys import PeerId
from lattica.link.endpoint import Endpoint
from lattica.link.quic_link import QuicLink
from lattica.path import addresses as text
from lattica.path.interface import VirtualAddress
from lattica.path.relay import SCHEME as RELAYED
from lattica.path.relay import Leg

NOWHERE = VirtualAddress(RELAYED, 0)  # no session has this number: what goes there is counted


class PeerLeg:
    """See `lattica.path.relay.Leg`: whatever link to a peer is open."""

    def __init__(self, endpoint: Endpoint, peer: PeerId) -> None:
        self._endpoint = endpoint
        self._peer = peer

    @property
    def current(self) -> VirtualAddress:
        link = open_link(self._endpoint, self._peer)
        return NOWHERE if link is None else link.current_address

    def has(self, address: VirtualAddress) -> bool:
        link = open_link(self._endpoint, self._peer)
        return link is not None and link.steering is not None and link.steering.has(address)


class Legs:
    """Finds legs by peer, and peers by where their packets come from."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._at: dict[VirtualAddress, dict[QuicLink, None]] = {}
        self._places: dict[QuicLink, set[VirtualAddress]] = {}

    def link_up(self, link: QuicLink) -> None:
        """A link has opened: know its ways from now on."""
        if link.steering is None or link.steering.ways is None or link in self._places:
            return
        self._places[link] = set()
        for way in link.steering.ways.all:
            self._place(link, way.address, is_there=True)
        link.steering.placed = lambda address, is_there: self._place(
            link, address, is_there=is_there
        )

    def link_down(self, link: QuicLink) -> None:
        """A link is not for use any more."""
        if link.steering is not None:
            link.steering.placed = None
        for address in tuple(self._places.get(link, ())):
            self._place(link, address, is_there=False)
        self._places.pop(link, None)

    def find(self, peer: PeerId) -> Leg | None:
        """The leg to a peer that is linked here without a relay between."""
        link = open_link(self._endpoint, peer)
        if link is None or link.current_address.scheme == RELAYED:
            return None
        return PeerLeg(self._endpoint, peer)

    def hosts(self, peer: PeerId) -> tuple[str, ...]:
        """Where a linked peer is seen, the host that its packets come from now first."""
        link = open_link(self._endpoint, peer)
        if link is None or link.steering is None or link.steering.ways is None:
            return ()
        ways = [each.address for each in link.steering.ways.all if each.is_proven]
        ways.sort(key=lambda address: address != link.current_address)
        places = (link.path_of(address) for address in ways if address.scheme != RELAYED)
        return tuple(dict.fromkeys(text.split(text.strip_scheme(each))[0] for each in places))

    def whose(self, address: VirtualAddress) -> PeerId | None:
        """The linked peer that is known to be at an address."""
        links = self._at.get(address)  # asked for each forged source: no walk over all links
        return None if links is None else next(iter(links)).remote.peer

    def _place(self, link: QuicLink, address: VirtualAddress, *, is_there: bool) -> None:
        links = self._at.setdefault(address, {})
        if is_there:
            links[link] = None
            self._places[link].add(address)
        else:
            links.pop(link, None)
            self._places[link].discard(address)
        if not links:
            del self._at[address]


def open_link(endpoint: Endpoint, peer: PeerId) -> QuicLink | None:
    """The open link to a peer."""
    link = endpoint.find(peer)
    return link if isinstance(link, QuicLink) else None
