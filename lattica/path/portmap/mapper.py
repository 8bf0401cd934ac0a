"""Keeps a peer's ports reachable through the home's router, by whatever that router speaks."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import logging
import random
from collections import Counter
from collections.abc import Callable
from types import TracebackType

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from lattica.config import PortMapConfig
from lattica.path.portmap.dialects import Dialect, NatPmpDialect, PcpDialect
from lattica.path.portmap.keeper import DatagramKeeper, Keeper
from lattica.path.portmap.mapping import Mapping, Protocol, Transport, Want
from lattica.path.portmap.network import Network, Route, SystemNetwork
from lattica.path.scopes import Scope, scope_of

log = logging.getLogger("lattica.path.portmap")
OnChange = Callable[[tuple[str, ...]], None]
_BEHIND_A_TRANSLATOR = (Scope.HOME, Scope.CARRIER)
_ANY = "0.0.0.0"
_NO_UPNP = "not installed; pip install 'lattica-mesh[nat]'"
_JITTER = 0.2  # of the pauses between looks for a gateway


class PortMapper:
    """An async context: inside it, ports are kept mapped; at its end they are removed.

    Sends nothing where there is nothing to gain: if the socket is bound to loopback or to another
    address than the one that faces the gateway, or if that address is public already.
    """

    def __init__(
        self,
        *,
        port: int,
        host: str = "0.0.0.0",
        tcp_port: int | None = None,
        on_change: OnChange | None = None,
        config: PortMapConfig | None = None,
        network: Network | None = None,
    ) -> None:
        """`host` and `port` are what the UDP socket is bound to; likewise `tcp_port`.

        `on_change` gets all addresses that everybody can reach, each time they change:
        `host:port`, `tcp:host:port`.
        """
        self._host = host
        self._wants = [Want(Transport.UDP, port)]
        if tcp_port is not None:
            self._wants.append(Want(Transport.TCP, tcp_port))
        self._on_change = on_change
        self._config = config or PortMapConfig()
        self._network = network or SystemNetwork()
        self._keeper: Keeper | None = None
        self._told: tuple[str, ...] = ()
        self._chance = random.Random()
        self._tasks: TaskGroup | None = None
        self._woken: asyncio.Event | None = None
        self._is_stale = False
        self.status = "not started"  # for people
        self.counters: Counter[str] = Counter()

    @property
    def mappings(self) -> tuple[Mapping, ...]:
        """What the gateway grants now, also where it is of no use: see `Mapping.scope`."""
        return self._keeper.mappings if self._keeper else ()

    @property
    def external_addresses(self) -> tuple[str, ...]:
        """Those of the mappings that everybody can reach: `host:port`, `tcp:host:port`."""
        return tuple(
            mapping.address for mapping in self.mappings if mapping.scope is Scope.EVERYBODY
        )

    def network_changed(self) -> None:
        """Look at the network now; it is looked at regularly in any case."""
        if self._woken is not None:
            self._woken.set()

    def ask_anew(self) -> None:
        """The router may have forgotten: this machine was asleep."""
        self._is_stale = True
        self.network_changed()

    async def __aenter__(self) -> PortMapper:
        self._woken = asyncio.Event()
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._run)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._tasks is not None
        self._tasks.cancel_scope.cancel()
        await self._tasks.__aexit__(None, None, None)
        await self._release()
        self.status = "stopped"

    # ------------------------------------------------------------------ inside

    async def _run(self) -> None:
        pause = self._config.retry_after
        before: Route | None = None
        while True:
            route = self._useful_route()
            if route != before:
                before, pause = route, self._config.retry_after
            if route is None:
                await self._until_changed(route)
                continue
            reasons = await self._try_all(route)
            if reasons is None:
                continue
            self.status = f"the router at {route.gateway} maps no ports ({'; '.join(reasons)})"
            log.info("%s", self.status)
            with anyio.move_on_after(pause * self._chance.uniform(1 - _JITTER, 1 + _JITTER)):
                await self._until_changed(route)
            pause = min(2 * pause, self._config.retry_max)

    async def _try_all(self, route: Route) -> list[str] | None:
        """Keep mappings by each way in turn, and say why none works; None: the route changed."""
        reasons: list[str] = []
        for make in (self._datagrams, self._upnp):
            self.status = f"asking the router at {route.gateway}"
            self._keeper = keeper = await make(route)
            if keeper is None:
                continue
            reason = await self._keep(keeper, route)
            if reason is None and self._useful_route() == route:
                await self._release()  # else a router that remembers takes us for another host
                return None
            if reason is None:
                # The gateway, or what it knows us by, is gone: there is nothing to remove.
                self._keeper = None
                self._changed()
                return None
            await self._release()
            reasons.append(reason)
        if self._lacks_upnp():
            reasons.append(f"upnp: {_NO_UPNP}")
        return reasons

    async def _keep(self, keeper: Keeper, route: Route) -> str | None:
        """Until it fails, and why; None: the route is another."""
        reason: str | None = None
        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                await self._until_changed(route)
                tasks.cancel_scope.cancel()

            tasks.start_soon(watch)
            reason = await keeper.run()
            tasks.cancel_scope.cancel()
        return reason

    async def _until_changed(self, route: Route | None) -> None:
        assert self._woken is not None
        while self._useful_route() == route:
            if self._is_stale:
                self._is_stale = False
                return
            self._woken.clear()
            with anyio.move_on_after(self._config.watch_every):
                await self._woken.wait()

    def _useful_route(self) -> Route | None:
        """The way out, if a mapping there can help. Sends nothing."""
        bound = scope_of(self._host)
        if bound is Scope.MACHINE:
            self.status = "off: this peer is for this machine only"
        elif not self._config.protocols:
            self.status = "off"
        elif (route := self._network.route()) is None:
            self.status = "no router is known"
        elif scope_of(route.local) not in _BEHIND_A_TRANSLATOR:
            self.status = f"not needed: {route.local} is not behind a home's router"
        elif self._host not in (_ANY, route.local):
            self.status = f"off: {self._host} does not face the router at {route.gateway}"
        else:
            return route
        return None

    async def _datagrams(self, route: Route) -> Keeper | None:
        """For PCP and NAT-PMP, whichever of them are wanted."""
        dialects: list[Dialect] = []
        if Protocol.PCP.value in self._config.protocols:
            dialects.append(PcpDialect(route.local))
        if Protocol.NAT_PMP.value in self._config.protocols:
            dialects.append(NatPmpDialect())
        if not dialects:
            return None
        return DatagramKeeper(
            route,
            self._wants,
            dialects,
            self._network,
            config=self._config,
            counters=self.counters,
            changed=self._changed,
        )

    async def _upnp(self, route: Route) -> Keeper | None:
        """For UPnP, if it is wanted and installed."""
        if Protocol.UPNP.value not in self._config.protocols or self._lacks_upnp():
            return None
        # 16 MiB of libraries, which most peers never need; loading them takes long for a loop.
        await anyio.to_thread.run_sync(importlib.import_module, "lattica.path.portmap.upnp")
        from lattica.path.portmap.upnp import UpnpKeeper

        return UpnpKeeper(
            route,
            self._wants,
            self._network,
            config=self._config,
            counters=self.counters,
            changed=self._changed,
        )

    def _lacks_upnp(self) -> bool:
        is_wanted = Protocol.UPNP.value in self._config.protocols
        return is_wanted and importlib.util.find_spec("async_upnp_client") is None

    def _changed(self) -> None:
        """Tell what is new."""
        for mapping in self.mappings:
            self.status = f"mapped by {mapping.protocol.value} at {mapping.gateway}"
            if mapping.scope is not Scope.EVERYBODY:
                self.status += f", but {mapping.host} is behind another translator (double NAT)"
        addresses = self.external_addresses
        if addresses != self._told:
            self._told = addresses
            log.info("%s: %s", self.status, ", ".join(addresses) or "no address")
            if self._on_change is not None:
                self._on_change(addresses)

    async def _release(self) -> None:
        """Have the mappings removed, in bounded time; what is not removed runs out."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            with anyio.move_on_after(self._config.release_timeout, shield=True):
                await keeper.release()
        self._changed()
