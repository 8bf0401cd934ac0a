"""Keeps ports mapped by UPnP. Needs the extra `nat`; loaded only where nothing else works."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence

import anyio
from async_upnp_client.client import UpnpRequester

from lattica.config import PortMapConfig
from lattica.errors import PortMapError
from lattica.path.portmap import upnp_search
from lattica.path.portmap.mapping import FOREVER, Mapping, Protocol, Want
from lattica.path.portmap.network import Network, Route
from lattica.path.portmap.upnp_gateway import (
    CONFLICT,
    MAYBE_ONLY_PERMANENT,
    SAME_PORT,
    RefusedError,
    UpnpGateway,
)
from lattica.path.portmap.upnp_http import GatewayRequester

_TRIES = 4  # ports that are tried where all others are somebody else's
_FAILURES = 3  # rounds without a proper answer, then the gateway counts as gone
_FIRST_FREE = 1024  # ports below are not asked for by chance


class _Lease:
    """A wanted port and what is known of it. Times in seconds of the event loop's clock."""

    def __init__(self, want: Want) -> None:
        self.want = want
        self.port = want.port  # outside: mapped, or wished for
        self.lifetime = 0.0  # 0: not mapped
        self.due = 0.0


class UpnpKeeper:
    """See `lattica.path.portmap.keeper.Keeper`. By UPnP-IGD, versions 1 and 2."""

    def __init__(
        self,
        route: Route,
        wants: Sequence[Want],
        network: Network,
        *,
        config: PortMapConfig,
        counters: Counter[str],
        changed: Callable[[], None],
        requester: UpnpRequester | None = None,
    ) -> None:
        """`changed` is called whenever `mappings` may have changed."""
        self._route = route
        self._network = network
        self._config = config
        self._counters = counters
        self._changed = changed
        self._requester = requester
        self._chance = random.Random()
        self._leases = [_Lease(want) for want in wants]
        self._gateway: UpnpGateway | None = None
        self._outside = ""
        self._is_timed = True  # the gateway takes lifetimes

    @property
    def mappings(self) -> tuple[Mapping, ...]:
        return tuple(
            Mapping(
                protocol=Protocol.UPNP,
                want=lease.want,
                host=self._outside,
                port=lease.port,
                lifetime=lease.lifetime,
                gateway=self._route.gateway,
            )
            for lease in self._leases
            if lease.lifetime and self._outside
        )

    async def run(self) -> str:
        try:
            self._gateway = await self._find()
            self._outside = await self._gateway.outside()
        except (PortMapError, OSError) as error:
            return f"upnp: {error}"
        failures = 0
        while True:
            try:
                await self._renew(self._gateway)
                failures = 0
            except PortMapError as error:
                failures += 1
                if failures >= _FAILURES or not self.mappings:
                    return f"upnp: {error}"
            self._changed()
            # The owner ends it.
            await anyio.sleep(self._config.check_every)
            failures += not await self._check(self._gateway)

    async def release(self) -> None:
        gateway, mapped = self._gateway, [each for each in self._leases if each.lifetime]
        for lease in mapped:
            lease.lifetime = 0.0
            try:
                if gateway is not None:
                    await gateway.remove(lease.want, outside=lease.port)
            except PortMapError:
                self._counters["portmap:not_removed"] += 1

    # ------------------------------------------------------------------ inside

    async def _find(self) -> UpnpGateway:
        location = await upnp_search.find(self._route, self._network, self._config, self._counters)
        if location is None:
            raise PortMapError("no answer")
        if self._requester is not None:
            return await UpnpGateway.describe(self._requester, location)
        requester = GatewayRequester(self._route, self._config)
        gateway = await UpnpGateway.describe(requester, location)
        requester.left = None  # from here on only we decide how many are made
        return gateway

    async def _check(self, gateway: UpnpGateway) -> bool:
        """Have what was lost mapped again; False: the gateway did not answer."""
        try:
            outside = await gateway.outside()
            for lease in self._leases:
                has = await gateway.has(lease.want, self._route.local, outside=lease.port)
                if not has or outside != self._outside:
                    lease.due = 0.0
        except PortMapError:
            return False
        self._outside = outside
        return True

    async def _renew(self, gateway: UpnpGateway) -> None:
        """Map what is due. With some mapped, those that are refused are tried again later."""
        refused: PortMapError | None = None
        for lease in self._leases:
            if lease.due > _now():
                continue
            try:
                await self._map(gateway, lease)
            except RefusedError as error:
                refused = error
                lease.lifetime = 0.0
                lease.due = _now() + self._config.min_refusal
        if refused is not None and not self.mappings:
            raise refused

    async def _map(self, gateway: UpnpGateway, lease: _Lease) -> None:
        is_renewal = lease.lifetime > 0
        lifetime = self._config.lifetime if self._is_timed else 0
        if gateway.can_choose and not is_renewal and lifetime:
            try:
                lease.port = await gateway.add_any(
                    lease.want, self._route.local, outside=lease.port, lifetime=lifetime
                )
                return self._mapped(lease, lifetime)
            except RefusedError:
                pass  # some that know the action never grant it: the older one is tried
        for _ in range(_TRIES):
            try:
                await self._add(gateway, lease)
                return None
            except RefusedError as error:
                if error.code == SAME_PORT and lease.port != lease.want.port:
                    lease.port = lease.want.port
                elif error.code == CONFLICT:
                    lease.port = self._chance.randrange(_FIRST_FREE, 65_536)
                else:
                    raise
        raise RefusedError(CONFLICT)

    async def _add(self, gateway: UpnpGateway, lease: _Lease) -> None:
        """Map one port, for ever where the gateway knows nothing else."""
        lifetime = self._config.lifetime if self._is_timed else 0
        try:
            await gateway.add(lease.want, self._route.local, outside=lease.port, lifetime=lifetime)
        except RefusedError as error:
            if not lifetime or error.code not in MAYBE_ONLY_PERMANENT:
                raise
            lifetime = 0
            await gateway.add(lease.want, self._route.local, outside=lease.port, lifetime=0)
            self._is_timed = False
        self._mapped(lease, lifetime)

    def _mapped(self, lease: _Lease, lifetime: int) -> None:
        lease.lifetime = float(lifetime) if lifetime else FOREVER
        # What is kept for ever is asked for again as well: a router that was reset forgot it.
        lease.due = _now() + (lifetime or self._config.lifetime) / 2


def _now() -> float:
    return asyncio.get_running_loop().time()
