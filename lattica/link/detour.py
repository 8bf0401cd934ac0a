"""What a dial needs of whoever knows how to use relays."""

from __future__ import annotations

from typing import Protocol

from lattica.identity.keys import PeerId
from lattica.path.interface import VirtualAddress


class Detour(Protocol):
    """Implemented by `lattica.reach`."""

    async def open(self, peer: PeerId, address: str) -> VirtualAddress:
        """The virtual address for `peer` at `relay:PEER@ADDRESS`: a session with that relay.

        Bounded by the dial's own deadline.

        Raises:
            AddressError: the address is malformed, or the relay cannot or will not help.
        """
        ...
