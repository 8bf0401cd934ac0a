"""Seeded schedules of replicas that write, part, meet and are lied to; what came of each.

A schedule is a run of actions drawn from `ACTIONS`. To add a fault, add an action; what must
hold in the end stands in `World.finish`. No I/O and no clock: a seed always gives the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from bench.forgeries import FORGERIES
from bench.schedule_world import Forgery, Outcome, World, replica_of

STEPS = 60
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
    with document.transaction():
        if world.rng.random() < 0.4 and array:
            start = world.rng.randrange(len(array))
            stop = start + world.rng.randint(1, 2)
            for item in array[start:stop]:
                world.items[item] = 0
            del array[start:stop]
        for _ in range(world.rng.randint(1, 3)):
            item = len(world.items)
            array.insert(world.rng.randint(0, len(array)), item)
            world.items[item] = 1


def write_text(world: World) -> None:
    """A word put anywhere, maybe in the place of another."""
    document = world.any()
    text = document.text(world.rng.choice("tu"))
    word = "".join(world.rng.choices(LETTERS, k=world.rng.randint(0, 4)))
    start = world.rng.randint(0, len(text))
    text[start : start + world.rng.choice((0, 0, 1, 3))] = word


def write_count(world: World) -> None:
    """Something added or taken off."""
    name, amount = world.rng.choice("cd"), world.rng.randint(-3, 5)
    world.any().counter(name).add(amount)
    world.counted[name] += amount


def write_all(world: World) -> None:
    """One transaction over every kind."""
    document = world.any()
    with document.transaction():
        document.map("m")["all"] = len(world.sent)
        item = len(world.items)
        document.array("a").append(item)
        world.items[item] = 1
        document.text("t").append("👍")
        document.counter("c").add(1)
        world.counted["c"] += 1


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
        world.receive(world.documents[flight.target], flight.envelope)


def replay(world: World) -> None:
    """An old envelope is brought again, to anybody."""
    if world.sent:
        world.receive(world.any(), world.rng.choice(world.sent))


def meet(world: World) -> None:
    """Two replicas that are not parted exchange what they have."""
    one, other = world.rng.sample(range(len(world.documents)), 2)
    if world.islands[one] == world.islands[other]:
        world.sync(world.documents[one], world.documents[other])


def part(world: World) -> None:
    """A partition, or its end."""
    world.islands = [world.rng.randrange(2) for _ in world.documents]


def compact(world: World) -> None:
    """A replica's history is from now on on disk only."""
    document = world.any()
    world.disk_of(document).compact(replica_of(document))


def crash(world: World) -> None:
    """A replica comes back from its disk."""
    world.restart(world.any())


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
    for document in world.rng.sample(world.documents, world.rng.randint(1, 2)):
        world.lie(document, forgery)


def twin_writes(world: World) -> None:
    """One of two copies of a key writes, knowing nothing of the other."""
    twin = world.rng.choice(world.twins)
    text = twin.text("t")
    with twin.transaction():
        twin.map("m")[world.rng.choice("abc")] = world.rng.random()
        text.insert(world.rng.randint(0, len(text)), "twin")
        twin.array("a").append(-1 - world.rng.randrange(10))


def twin_speaks(world: World) -> None:
    """Somebody hears of one of the copies, which hears of what the others have written."""
    twin, document = world.rng.choice(world.twins), world.any()
    world.hear(document, twin)
    world.tell(twin, document)


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
        (2, compact),
        (2, crash),
        (3, forge),
        (14, twin_writes),
        (14, twin_speaks),
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
    # Where somebody forks, arrays may lose what rests on it; so half of the schedules have none.
    forks = seed % 2 == 1
    weights = [
        ACTIONS[name].weight if forks or not name.startswith("twin") else 0 for name in names
    ]
    for name in rng.choices(names, weights, k=steps):
        act(world, name)
    return world.finish(seed)
