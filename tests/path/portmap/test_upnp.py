"""What a peer does where a router's UPnP knows less than others, or refuses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import anyio
import pytest

pytest.importorskip("async_upnp_client")

from lattica.config import PortMapConfig
from lattica.path.portmap import upnp_search
from lattica.path.portmap.mapping import FOREVER, Transport, Want
from lattica.path.portmap.network import Route
from lattica.path.portmap.upnp import UpnpKeeper
from lattica.path.portmap.upnp_gateway import (
    CONFLICT,
    ONLY_PERMANENT,
    SAME_PORT,
    RefusedError,
    UpnpGateway,
)
from lattica.virtual_loop import VirtualLoop

pytestmark = pytest.mark.anyio
CONFIG = PortMapConfig()
WANT = Want(Transport.UDP, 4242)
ROUTE = Route(gateway="192.168.1.1", local="192.168.1.2")
OUTSIDE = "198.18.0.9"


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualLoop}


class Router(UpnpGateway):
    """A gateway whose `refuses` says which UPnP error an attempt to map gets; 0: none."""

    def __init__(
        self, refuses: Callable[[int, int], int] = lambda port, lifetime: 0, *, any_code: int = 0
    ) -> None:
        self.can_choose = any_code >= 0
        self._refuses = refuses
        self._any_code = any_code
        self.asked: list[tuple[str, int, int]] = []  # how, port, lifetime
        self.mapped: dict[int, int] = {}  # lifetimes by port
        self.address = OUTSIDE

    async def outside(self) -> str:
        return self.address

    async def add(self, want: Want, client: str, *, outside: int, lifetime: int) -> None:
        self._grant("add", outside, lifetime, self._refuses(outside, lifetime))

    async def add_any(self, want: Want, client: str, *, outside: int, lifetime: int) -> int:
        self._grant("any", outside, lifetime, self._any_code)
        return outside

    async def has(self, want: Want, client: str, *, outside: int) -> bool:
        return outside in self.mapped

    async def remove(self, want: Want, *, outside: int) -> None:
        del self.mapped[outside]

    def _grant(self, how: str, port: int, lifetime: int, code: int) -> None:
        self.asked.append((how, port, lifetime))
        if code:
            raise RefusedError(code)
        self.mapped[port] = lifetime


class Nobody:
    """Stands for a network and for an HTTP client that are not asked."""


@pytest.fixture
def keeper(monkeypatch: pytest.MonkeyPatch) -> Callable[[Router], UpnpKeeper]:
    async def find(*_: object) -> str:
        return "http://192.168.1.1/description"

    def made(router: Router) -> UpnpKeeper:
        async def describe(*_: object) -> Router:
            return router

        monkeypatch.setattr(upnp_search, "find", find)
        monkeypatch.setattr(UpnpGateway, "describe", describe)
        nobody: Any = Nobody()
        return UpnpKeeper(
            ROUTE,
            [WANT],
            nobody,
            config=CONFIG,
            counters=Counter(),
            changed=lambda: None,
            requester=nobody,
        )

    return made


Keepers = Callable[[Router], UpnpKeeper]


async def run_for(keeper: UpnpKeeper, seconds: float) -> str:
    """What it ended with, if it did."""
    with anyio.move_on_after(seconds):
        return await keeper.run()
    return ""


async def test_a_router_that_chooses_ports_is_asked_once(keeper: Keepers) -> None:
    router = Router()
    it = keeper(router)
    assert await run_for(it, 30.0) == ""
    assert router.asked == [("any", 4242, CONFIG.lifetime)]
    (mapping,) = it.mappings
    assert (mapping.host, mapping.port, mapping.lifetime) == (OUTSIDE, 4242, CONFIG.lifetime)


async def test_where_choosing_is_never_granted_the_older_action_is_tried(keeper: Keepers) -> None:
    router = Router(any_code=606)
    assert await run_for(keeper(router), 30.0) == ""
    assert [how for how, _, _ in router.asked] == ["any", "add"]
    assert router.mapped == {4242: CONFIG.lifetime}


@pytest.mark.parametrize("code", [ONLY_PERMANENT, 402, 501])
async def test_a_router_that_only_maps_for_ever_does_so(keeper: Keepers, code: int) -> None:
    router = Router(lambda _, lifetime: code if lifetime else 0, any_code=-1)
    it = keeper(router)
    assert await run_for(it, 30.0) == ""
    assert router.mapped == {4242: 0}
    assert it.mappings[0].lifetime == FOREVER
    await it.release()
    assert not router.mapped  # also what would stay for ever goes with the peer


async def test_another_port_is_taken_where_somebody_has_ours(keeper: Keepers) -> None:
    router = Router(lambda port, _: CONFLICT if port == 4242 else 0, any_code=-1)
    it = keeper(router)
    assert await run_for(it, 30.0) == ""
    (mapping,) = it.mappings
    assert mapping.port != 4242
    assert router.mapped == {mapping.port: CONFIG.lifetime}


async def test_a_router_where_all_ports_are_taken_is_not_asked_for_ever(keeper: Keepers) -> None:
    router = Router(lambda _port, _lifetime: CONFLICT, any_code=-1)
    assert "718" in await run_for(keeper(router), 30.0)
    assert len(router.asked) == 4


async def test_the_same_port_outside_is_taken_where_no_other_may_be(keeper: Keepers) -> None:
    taken = True

    def refuses(port: int, _: int) -> int:
        nonlocal taken
        if port != 4242:
            taken = False  # whoever had ours has gone meanwhile
            return SAME_PORT
        return CONFLICT if taken else 0

    router = Router(refuses, any_code=-1)
    assert await run_for(keeper(router), 30.0) == ""
    assert router.mapped == {4242: CONFIG.lifetime}


async def test_what_a_router_forgot_is_mapped_again_and_its_new_address_told(
    keeper: Keepers,
) -> None:
    router = Router(any_code=-1)
    it = keeper(router)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(it.run)
        await anyio.sleep(1.0)
        router.mapped.clear()
        router.address = "198.18.0.10"
        await anyio.sleep(2 * CONFIG.check_every)
        assert router.mapped == {4242: CONFIG.lifetime}
        assert it.mappings[0].host == "198.18.0.10"
        tasks.cancel_scope.cancel()
