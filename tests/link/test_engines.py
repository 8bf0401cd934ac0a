"""The choice of engine."""

from __future__ import annotations

import sys

import pytest

from lattica.config import LinkConfig
from lattica.errors import EngineError
from lattica.link.engines import choose
from lattica.path.memory import PacketNetwork
from tests.link.helpers import ALICE, BOB, CAROL, peer


@pytest.fixture
def without_qh3(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the extra `fast` were not installed."""
    for module in ("lattica.link.engine_qh3", "lattica.link.qh3_connection"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "qh3", None)


def test_the_fast_engine_is_used_where_it_is_installed() -> None:
    assert choose("auto", {}).near.name == "qh3"


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("127.0.0.1:1", "qh3"),
        ("[::1]:1", "qh3"),
        ("a:1", "qh3"),
        ("somewhere", "qh3"),
        ("tcp:1.2.3.4:1", "qh3"),
        ("192.168.1.2:1", "aioquic"),
        ("[fe80::1%eth0]:1", "aioquic"),
        ("1.2.3.4:1", "aioquic"),
        ("100.64.0.1:1", "aioquic"),
        ("[2600::1]:1", "aioquic"),
    ],
)
def test_where_packets_are_lost_by_chance_decides(address: str, name: str) -> None:
    assert choose("auto", {}).towards(address).name == name
    assert choose("auto", {"LATTICA_QUIC": "qh3"}).towards(address).name == "qh3"
    assert choose("aioquic", {}).towards(address).name == "aioquic"


def test_without_it_the_default_engine_is_used(without_qh3: None) -> None:
    assert choose("auto", {}).near.name == "aioquic"


@pytest.mark.parametrize("name", ["aioquic", "qh3"])
def test_variable_and_configuration_force_an_engine(name: str) -> None:
    other = {"aioquic": "qh3", "qh3": "aioquic"}[name]
    assert choose("auto", {"LATTICA_QUIC": name}).near.name == name
    assert choose(name, {}).near.name == name
    assert choose(name, {"LATTICA_QUIC": other}).near.name == name  # the program knows best
    assert choose("auto", {"LATTICA_QUIC": ""}).near.name == "qh3"


def test_a_forced_engine_that_is_missing_names_the_extra(without_qh3: None) -> None:
    with pytest.raises(EngineError, match=r"LATTICA_QUIC asks.*lattica-mesh\[fast\]"):
        choose("auto", {"LATTICA_QUIC": "qh3"})
    with pytest.raises(EngineError, match="the link configuration asks"):
        choose("qh3", {})


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(EngineError, match="'quiche'; use one of auto, aioquic, qh3"):
        choose("quiche", {})


def test_an_unknown_release_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import qh3

    for module in ("lattica.link.engine_qh3", "lattica.link.qh3_connection"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(qh3, "__version__", "3.0.0")
    assert choose("auto", {}).near.name == "aioquic"
    with pytest.raises(EngineError, match="qh3 3.0.0 is installed, but 2.1.x is needed"):
        choose("qh3", {})


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["aioquic", "qh3"])
async def test_an_endpoint_tells_its_engine(name: str) -> None:
    config = LinkConfig(engine=name)
    async with peer(ALICE, PacketNetwork().path("a"), config=config) as alice:
        assert alice.endpoint.engine_name == name


@pytest.mark.anyio
async def test_each_link_tells_its_engine() -> None:
    network = PacketNetwork()
    async with peer(BOB, network.path("1.2.3.4")) as bob:
        for identity, host, theirs in ((ALICE, "127.0.0.5", "qh3"), (CAROL, "1.2.3.5", "aioquic")):
            async with peer(identity, network.path(host)) as other:
                link = await other.endpoint.connect(bob.id, bob.endpoint.addresses)
                await bob.until_linked(other)
                assert link.statistics().engine == "aioquic"
                assert bob.to(other).link.statistics().engine == theirs
