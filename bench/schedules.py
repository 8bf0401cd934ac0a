"""Seeded schedules of replicas that write, part, meet, crash and are lied to; what came of each.

A schedule is a run of actions drawn from `ACTIONS`. To add a fault, add an action; what must
hold in the end stands in `World.finish`. No I/O and no clock: a seed always gives the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from bench.forgeries import FORGERIES, Writer
from bench.schedule_keys import AUTHORITY, NAME
from bench.schedule_world import Forgery, Outcome, World
from lattica.store.chains.notices import rule

STEPS = 80
LETTERS = "aé中👍\u0301"  # of one to four bytes, and one that joins the letter before


# ------------------------------------------------------------------------------------- writing


def write_map(world: World) -> None:
    """One to three entries, some of them removals, in one transaction."""
    document = world.any()
    with document.transaction():
        for _ in range(world.rng.randint(1, 3)):
            entries = document.map(world.rng.choice("mn"))
            key = world.rng.choice("abc")
            if world.rng.random() < 0.7:
                entries[key] = world.rng.random()
            else:
                entries.delete(key)


def write_array(world: World) -> None:
    """Items put anywhere; sometimes some removed."""
    document = world.any()
    array = document.array(world.rng.choice("ab"))
    beside = document.array("w")  # where entries may come to count no more
    removed: list[int] = []
    added: list[int] = []
    with document.transaction():
        if world.rng.random() < 0.4 and array:
            start = world.rng.randrange(len(array))
            stop = start + world.rng.randint(1, 2)
            removed += array[start:stop]
            del array[start:stop]
        for _ in range(world.rng.randint(1, 3)):
            added.append(next(world.serial))
            array.insert(world.rng.randint(0, len(array)), added[-1])
        beside.insert(world.rng.randint(0, len(beside)), "beside")
    world.then(document, lambda: world.items.update(_items(added, removed)))


def write_text(world: World) -> None:
    """A word put anywhere, maybe in the place of another."""
    text = world.any().text(world.rng.choice("tu"))
    word = "".join(world.rng.choices(LETTERS, k=world.rng.randint(0, 4)))
    start = world.rng.randint(0, len(text))
    text[start : start + world.rng.choice((0, 0, 1, 3))] = word


def write_count(world: World) -> None:
    """Something added or taken off."""
    document, name = world.any(), world.rng.choice("cd")
    amount = world.rng.randint(-3, 5)
    document.counter(name).add(amount)
    world.then(document, lambda: world.counted.update({name: amount}))


def write_all(world: World) -> None:
    """One transaction over every kind."""
    document, item = world.any(), next(world.serial)
    with document.transaction():
        document.map("m")["all"] = item
        document.array("a").append(item)
        document.text("t").append("👍")
        document.counter("c").add(1)
    world.then(document, lambda: world.items.update(_items([item], [])))
    world.then(document, lambda: world.counted.update(c=1))


def give_up(world: World) -> None:
    """A transaction that fails after it has written."""
    document = world.any()
    try:
        with document.transaction():
            document.map("m")["a"] = "never"
            document.array("a").insert(0, -1)
            document.text("t").insert(0, "never")
            document.counter("c").add(100)
            raise InterruptedError
    except InterruptedError:
        pass


def _items(added: list[int], removed: list[int]) -> dict[int, int]:
    return dict.fromkeys(added, 1) | dict.fromkeys(removed, 0)


# ------------------------------------------------------------------------------------ moving


def deliver(world: World) -> None:
    """An envelope arrives, in any order; some twice; some are lost."""
    if not world.flying:
        return
    index = world.rng.randrange(len(world.flying))
    flight = world.flying[index]
    if world.rng.random() < 0.8:
        del world.flying[index]
    together = world.islands[flight.source] == world.islands[flight.target]
    if together and world.rng.random() < 0.8:
        world.receive(world.nodes[flight.target], flight.envelope)


def replay(world: World) -> None:
    """An old envelope is brought again, to anybody."""
    if world.sent:
        world.receive(world.rng.choice(world.nodes), world.rng.choice(world.sent))


def meet(world: World) -> None:
    """Two replicas that are not parted exchange what they have."""
    one, other = world.rng.sample(range(len(world.nodes)), 2)
    if world.islands[one] == world.islands[other]:
        world.sync(world.nodes[one], world.nodes[other])


def part(world: World) -> None:
    """A partition, or its end."""
    world.islands = [world.rng.randrange(2) for _ in world.nodes]


# -------------------------------------------------------------------------------------- disks


def commit(world: World) -> None:
    """What a replica has accepted is on its disk, and may leave."""
    world.rng.choice(world.nodes).commit()


def crash(world: World) -> None:
    """A replica loses what is not on its disk, and reads the rest."""
    world.rng.choice(world.nodes).crash()


def compact(world: World) -> None:
    """A replica writes a snapshot, and has its history on disk only."""
    world.rng.choice(world.nodes).compact()


# ------------------------------------------------------------------------------------- lying


def forge(world: World) -> None:
    """One of `FORGERIES` is made, and brought to some."""
    name = world.rng.choice(list(FORGERIES))
    envelope = FORGERIES[name](world)
    if envelope is None:
        return
    forgery = Forgery(envelope, name)
    world.forgeries.append(forgery)
    world.actions[f"forge: {name}"] += 1
    for node in world.rng.sample(world.nodes, world.rng.randint(1, 2)):
        world.lie(node, forgery)


def fork(world: World) -> None:
    """A writer tells two replicas different things, after some that are the same."""
    one, other = world.rng.sample(world.nodes, 2)
    writer = Writer(world)
    same = [writer.write(world) for _ in range(world.rng.randint(0, 2))]
    twin = writer.twin()
    branches = [
        [each.write(world) for _ in range(world.rng.randint(1, 2))] for each in (writer, twin)
    ]
    world.cut[writer.peer] = None
    for node, branch in zip((one, other), branches, strict=True):
        for envelope in (*same, *branch):
            world.receive(node, envelope)
        node.commit()
    if one.holds(branches[0][0]) and other.holds(branches[1][0]):
        world.cut[writer.peer] = len(same)  # else what was told may be lost before anybody sees


def revoke(world: World) -> None:
    """A writer's updates go around, and the authority lets only the first of them count."""
    writer = Writer(world)
    envelopes = [writer.write(world) for _ in range(world.rng.randint(1, 3))]
    upto = world.rng.randint(0, len(envelopes))
    world.cut[writer.peer] = upto
    ruling = rule(AUTHORITY, NAME, writer.peer, upto=upto)
    before = world.rng.random() < 0.3
    told = world.rng.choice(world.nodes)
    if before:
        told.learn([ruling])
        told.commit()
    for node in world.rng.sample(world.nodes, world.rng.randint(1, 2)):
        for envelope in envelopes:
            world.receive(node, envelope)
    if not before:
        told.learn([ruling])
        told.commit()


class Action(NamedTuple):
    """Something that may happen, and how often, relative to the others."""

    weight: int
    do: Callable[[World], None]


ACTIONS: dict[str, Action] = {
    do.__name__: Action(weight, do)
    for weight, do in (
        (8, write_map),
        (9, write_array),
        (9, write_text),
        (5, write_count),
        (2, write_all),
        (1, give_up),
        (45, deliver),
        (2, replay),
        (14, meet),
        (4, part),
        (30, commit),
        (4, crash),
        (3, compact),
        (3, forge),
        (1, fork),
        (1, revoke),
    )
}


def act(world: World, name: str) -> None:
    """Do one of `ACTIONS`."""
    world.actions[name] += 1
    ACTIONS[name].do(world)


def run_schedule(seed: int, steps: int = STEPS) -> Outcome:
    """One schedule of 3 to 8 replicas."""
    rng = random.Random(seed)
    world = World(rng, rng.randint(3, 8))
    names = list(ACTIONS)
    weights = [ACTIONS[name].weight for name in names]
    for name in rng.choices(names, weights, k=steps):
        act(world, name)
    return world.finish(seed)
