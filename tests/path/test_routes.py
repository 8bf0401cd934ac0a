"""Virtual addresses: one per remote, kept while held, bounded otherwise."""

from __future__ import annotations

from lattica.path.interface import VirtualAddress
from lattica.path.routes import Routes


def test_a_remote_has_one_virtual_address() -> None:
    routes: Routes[str] = Routes("test")
    one, other = routes.virtual("a:1"), routes.virtual("b:1")
    assert one == routes.virtual("a:1") != other
    assert routes.best(one) == "a:1"
    assert one.scheme == "test"


def test_strangers_do_not_fill_the_table_and_held_routes_stay() -> None:
    routes: Routes[str] = Routes("test", max_loose=10)
    held = routes.virtual("friend:1")
    routes.hold(held)
    routes.hold(held)
    strangers = [routes.virtual(f"stranger:{index}") for index in range(100)]
    assert len(routes) == 11
    assert routes.best(held) == "friend:1"
    assert routes.best(strangers[0]) is None
    assert routes.best(strangers[-1]) == "stranger:99"
    routes.release(held)
    for index in range(20):
        routes.virtual(f"another:{index}")
    assert routes.best(held) == "friend:1"  # held twice, released once
    routes.release(held)
    for index in range(20):
        routes.virtual(f"third:{index}")
    assert routes.best(held) is None
    assert len(routes) == 10


def test_an_address_made_up_or_forgotten_leads_nowhere() -> None:
    routes: Routes[str] = Routes("test")
    unknown = VirtualAddress("test", 99)
    routes.hold(unknown)
    routes.release(unknown)
    assert routes.best(unknown) is None


def test_a_forgotten_remote_gets_a_new_address() -> None:
    routes: Routes[str] = Routes("test", max_loose=1)
    before = routes.virtual("a:1")
    routes.virtual("b:1")
    assert routes.virtual("a:1") != before
