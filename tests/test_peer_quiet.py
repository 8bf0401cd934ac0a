"""A peer that is bound to this machine says nothing to any network."""

from __future__ import annotations

from pathlib import Path

import pytest

from lattica.peer import Peer, PeerOptions

pytestmark = pytest.mark.anyio


async def test_on_loopback_neither_routers_nor_neighbours_are_asked(tmp_path: Path) -> None:
    async with Peer.open(PeerOptions(home=tmp_path / "home", cpus=0, memory=0)) as peer:
        assert peer.reach.candidates.is_quiet
        assert peer.port_mapper is None
        assert peer.lan is None
        assert all(each.startswith("127.0.0.1:") for each in peer.addresses)
        assert peer.reach.relays == ()
