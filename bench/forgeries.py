"""What those say who break the rules: envelopes that no replica may take in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pycrdt

from bench.schedule_keys import AUTHORITY, NAME, NOW, identity, membership
from bench.schedule_world import World
from lattica.config import StoreConfig
from lattica.identity import grants
from lattica.identity.grants import Membership
from lattica.identity.keys import Identity
from lattica.identity.signed import Signed
from lattica.store.chains.messages import DOMAIN, GENESIS, Update
from lattica.store.chains.replica import Replica
from lattica.store.crdt.kinds import ARRAY
from lattica.store.crdt.ledger import counter_key
from lattica.store.crdt.state import client_id
from lattica.store.crdt.update import STRING, encode_number, live_units
from lattica.store.crdt.values import encode_value

ROGUE = 1000  # number of the first identity that breaks the rules
WRITER = 5000  # of the first that keeps to them for a while


def altered(world: World) -> Signed | None:
    """Somebody else's envelope with a bit changed."""
    if not world.sent:
        return None
    old = world.rng.choice(world.sent)
    payload = bytearray(old.payload)
    payload[world.rng.randrange(len(payload))] ^= 1 << world.rng.randrange(8)
    return Signed(old.author, old.domain, bytes(payload), old.signature)


def claimed(world: World) -> Signed | None:
    """A well-signed envelope under another's name."""
    victim = world.rng.randint(1, len(world.documents))
    made = sealed(world, body_of(world, victim, "map:m"))
    return Signed(identity(victim).peer_id, made.domain, made.payload, made.signature)


def unauthorised(world: World) -> Signed | None:
    """By a member without the grant, or with a grant that has run out."""
    rogue = rogue_of(world)
    shown = world.rng.choice(
        (
            membership(rogue, grants.CALL),
            membership(rogue, "write:other"),
            membership(rogue, expires=NOW - 1),
            membership(identity(1)),
        )
    )
    return sealed(world, body_of(world, ROGUE + len(world.forgeries), "map:m"), shown=shown)


def impersonating(world: World) -> Signed | None:
    """By a writer, in another's client id."""
    return sealed(world, body_of(world, world.rng.randint(1, len(world.documents)), "map:m"))


def malformed(world: World) -> Signed | None:
    """By a writer, bytes that are no update, or of nothing that Lattica writes."""
    number = ROGUE + len(world.forgeries)
    body = body_of(world, number, "map:m")
    return sealed(
        world,
        world.rng.choice(
            (
                b"",
                body[: world.rng.randrange(1, len(body))],
                body + b"\x00",
                body_of(world, number, "plain"),
                body_of(world, number, "array:m"),
                world.rng.randbytes(20) + b"\x80",
            )
        ),
    )


def misplaced(world: World) -> Signed | None:
    """By a writer, text beside an item of an array."""
    node = world.rng.choice(world.nodes)
    node.commit()  # else it may lose what this is put beside, and write something else there
    state = node.document.state
    # Not where a `Writer` writes: beside what counts no more it would go with that instead.
    held = [
        unit
        for unit in live_units(state._doc.get_update())
        if state.ledger.place_at(*unit)[:2] in ((ARRAY, "a"), (ARRAY, "b"))
    ]
    if not held:
        return None
    beside = world.rng.choice(held)
    rogue = client_id(rogue_of(world).peer_id)
    ids = b"".join(map(encode_number, (rogue, 0)))
    left = b"".join(map(encode_number, beside))
    info = bytes((0x80 | STRING,))
    return sealed(world, b"\x01\x01" + ids + info + left + b"\x01x" + b"\x00")


def miscounting(world: World) -> Signed | None:
    """By a writer, who replaces what another has counted, or counts in its name."""
    state = world.any().state
    number = ROGUE + len(world.forgeries)
    counted = [(name, key) for name in "cd" for key in sorted(state.counts(name).keys())]
    if not counted:
        return sealed(world, body_of(world, number, "count:c", counter_key(1)))
    name, key = world.rng.choice(counted)
    doc, updates = _author(number)
    doc.apply_update(state._doc.get_update())
    updates.clear()
    doc.get(f"count:{name}", type=pycrdt.Map)[key] = encode_value([1000, 0])
    return sealed(world, updates[0])


def misstated(world: World) -> Signed | None:
    """By a writer, who says that it writes elsewhere than it does."""
    number = ROGUE + len(world.forgeries)
    return sealed(world, body_of(world, number, "map:m"), stated=(("map", "m", "other"),))


FORGERIES: dict[str, Callable[[World], Signed | None]] = {
    made.__name__: made
    for made in (
        altered,
        claimed,
        unauthorised,
        impersonating,
        malformed,
        misplaced,
        miscounting,
        misstated,
    )
}


class Writer:
    """A writer whose updates may come to count no more, and others' beside them with them.

    So it writes only where no entry of the others' is looked for in the end.
    """

    def __init__(self, world: World) -> None:
        self._number = WRITER + len(world.cut)
        self.peer = identity(self._number).peer_id
        self._replica = self._fresh()
        if world.rng.random() < 0.7:
            self._replica.receive(world.rng.choice(world.nodes).lacked_by(()))

    def write(self, world: World) -> Signed:
        """One update."""
        state = self._replica.state
        with self._replica.transaction(NOW) as links:
            state.map(world.rng.choice("mn"))[world.rng.choice("abc")] = encode_value(
                world.rng.random()
            )
            text = state.text("t")
            text.insert(world.rng.choice((0, len(text))), "writer")
            # Never twice the same: or the two branches of a fork might be one.
            state.array("w").append(encode_value(next(world.serial)))
        return links[0].envelope

    def twin(self) -> Writer:
        """The same writer, as it is now."""
        made = object.__new__(Writer)
        made._number, made.peer = self._number, self.peer
        made._replica = self._fresh()
        known = self._replica.missing((), limit=10**9)
        assert known is not None
        made._replica.receive(known.envelopes)
        return made

    def _fresh(self) -> Replica:
        member = identity(self._number)
        return Replica(NAME, member, membership(member), StoreConfig())


def rogue_of(world: World) -> Identity:
    """A member of its own for each forgery: whoever was caught is not listened to again."""
    return identity(ROGUE + len(world.forgeries))


def sealed(
    world: World,
    body: bytes,
    shown: Membership | None = None,
    stated: tuple[tuple[str, str, str], ...] = (),
) -> Signed:
    """A first envelope by the next rogue, by default one that may write."""
    rogue = rogue_of(world)
    shown = shown or membership(rogue)
    update = Update(AUTHORITY.peer_id, NAME, 1, GENESIS, NOW, body, shown, stated)
    return Signed.seal(rogue, DOMAIN, update)


def body_of(world: World, number: int, root: str, key: str = "k") -> bytes:
    """A pycrdt update in somebody's client id, from an empty document."""
    doc, updates = _author(number)
    doc.get(root, type=pycrdt.Map)[key] = encode_value(len(world.sent))
    return updates[0]


def _author(number: int) -> tuple[pycrdt.Doc[Any], list[bytes]]:
    """A document that writes in somebody's client id, and the updates that it makes."""
    doc: pycrdt.Doc[Any] = pycrdt.Doc(client_id=client_id(identity(number).peer_id))
    updates: list[bytes] = []
    doc.observe(lambda event: updates.append(event.update))
    return doc, updates
