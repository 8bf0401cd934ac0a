"""Announcements that members read, and strangers do not."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.identity.keys import Identity
from lattica.path.lan_beacon import HOUR, SIZE, Beacon, Neighbour

MESH, OTHER = (Identity(name.ljust(32)).peer_id for name in (b"mesh", b"other"))
PEER = Identity(b"alice".ljust(32)).peer_id
NOW = 1_800_000_000.0


def beacon(mesh: object = MESH) -> tuple[Beacon, Counter[str]]:
    counters: Counter[str] = Counter()
    return Beacon(mesh, counters), counters  # type: ignore[arg-type]


@pytest.mark.parametrize("later", [-HOUR, -1.0, 0.0, 1.0, HOUR])
def test_members_read_it_also_where_clocks_differ(later: float) -> None:
    made = beacon()[0].make(PEER, 4242, "name", NOW)
    assert len(made) == SIZE
    assert beacon()[0].read(made, "name", NOW + later) == Neighbour(PEER, 4242)


@pytest.mark.parametrize(
    ("mesh", "name", "later"),
    [(OTHER, "name", 0.0), (MESH, "another", 0.0), (MESH, "name", 2 * HOUR), (MESH, "name", -7200)],
)
def test_others_and_old_ones_are_nothing(mesh: object, name: str, later: float) -> None:
    made = beacon()[0].make(PEER, 4242, "name", NOW)
    reader, counters = beacon(mesh)
    assert reader.read(made, name, NOW + later) is None
    assert counters == {"lan:others": 1}


def test_nothing_in_it_is_the_same_an_hour_later_or_tells_the_peer() -> None:
    one, other = (beacon()[0].make(PEER, 4242, "name", NOW) for _ in range(2))
    assert PEER.raw not in one
    assert MESH.raw not in one
    assert one != other
    assert one[:12] != other[:12]


@given(changed=st.binary(max_size=200))
def test_whatever_comes_is_read_or_counted(changed: bytes) -> None:
    reader, counters = beacon()
    assert reader.read(changed, "name", NOW) is None
    assert counters.total() == 1


@given(at=st.integers(0, SIZE - 1), bit=st.integers(0, 7))
def test_a_changed_bit_is_noticed(at: int, bit: int) -> None:
    made = bytearray(beacon()[0].make(PEER, 4242, "name", NOW))
    made[at] ^= 1 << bit
    assert beacon()[0].read(bytes(made), "name", NOW) is None
