"""The owner's side of leases: ask the best peer, take a no, ask the next; renew; give back."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable
from typing import Literal

import anyio.abc
import msgspec

from lattica.actors.directory import Directory
from lattica.actors.host_service import HostService
from lattica.actors.messages import LeaseId, LeaseRequest, NodeInfo, Requirements
from lattica.actors.placement import (
    Usage,
    could_run,
    describe,
    describe_offers,
    needs,
    rank,
)
from lattica.clock import Clock
from lattica.config import ActorsConfig
from lattica.errors import CallLostError, LatticaError, LinkError, NoPlacementError
from lattica.identity import grants
from lattica.identity.keys import PeerId
from lattica.rpc import Rpc
from lattica.rpc.doubts import Doubts

LEASE_TIMEOUT = 30.0  # seconds; a host may start a worker before it says yes
CALL_TIMEOUT = 5.0
GRACE = 2.0  # seconds in which a peer that just joined may still publish what it offers
RETRY_LEAST, RETRY_MOST = 0.02, 0.5  # seconds between rounds of asking busy peers

Purpose = Literal["task", "actor"]
log = logging.getLogger("lattica.actors")


class Lease(msgspec.Struct, eq=False):
    """A host's promise to run something of ours."""

    peer: PeerId
    lease: LeaseId
    requirements: Requirements
    valid: bool = True


class Leasing:
    """Finds hosts for work and keeps the leases alive.

    Attributes:
        doubts: of hosts that nothing is heard of, whose work goes elsewhere.
    """

    def __init__(
        self,
        rpc: Rpc,
        directory: Directory,
        doubts: Doubts,
        config: ActorsConfig,
        clock: Clock,
        tasks: anyio.abc.TaskGroup,
    ) -> None:
        self._rpc = rpc
        self._directory = directory
        self.doubts = doubts
        self._config = config
        self._clock = clock
        self._tasks = tasks
        self._leases: set[Lease] = set()
        self._usage: dict[PeerId, Usage] = defaultdict(Usage)
        self._turn = 0
        self._freed = asyncio.Event()

    def host(self, peer: PeerId, timeout: float = CALL_TIMEOUT) -> HostService:
        """The host service of a peer."""
        return self._rpc.client(peer, HostService, "host", timeout=timeout)

    async def acquire(
        self,
        requirements: Requirements,
        purpose: Purpose,
        name: str,
        *,
        wanted: Callable[[], bool] = lambda: True,
        avoid: frozenset[PeerId] = frozenset(),
    ) -> Lease | None:
        """A lease on the best peer that says yes; waits while all are busy.

        Returns None as soon as `wanted()` is false. Peers of `avoid` are asked last.

        Raises:
            NoPlacementError: no peer of the mesh offers what is asked for.
        """
        started = self._clock.monotonic()
        warn_at = started + self._config.place_timeout
        pause = RETRY_LEAST
        reasons: dict[str, str] = {}
        while wanted():
            nodes = await self._directory.nodes()
            able = [node for node in nodes if could_run(node, requirements)]
            if not able:
                if self._clock.monotonic() - started >= GRACE:
                    raise NoPlacementError(
                        f"no peer offers what {name} asks for ({describe(requirements)}): "
                        f"{describe_offers(nodes)}"
                    )
                await self._directory.nodes(0.0)
                await self._pause(0.2)
                continue
            freed = self._freed
            hint = pause
            for node in self._order(able, requirements, avoid):
                if not wanted():
                    return None
                lease, reason, retry_after = await self._offer(node, requirements, purpose, name)
                if lease is not None:
                    return lease
                reasons[node.name or node.peer.short] = reason
                hint = max(hint, retry_after) if retry_after else hint
            now = self._clock.monotonic()
            if now >= warn_at:
                warn_at = now + self._config.place_timeout
                log.warning(
                    "%s waits since %.0f s for %s: %s",
                    name,
                    now - started,
                    describe(requirements),
                    "; ".join(f"{peer}: {reason}" for peer, reason in reasons.items()),
                )
            await self._pause(min(hint, RETRY_MOST), freed)
            pause = min(pause * 1.5, RETRY_MOST)
        return None

    def release(self, lease: Lease) -> None:
        """Give a lease back."""
        if self._forget(lease):
            self._tasks.start_soon(self._release, lease)

    def lost(self, lease: Lease, *, peer_too: bool = False) -> None:
        """The host does not know the lease any more, or (`peer_too`) is gone."""
        self._forget(lease)
        if peer_too:
            self._directory.mark_dead(lease.peer)

    async def renew_forever(self) -> None:
        """Renew all leases, three times within each one's time to live."""
        while True:
            await asyncio.sleep(self._config.lease_ttl / 3)
            for lease in tuple(self._leases):
                self._tasks.start_soon(self._renew, lease)

    async def close(self) -> None:
        """Give all leases back."""
        leases, self._leases = self._leases, set()
        await asyncio.gather(*(self._release(lease) for lease in leases))

    def _order(
        self, able: list[NodeInfo], requirements: Requirements, avoid: frozenset[PeerId]
    ) -> list[NodeInfo]:
        self._turn += 1
        ranked = rank(able, requirements, self._usage, self._directory.rtts(), self._turn)
        return sorted(ranked, key=lambda node: node.peer in avoid)

    async def _offer(
        self, node: NodeInfo, requirements: Requirements, purpose: Purpose, name: str
    ) -> tuple[Lease | None, str, float]:
        peer = node.peer
        asked = needs(requirements)
        usage = self._usage[peer]
        usage.add(asked, 1)  # counted while we ask, so that a burst does not flock to one peer
        lease = None
        try:
            if peer != self._rpc.local:
                link = await self._directory.reach(peer)
                # What we are given back is unpickled here, so the host needs a grant as well.
                if grants.HOST not in link.remote.scopes:
                    return None, "holds no grant to host work", 0.0
            with self.doubts.waiting(peer):
                reply = await self.host(peer, LEASE_TIMEOUT).lease(
                    LeaseRequest(requirements, purpose, name)
                )
            if reply.lease is None:
                return None, reply.reason or "declined", reply.retry_after
            lease = Lease(peer, reply.lease, requirements)
            self._leases.add(lease)
            return lease, "", 0.0
        except (LinkError, CallLostError) as error:
            self._directory.mark_dead(peer)
            return None, str(error), 0.0
        except LatticaError as error:
            return None, str(error), RETRY_MOST
        finally:
            if lease is None:
                usage.add(asked, -1)

    def _forget(self, lease: Lease) -> bool:
        lease.valid = False
        if lease not in self._leases:
            return False
        self._leases.discard(lease)
        self._usage[lease.peer].add(needs(lease.requirements), -1)
        return True

    async def _release(self, lease: Lease) -> None:
        try:
            await self.host(lease.peer).release(lease.lease)
        except LatticaError as error:
            log.debug("a lease on %s was not released: %s", lease.peer.short, error)
        # Wake those that wait for room only now that the host has it.
        freed, self._freed = self._freed, asyncio.Event()
        freed.set()

    async def _renew(self, lease: Lease) -> None:
        try:
            known = await self.host(lease.peer).renew(lease.lease)
        except LatticaError:
            return  # whoever runs something on it learns from its own call
        if not known:
            self.lost(lease)

    async def _pause(self, seconds: float, freed: asyncio.Event | None = None) -> None:
        if freed is None:
            await asyncio.sleep(seconds)
            return
        try:
            async with asyncio.timeout(seconds):
                await freed.wait()
        except TimeoutError:
            return
