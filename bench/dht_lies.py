"""Liars that lead look-ups astray: they name members whose places were ground to be the closest.

Records are stored with their true closest peers first. Then a share of the peers turns: whoever
asks one of them for a key is told of twenty accomplices that stand closer to it than anybody
honest, name each other, and hold nothing. A look-up that believes it has all the closest then
has none of the records.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import msgspec

from bench.dht_world import SimPeer, Traffic, World
from lattica.config import DhtConfig
from lattica.dht.keys import dht_key, node_id
from lattica.dht.messages import FindReply
from lattica.dht.routing import PeerNode
from lattica.identity.keys import PeerId
from lattica.identity.tickets import Contact
from lattica.rpc.buffers import Buffer

ACCOMPLICES = 20  # for each key
ADDRESS = "192.0.2.66:66"
KIND = "note"


class Steered(msgspec.Struct, frozen=True):
    """What look-ups brought, and what they cost."""

    recall: float  # share of the keys whose record was found
    queries: float  # peers asked by a look-up


class Accomplice:
    """A member that answers, and knows others of its like only."""

    is_liar = True
    is_alive = True

    def __init__(self, peer: PeerId, mates: tuple[Contact, ...]) -> None:
        self.id = peer
        self.traffic = Traffic()
        self.links = SimpleNamespace(open={}, join=lambda _: None, drop=lambda _: None)
        self._mates = mates

    async def serve(self, name: str, args: tuple[Any, ...]) -> Any:
        """Answer a call."""
        del args
        if name == "find":
            return FindReply((ADDRESS,), self._mates, Buffer(b""))
        return (ADDRESS,) if name == "ping" else None


class Turned(SimPeer):
    """A peer that was honest when others got to know it."""

    accomplices: dict[bytes, tuple[Contact, ...]]

    async def serve(self, name: str, args: tuple[Any, ...]) -> Any:
        """Name the accomplices for a key."""
        if name == "find":
            return FindReply((self.address,), self.accomplices.get(args[0], ()), Buffer(b""))
        return await super().serve(name, args)


async def steered(
    peers: int, *, paths: int, share: float, lookups: int = 60, seed: int = 5
) -> Steered:
    """Gets by honest peers while a `share` of all lies."""
    async with World(seed=seed, config=DhtConfig(maintain_every=20.0, paths=paths)) as world:
        everybody = [world.add_static() for _ in range(peers)]
        world.fill_tables()
        keys = [dht_key("bench", str(number)) for number in range(lookups)]
        for key in keys:
            await world.random.choice(everybody).dht.put(key, KIND, b"here")
        turned = world.random.sample(everybody, round(peers * share))
        accomplices = {key: _ground(world, everybody, key) for key in keys}
        for each in turned:
            each.is_liar = True
            each.__class__ = Turned
            cast(Turned, each).accomplices = accomplices
        found = queries = 0
        for key in keys:
            reader = world.random.choice(world.honest)
            while reader.dht.storage.get(key, KIND, now=world.clock.time()):
                reader = world.random.choice(world.honest)
            before = reader.dht.counters["lookup_queries"]
            found += bool(await reader.dht.get(key, KIND, bytes))
            queries += reader.dht.counters["lookup_queries"] - before
        return Steered(found / lookups, queries / lookups)


def _ground(world: World, everybody: list[SimPeer], key: bytes) -> tuple[Contact, ...]:
    """Members closer to a key than everybody, as many keys and as many grants would make them."""
    place = int.from_bytes(key, "big")
    nearest = min(PeerNode(peer.id).long_id ^ place for peer in everybody)
    made: list[PeerId] = []
    while len(made) < ACCOMPLICES:
        peer = PeerId(world.random.randbytes(32))
        if int.from_bytes(node_id(peer), "big") ^ place < nearest:
            made.append(peer)
    contacts = tuple(Contact(peer, (ADDRESS,)) for peer in made)
    for peer in made:
        world.peers[peer] = cast(SimPeer, Accomplice(peer, contacts))
    return contacts
