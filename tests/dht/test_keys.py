"""Places in the key space, and addresses that strangers send."""

from __future__ import annotations

import pytest

from lattica.dht.keys import KEY_BYTES, dht_key, node_id
from lattica.dht.messages import MAX_ADDRESSES, clean_addresses
from tests.dht.support import peer_id


def test_keys_and_node_ids_fit_the_160_bit_table() -> None:
    assert len(dht_key("actor", "hits")) == len(node_id(peer_id(1))) == KEY_BYTES == 20


def test_a_name_is_the_same_key_as_text_and_as_bytes() -> None:
    assert dht_key("actor", "hits") == dht_key("actor", b"hits")
    assert dht_key("nodes", peer_id(1)) == dht_key("nodes", peer_id(1).raw)


def test_kinds_and_names_do_not_run_into_each_other() -> None:
    assert dht_key("ab", "c") != dht_key("a", "bc")
    assert dht_key("actor", "x") != dht_key("service", "x")


def test_nobody_gets_a_node_id_by_naming_a_key_after_a_peer() -> None:
    assert dht_key("node", peer_id(1)) != node_id(peer_id(1))


def test_well_formed_addresses_are_kept_in_order_and_once() -> None:
    said = ["10.0.0.1:4001", "[::1]:4001", "peer.example:1", "10.0.0.1:4001"]
    assert clean_addresses(said) == ("10.0.0.1:4001", "[::1]:4001", "peer.example:1")


@pytest.mark.parametrize(
    "bad",
    ["", ":1", "host", "host:", "host:0", "host:65536", "host:x", "a b:1", "h\n:1", "é:1", "h:²"],
)
def test_malformed_addresses_are_dropped(bad: str) -> None:
    assert clean_addresses([bad]) == ()


def test_addresses_are_bounded_in_length_and_number() -> None:
    assert clean_addresses(["h" * 200 + ":1"]) == ()
    assert len(clean_addresses(f"h{number}:1" for number in range(100))) == MAX_ADDRESSES
