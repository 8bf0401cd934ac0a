from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lattica.actors.messages import NodeInfo, Requirements
from lattica.actors.placement import (
    Usage,
    could_run,
    describe,
    describe_offers,
    has_room,
    needs,
    rank,
)
from lattica.identity.keys import PeerId


def node(
    number: int,
    total: dict[str, float],
    available: dict[str, float] | None = None,
    labels: dict[str, str] | None = None,
    load: float = 0.0,
) -> NodeInfo:
    return NodeInfo(
        PeerId(bytes([number]) * 32),
        f"n{number}",
        (),
        total,
        total if available is None else available,
        labels or {},
        load=load,
    )


def names(nodes: list[NodeInfo]) -> list[str]:
    return [each.name for each in nodes]


def test_resources_labels_and_a_named_peer_filter() -> None:
    plain, tpu = node(1, {"CPU": 4}), node(2, {"CPU": 2, "tpu": 1}, labels={"zone": "a"})
    assert could_run(plain, Requirements(cpus=4))
    assert not could_run(plain, Requirements(cpus=4.5))
    assert not could_run(plain, Requirements(resources={"tpu": 1}))
    assert could_run(tpu, Requirements(resources={"tpu": 1}, labels={"zone": "a"}))
    assert not could_run(tpu, Requirements(labels={"zone": "b"}))
    assert could_run(tpu, Requirements(peer=tpu.peer))
    assert not could_run(plain, Requirements(peer=tpu.peer))


def test_a_driver_that_offers_nothing_gets_nothing_unless_it_is_meant() -> None:
    driver = node(1, {"CPU": 0})
    assert not could_run(driver, Requirements(cpus=0))
    assert could_run(driver, Requirements(cpus=0, peer=driver.peer))
    assert could_run(node(1, {"CPU": 0, "disk": 1}), Requirements(cpus=0, resources={"disk": 1}))


def test_a_third_three_times_is_one() -> None:
    usage = Usage()
    third = Requirements(cpus=1 / 3)
    for _ in range(3):
        assert has_room(node(1, {"CPU": 1}), third, usage)
        usage.add(needs(third), 1)
    assert not has_room(node(1, {"CPU": 1}), third, usage)


def test_room_comes_first_then_the_least_busy() -> None:
    full = node(1, {"CPU": 4}, {"CPU": 0})
    half = node(2, {"CPU": 4}, {"CPU": 2})
    idle = node(3, {"CPU": 4})
    assert names(rank([full, half, idle], Requirements(), {}, {})) == ["n3", "n2", "n1"]


def test_a_far_peer_yields_to_a_near_one_that_is_a_little_busier() -> None:
    near, far = node(1, {"CPU": 4}, {"CPU": 3}), node(2, {"CPU": 4})
    rtt = {near.peer: 0.001, far.peer: 0.3}
    assert names(rank([far, near], Requirements(), {}, rtt)) == ["n1", "n2"]


def test_a_burst_spreads_over_equal_peers_though_records_lag_behind() -> None:
    nodes = [node(number, {"CPU": 2}) for number in (1, 2, 3)]
    usage = {each.peer: Usage() for each in nodes}
    chosen = []
    for turn in range(6):
        best = rank(nodes, Requirements(), usage, {}, turn)[0]
        usage[best.peer].add({"CPU": 1.0}, 1)
        chosen.append(best.name)
    assert sorted(chosen) == ["n1", "n1", "n2", "n2", "n3", "n3"]


def test_actors_that_ask_for_nothing_spread_too() -> None:
    nodes = [node(number, {"CPU": 2}) for number in (1, 2, 3)]
    usage = {each.peer: Usage() for each in nodes}
    for _ in range(6):
        best = rank(nodes, Requirements(cpus=0), usage, {})[0]
        usage[best.peer].add({}, 1)
    assert [each.leases for each in usage.values()] == [2, 2, 2]


def test_what_was_asked_and_what_there_is_reads_well() -> None:
    assert describe(Requirements(cpus=2, resources={"tpu": 1}, labels={"zone": "a"})) == (
        "CPU: 2, tpu: 1, label zone=a"
    )
    assert describe_offers([node(1, {"CPU": 2})]) == "n1 offers CPU: 2"
    assert describe_offers([]) == "no peer offers anything"


amounts = st.floats(0, 64, allow_nan=False)
nodes_made = st.lists(
    st.builds(
        node,
        st.integers(1, 200),
        st.dictionaries(st.sampled_from(["CPU", "GPU", "tpu"]), amounts),
        st.none() | st.dictionaries(st.sampled_from(["CPU", "GPU", "tpu"]), amounts),
        load=amounts,
    ),
    max_size=6,
)


@given(nodes_made, amounts, st.integers(0, 1000))
def test_ranking_keeps_exactly_the_able_whatever_the_records_say(
    nodes: list[NodeInfo], cpus: float, turn: int
) -> None:
    asked = Requirements(cpus=cpus)
    ranked = rank(nodes, asked, {}, {}, turn)
    assert sorted(names(ranked)) == sorted(n.name for n in nodes if could_run(n, asked))
    rooms = [has_room(each, asked, Usage()) for each in ranked]
    assert rooms == sorted(rooms, reverse=True)
