"""What a peer tells of itself: nothing to any network, if it is bound to this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from lattica.errors import AddressError
from lattica.peer import Peer, PeerOptions

pytestmark = pytest.mark.anyio


async def test_on_loopback_neither_routers_nor_neighbours_are_asked(tmp_path: Path) -> None:
    async with Peer.open(PeerOptions(home=tmp_path / "home", cpus=0, memory=0)) as peer:
        assert peer.reach.candidates.is_quiet
        assert peer.port_mapper is None
        assert peer.lan is None
        assert all(each.startswith("127.0.0.1:") for each in peer.addresses)
        assert peer.reach.relays == ()


async def test_an_address_told_by_the_user_is_published_first(tmp_path: Path) -> None:
    options = PeerOptions(
        home=tmp_path / "home", cpus=0, memory=0, addresses=("198.51.100.7:4242",)
    )
    async with Peer.open(options) as peer:
        assert peer.addresses[0] == "198.51.100.7:4242"
        assert peer.node_info().addresses == peer.addresses


@pytest.mark.parametrize("address", ["somewhere", "198.51.100.7:0", "tcp:x"])
async def test_an_address_that_nobody_can_dial_is_refused(tmp_path: Path, address: str) -> None:
    options = PeerOptions(home=tmp_path / "home", cpus=0, memory=0, addresses=(address,))
    with pytest.raises(AddressError):
        async with Peer.open(options):
            pass
