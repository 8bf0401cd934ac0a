"""What a dial needs of whoever knows how to use relays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from lattica.errors import LinkError
from lattica.identity.keys import PeerId
from lattica.path.interface import VirtualAddress


class Detour(Protocol):
    """Implemented by `lattica.reach`."""

    async def open(
        self, peer: PeerId, address: str, failed: Callable[[LinkError], None]
    ) -> VirtualAddress:
        """The virtual address for `peer` at `relay:PEER@ADDRESS`: a session with that relay.

        It can be sent to at once; if the relay then says no, `failed` is called with the reason.
        Bounded by the dial's own deadline.

        Raises:
            AddressError: the address is malformed, or the relay cannot or will not help.
        """
        ...
