"""Keeps a peer reachable through relays: a few reservations, renewed, replaced when lost."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

import anyio
import msgspec

from lattica.config import ReachConfig
from lattica.errors import LatticaError
from lattica.identity import grants
from lattica.identity.keys import PeerId
from lattica.identity.tickets import Contact
from lattica.link.endpoint import Endpoint
from lattica.path import addresses as text
from lattica.path.interface import VirtualAddress
from lattica.path.relay import Leg
from lattica.path.scopes import Scope, scope_of
from lattica.reach.legs import Legs
from lattica.reach.messages import SERVICE, Reserved
from lattica.reach.service import ReachService
from lattica.rpc import Rpc

log = logging.getLogger("lattica.reach")
FindRelays = Callable[[], Awaitable[Sequence[Contact]]]


class Held(msgspec.Struct):
    """A reservation. Times in seconds of the event loop's clock."""

    peer: PeerId
    addresses: tuple[str, ...]
    renew_at: float
    until: float
    load: float  # as of when it was made, like the round trip
    rtt: float
    unkeep: Callable[[], None]

    @property
    def cost(self) -> float:
        """What a way through it costs: nearer and less loaded relays are better."""
        return (self.rtt + 0.005) * (1.0 + 2.0 * self.load)


class RelayKeeper:
    """Holds up to `ReachConfig.relays` reservations while `is_needed()`."""

    def __init__(
        self,
        rpc: Rpc,
        endpoint: Endpoint,
        legs: Legs,
        config: ReachConfig,
        *,
        find: FindRelays,
        is_needed: Callable[[], bool],
        changed: Callable[[tuple[str, ...]], None],
        now: Callable[[], float],
    ) -> None:
        """`find` names peers that may relay; `changed` gets the addresses that stand now."""
        self._rpc = rpc
        self._endpoint = endpoint
        self._legs = legs
        self._config = config
        self._find = find
        self._is_needed = is_needed
        self._changed = changed
        self._now = now
        self._held: dict[PeerId, Held] = {}
        self._unwilling: dict[PeerId, float] = {}  # and until when they are not asked again
        self._wake = anyio.Event()

    @property
    def held(self) -> tuple[Held, ...]:
        """Reservations that stand, best first."""
        return tuple(sorted(self._held.values(), key=lambda each: each.cost))

    @property
    def addresses(self) -> tuple[str, ...]:
        """`relay:PEER@ADDRESS` of each, first one of every relay."""
        first: list[str] = []
        more: list[str] = []
        for held in self.held:
            ways = [text.join_relay(str(held.peer), each) for each in held.addresses]
            first += ways[:1]
            more += ways[1:]
        return (*first, *more)

    def admit(self, source: VirtualAddress) -> tuple[Leg, str] | None:
        """See `RelayPath.admit`: frames from a relay where this peer has a reservation."""
        for held in self._held.values():
            leg = self._legs.find(held.peer)
            if leg is not None and leg.has(source):
                return leg, text.join_relay(str(held.peer), held.addresses[0])
        return None

    def hurry(self) -> None:
        """Something has changed: look now."""
        self._wake.set()

    def awake(self, slept: float) -> None:
        """This machine was asleep for `slept` seconds: reservations may be over."""
        now = self._now()
        for held in self._held.values():
            held.renew_at = now
            held.until -= slept
        self.hurry()

    def peer_down(self, peer: PeerId) -> None:
        """The link to a peer is gone, and with it what it forwarded."""
        if self._drop(peer):
            self.hurry()

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                if self._is_needed():
                    await self._renew()
                    if len(self._held) < self._config.relays:
                        await self._seek()
                else:
                    for peer in tuple(self._held):
                        self._drop(peer)
                missing = self._is_needed() and len(self._held) < self._config.relays
                pause = self._config.seek_every if missing else self._config.renew_check
                self._wake = anyio.Event()
                with anyio.move_on_after(pause):
                    await self._wake.wait()
        finally:
            for held in self._held.values():
                held.unkeep()

    # ------------------------------------------------------------------ inside

    async def _renew(self) -> None:
        now = self._now()
        for held in tuple(self._held.values()):
            if now >= held.renew_at and not await self._ask(held.peer) and now >= held.until:
                self._drop(held.peer)

    async def _seek(self) -> None:
        """Ask those nearby first: linked peers, then whom the mesh names."""
        linked = [Contact(link.remote.peer, ()) for link in self._endpoint.current()]
        for contact in linked:
            if len(self._held) >= self._config.relays:
                return
            await self._try(contact)
        try:
            named = await self._find()
        except LatticaError as error:
            log.info("no relays were found: %s", error)
            return
        for contact in named[: self._config.relay_tries]:
            if len(self._held) >= self._config.relays:
                return
            await self._try(contact)

    async def _try(self, contact: Contact) -> None:
        peer, now = contact.peer, self._now()
        if peer == self._endpoint.local or peer in self._held:
            return
        if self._unwilling.get(peer, 0.0) > now:
            return
        if not await self._ask(peer, contact.addresses):
            if len(self._unwilling) > 1024:
                self._unwilling.clear()
            self._unwilling[peer] = now + self._config.unwilling_for

    async def _ask(self, peer: PeerId, addresses: Sequence[str] = ()) -> bool:
        timeout = self._config.call_timeout
        try:
            with anyio.fail_after(2 * timeout):
                direct = [each for each in addresses if not text.is_relay(each)]
                link = await self._endpoint.connect(peer, direct)
                if not grants.allows(link.remote.scopes, grants.RELAY):
                    return False  # not trusted with it by the mesh
                if self._legs.find(peer) is None:
                    return False  # reached through a relay itself
                client = self._rpc.client(peer, ReachService, SERVICE, timeout=timeout)
                reserved = await client.reserve()
        except (LatticaError, TimeoutError) as error:
            log.debug("%s does not relay: %s", peer.short, error)
            return False
        where = _reachable(reserved, link.address if link.is_dialer else "")
        if not where:
            return False
        self._hold(peer, where, reserved, link.rtt)
        return True

    def _hold(self, peer: PeerId, where: Sequence[str], reserved: Reserved, rtt: float) -> None:
        now = self._now()
        seconds = min(max(reserved.seconds, self._config.min_reservation), 3600.0)
        known = self._held.get(peer)
        unkeep = self._endpoint.keep(peer) if known is None else known.unkeep
        held = Held(
            peer, tuple(where), now + seconds / 2, now + seconds, reserved.load, rtt, unkeep
        )
        if known is not None and known.addresses == held.addresses:
            # Others are told of what is new only: the figures, and an order by them, change often.
            known.renew_at, known.until = held.renew_at, held.until
            return
        self._held[peer] = held
        log.info("reachable through the relay %s at %s", peer.short, where[0])
        self._changed(self.addresses)

    def _drop(self, peer: PeerId) -> bool:
        held = self._held.pop(peer, None)
        if held is None:
            return False
        held.unkeep()
        self._changed(self.addresses)
        return True


def _reachable(reserved: Reserved, dialled: str) -> list[str]:
    """Where others reach the relay: its first UDP address and its first TCP one."""
    kept: dict[str, str] = {}
    for address in (dialled, *reserved.addresses):
        if not address or text.is_relay(address):
            continue
        scheme, rest = text.split_scheme(address)
        try:
            host, port = text.split(rest)
        except LatticaError:
            continue
        if scope_of(host) is Scope.EVERYBODY and port:
            kept.setdefault(scheme, address)
    return sorted(kept.values(), key=lambda each: each != kept.get(text.UDP))
