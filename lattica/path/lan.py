"""Finds members of the mesh on the same local network, by DNS service discovery (RFC 6763).

The extra `nat` brings `zeroconf`, which does the multicast. Nothing is sent where this machine has
no address of a home network, and a peer that is bound to loopback does not run this at all.
"""

from __future__ import annotations

import asyncio
import importlib.util
import ipaddress
import logging
import os
import random
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import TaskGroup

from lattica.clock import Clock
from lattica.config import LanConfig
from lattica.errors import AddressError
from lattica.identity.keys import PeerId
from lattica.path import addresses as text
from lattica.path.lan_beacon import HOUR, Beacon
from lattica.path.scopes import Scope, scope_of

if TYPE_CHECKING:
    from zeroconf.asyncio import AsyncZeroconf

log = logging.getLogger("lattica.path.lan")
TYPE = "_lattica._udp.local."
_FIELD = b"b"  # of the TXT record
OnFound = Callable[[PeerId, tuple[str, ...]], None]


class LanDiscovery:
    """An async context: inside it, this peer is announced and others are found.

    Attributes:
        status: for people.
        counters: what was dropped, and why.
    """

    def __init__(
        self,
        peer: PeerId,
        mesh: PeerId,
        addresses: Callable[[], Sequence[str]],
        on_found: OnFound,
        *,
        clock: Clock,
        config: LanConfig | None = None,
    ) -> None:
        """`addresses()` are those of the main socket; `on_found` gets a peer and where it is."""
        self._peer = peer
        self._addresses = addresses
        self._on_found = on_found
        self._clock = clock
        self._config = config or LanConfig()
        self._tasks: TaskGroup | None = None
        self._asking: set[str] = set()
        self._own = ""
        self.status = "not started"
        self.counters: Counter[str] = Counter()
        self._beacon = Beacon(mesh, self.counters)

    async def __aenter__(self) -> LanDiscovery:
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        if importlib.util.find_spec("zeroconf") is None:
            self.status = "not installed; pip install 'lattica-mesh[nat]'"
        else:
            self._tasks.start_soon(self._run)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._tasks is not None
        self._tasks.cancel_scope.cancel()
        await self._tasks.__aexit__(None, None, None)
        self._tasks = None
        self.status = "stopped"

    # ------------------------------------------------------------------ inside

    async def _run(self) -> None:
        """Until cancelled; begins anew when this machine's addresses change."""
        while True:
            hosts = self._hosts()
            if not hosts:
                self.status = "no local network here"
                await self._until_moved(hosts)
                continue
            try:
                await self._announce(hosts)
            except (OSError, RuntimeError) as error:
                self.status = f"no multicast here: {error}"
                log.info("%s", self.status)
                await anyio.sleep(self._config.retry_after)

    async def _announce(self, hosts: tuple[str, ...]) -> None:
        """Be known at `hosts`, and look for others, until these are this machine's no more."""
        from zeroconf.asyncio import AsyncServiceBrowser, AsyncZeroconf

        zeroconf = AsyncZeroconf(interfaces=list(hosts))
        try:
            browser = AsyncServiceBrowser(
                zeroconf.zeroconf, TYPE, handlers=[self._handler(zeroconf)]
            )
            try:
                while self._hosts() == hosts:
                    await self._register(zeroconf, hosts)
            finally:
                with anyio.move_on_after(self._config.leave_timeout, shield=True):
                    await browser.async_cancel()
        finally:
            with anyio.move_on_after(self._config.leave_timeout, shield=True):
                await zeroconf.async_close()  # also takes back what was announced

    async def _register(self, zeroconf: AsyncZeroconf, hosts: tuple[str, ...]) -> None:
        """Be announced under one name, for about an hour at most."""
        from zeroconf import ServiceInfo

        name, now = os.urandom(8).hex(), self._clock.time()
        port = self._port()
        self._own = f"{name}.{TYPE}"
        info = ServiceInfo(
            TYPE,
            self._own,
            port=port,
            addresses=[ipaddress.ip_address(host).packed for host in hosts],
            properties={_FIELD: self._beacon.make(self._peer, port, name, now)},
            server=f"{name}.local.",
        )
        await zeroconf.async_register_service(info)
        self.status = f"announced at {', '.join(hosts)}"
        try:
            left = HOUR - now % HOUR + random.uniform(0.0, self._config.spread)
            with anyio.move_on_after(left):
                await self._until_moved(hosts)
        finally:
            with anyio.move_on_after(self._config.leave_timeout, shield=True):
                await zeroconf.async_unregister_service(info)

    def _handler(self, zeroconf: AsyncZeroconf) -> Callable[..., None]:
        def changed(*, name: str, state_change: Any, **_: Any) -> None:
            """Called on the event loop."""
            if state_change.name == "Removed" or name == self._own or self._tasks is None:
                return
            if name in self._asking or len(self._asking) >= self._config.max_asking:
                self.counters["lan:too_many"] += name not in self._asking
                return
            self._asking.add(name)
            self._tasks.start_soon(self._ask, zeroconf, name)

        return changed

    async def _ask(self, zeroconf: AsyncZeroconf, name: str) -> None:
        """Read what goes by a name."""
        try:
            patience = int(self._config.answer_timeout * 1000)
            info = await zeroconf.async_get_service_info(TYPE, name, patience)
            if info is None:
                self.counters["lan:silent"] += 1
                return
            announcement = info.properties.get(_FIELD) or b""
            short = name.removesuffix(f".{TYPE}")
            found = self._beacon.read(announcement, short, self._clock.time())
            if found is None or found.peer == self._peer:
                return
            hosts = [each for each in info.parsed_scoped_addresses() if _is_near(each)]
            addresses = tuple(text.join(each, found.port) for each in hosts[:4])
            if addresses:
                log.info("%s is on this network at %s", found.peer.short, addresses[0])
                self._on_found(found.peer, addresses)
        except (OSError, ValueError, asyncio.InvalidStateError) as error:
            self.counters["lan:malformed"] += 1
            log.debug("%s: %s", name, error)
        finally:
            self._asking.discard(name)

    def _hosts(self) -> tuple[str, ...]:
        """This machine's IPv4 addresses inside homes: multicast is for them."""
        hosts: list[str] = []
        for address in self._addresses():
            try:
                host, _ = text.split(address)
            except AddressError:
                continue  # of another carrier
            if ":" not in host and scope_of(host) in (Scope.HOME, Scope.CABLE):
                hosts.append(host)
        return tuple(hosts[: self._config.max_interfaces])

    def _port(self) -> int:
        return text.split(self._addresses()[0])[1]

    async def _until_moved(self, hosts: tuple[str, ...]) -> None:
        while True:  # the system tells of changes to nobody
            await anyio.sleep(self._config.watch_every)
            if self._hosts() != hosts:
                return


def _is_near(host: str) -> bool:
    return scope_of(host) in (Scope.HOME, Scope.CABLE, Scope.CARRIER)
