"""Where peers may be reached: addresses learned from tickets, the DHT and links."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from lattica.identity.keys import PeerId

MAX_PEERS = 8192
MAX_ADDRESSES = 16  # of one peer
MAX_LENGTH = 262  # characters: a DNS name of 253, a colon, a port, brackets


class AddressBook:
    """The newest addresses of the most recently learned peers, best first."""

    def __init__(self, *, max_peers: int = MAX_PEERS) -> None:
        self._max_peers = max_peers
        self._addresses: OrderedDict[PeerId, list[str]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._addresses)

    def get(self, peer: PeerId) -> tuple[str, ...]:
        """The addresses to try, best first."""
        return tuple(self._addresses.get(peer, ()))

    def learn(self, peer: PeerId, addresses: Iterable[str]) -> bool:
        """Put `addresses` before those known, which the newest news may have made stale.

        The result says whether any of them was not known.
        """
        fresh = [each for each in addresses if len(each) <= MAX_LENGTH]
        if not fresh:
            return False
        known = self._addresses.get(peer, [])
        merged = dict.fromkeys((*fresh, *known))
        self._addresses[peer] = list(merged)[:MAX_ADDRESSES]
        self._addresses.move_to_end(peer)
        if len(self._addresses) > self._max_peers:
            self._addresses.popitem(last=False)
        return len(merged) > len(known)

    def forget(self, peer: PeerId, address: str) -> None:
        """Another peer answers at `address`."""
        known = self._addresses.get(peer)
        if known and address in known:
            known.remove(address)
            if not known:
                del self._addresses[peer]
