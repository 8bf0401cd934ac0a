"""Any peer reaches any peer: relays first, direct ways behind them, for the links of one peer."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

import anyio
from anyio.abc import TaskGroup

from lattica.clock import elapsed
from lattica.config import Config
from lattica.errors import RelayError
from lattica.identity.keys import PeerId
from lattica.identity.tickets import Contact
from lattica.link.endpoint import Endpoint
from lattica.link.interface import Link
from lattica.link.quic_link import QuicLink
from lattica.path.combined import CombinedPath
from lattica.path.interface import VirtualAddress
from lattica.reach.attempts import Attempts
from lattica.reach.candidates import Candidates
from lattica.reach.detours import Detours
from lattica.reach.forwarding import Forwarder
from lattica.reach.knocking import Knocking
from lattica.reach.legs import Legs, open_link
from lattica.reach.messages import (
    MAX_ADDRESSES,
    SERVICE,
    News,
    Opening,
    Order,
    Reserved,
    Seen,
)
from lattica.reach.puncher import Puncher
from lattica.reach.relays import FindRelays, Held, RelayKeeper
from lattica.reach.report import Filtering, NatReport
from lattica.reach.rescue import Rescue
from lattica.reach.service import ReachService
from lattica.reach.silence import Silence
from lattica.reach.upgrades import Upgrades
from lattica.reach.waking import Waking
from lattica.rpc import Rpc

log = logging.getLogger("lattica.reach")

CHECK_EVERY = 1.0  # seconds between looks at addresses and at what is forwarded


class Reach:
    """Makes a peer reachable, and reaches others. Use as an async context manager.

    A peer whose sockets are bound to this machine only answers others, and does nothing else.

    Attributes:
        woke: called when this machine was asleep for a while.
    """

    def __init__(
        self,
        rpc: Rpc,
        endpoint: Endpoint,
        path: CombinedPath,
        *,
        config: Config | None = None,
        relay: bool | None = None,
        find_relays: FindRelays | None = None,
        configured: Sequence[str] = (),
        elapsed: Callable[[], float] = elapsed,
    ) -> None:
        """`relay` says whether this peer relays for others; None: if strangers can reach it.

        `find_relays()` names peers that may be relays. `configured` are addresses at which this
        peer is known to be reachable, such as a port that was forwarded by hand. `elapsed()` are
        seconds that count also while the machine sleeps.
        """
        settings = config or Config()
        self._config = settings.reach
        self._confirm_every = settings.nat.confirm_every
        self._rpc = rpc
        self._endpoint = endpoint
        self._path = path
        self._relay = relay
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: TaskGroup | None = None
        self._published: tuple[str, ...] = ()
        self._waking = Waking(elapsed, CHECK_EVERY)
        self.counters: Counter[str] = Counter()
        self.woke: Callable[[], None] | None = None
        self._legs = Legs(endpoint)
        self.candidates = Candidates(
            lambda: endpoint.addresses, self._config, settings.nat, now=self._now
        )
        self.candidates.configured = tuple(configured)
        self._detours = Detours(rpc, endpoint, path.relay, self._legs, self._config)
        self._knocking = Knocking(rpc, path, self.candidates, self._config, now=self._now)
        self._silence = Silence(
            rpc,
            path,
            self.candidates,
            self._config,
            relay_links=self._relay_links,
            now=self._now,
        )
        self.upgrades = Upgrades(
            self.candidates,
            Attempts(
                rpc,
                self.candidates,
                Puncher(path, self.candidates, self._config, settings.punch, now=self._now),
                self._config,
                again_after=settings.punch.again_after,
            ),
            Rescue(self._detours, self._config, now=self._now),
            self._config,
            relay_links=self._relay_links,
            let_in=self._knocked,
            now=self._now,
        )
        self._keeper = RelayKeeper(
            rpc,
            endpoint,
            self._legs,
            self._config,
            find=find_relays or _nobody,
            is_needed=lambda: not self.candidates.is_quiet and not self.is_relay,
            changed=self._relays_changed,
            now=self._now,
        )
        self.forwarder = Forwarder(
            path,
            self._legs.find,
            settings.relay,
            counters=self.counters,
            now=self._now,
            whose=self._legs.whose,
        )

    async def __aenter__(self) -> Reach:
        self._loop = asyncio.get_running_loop()
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._rpc.register(SERVICE, ReachService(self))
        self._unsubscribe = self._endpoint.subscribe(self._link_changed)
        for link in self._endpoint.current():
            if isinstance(link, QuicLink):
                self._legs.link_up(link)
        self._detours.start(self._tasks)
        self.upgrades.start(self._tasks)
        self._endpoint.detour = self._detours
        self._endpoint.on_dial = self._contacted
        self._path.relay.admit = self._keeper.admit
        self._path.relay.forward = self.forwarder.forward
        if not self.candidates.is_quiet:
            self._tasks.start_soon(self._keeper.run)
            self._tasks.start_soon(self._look)
            self._tasks.start_soon(self._silence.run)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        assert self._tasks is not None
        self._endpoint.detour = self._endpoint.on_dial = None
        self._path.relay.admit = self._path.relay.forward = None
        self._unsubscribe()
        self._rpc.unregister(SERVICE)
        self._detours.stop()
        self.upgrades.stop()
        self._tasks.cancel_scope.cancel()
        return await self._tasks.__aexit__(kind, error, traceback)

    # ------------------------------------------------------------------ for users

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where others can dial this peer, best first."""
        return self.candidates.published()

    @property
    def report(self) -> NatReport:
        """What is known of the network between this peer and others."""
        return self.candidates.report

    @property
    def relays(self) -> tuple[Held, ...]:
        """The relays that keep this peer reachable."""
        return self._keeper.held

    @property
    def is_relay(self) -> bool:
        """Whether this peer forwards for others."""
        if self._relay is not None:
            return self._relay
        return not self.candidates.is_quiet and self.report.filtering is Filtering.OPEN

    def mapped(self, addresses: Sequence[str]) -> None:
        """The home's router keeps these open for this peer."""
        self.candidates.mapped = tuple(addresses)
        self.upgrades.changed()

    def refresh(self) -> None:
        """The network may have changed: look for relays and ways now."""
        self._keeper.hurry()
        self.upgrades.changed()

    # ------------------------------------------------------------ for the service

    def exchanged(self, peer: PeerId, theirs: News) -> News:
        """See `Answers`."""
        self.upgrades.exchanged(peer, theirs)
        return self.candidates.news()

    def ordered(self, peer: PeerId, order: Order) -> None:
        """See `Answers`."""
        self.upgrades.ordered(peer, order)

    def reserve(self, peer: PeerId) -> Reserved:
        """See `Answers`."""
        if not self.is_relay:
            raise RelayError("this peer does not relay; ask one that strangers can reach")
        seconds = self.forwarder.reserve(peer)
        return Reserved(seconds, self.forwarder.load.share, self.candidates.direct())

    def open_session(self, peer: PeerId, opening: Opening) -> None:
        """See `Answers`."""
        self.forwarder.open(opening.session, peer, opening.target)

    def seen(self, peer: PeerId, target: PeerId) -> Seen:
        """See `Answers`."""
        if not self.forwarder.joins(peer, target):
            raise RelayError("no session joins the two; a relay tells of nobody else")
        return Seen(self._legs.hosts(target)[:MAX_ADDRESSES])

    async def knock(self, peer: PeerId) -> None:
        """See `Answers`."""
        with self._refusals("knock"):
            await self._knocking.knock(peer, open_link(self._endpoint, peer))

    async def call(self, peer: PeerId) -> None:
        """See `Answers`."""
        with self._refusals("call"):
            await self._silence.call(peer, open_link(self._endpoint, peer))

    def close_session(self, peer: PeerId, session: bytes) -> None:
        """See `Answers`."""
        self.forwarder.close(session, peer)

    # ------------------------------------------------------------------ inside

    @contextmanager
    def _refusals(self, what: str) -> Iterator[None]:
        try:
            yield
        except RelayError:
            self.counters[f"{what}:refused"] += 1
            raise

    def _now(self) -> float:
        loop = self._loop or asyncio.get_running_loop()
        return loop.time()

    def _link_changed(self, link: Link, is_up: bool) -> None:
        if not isinstance(link, QuicLink):
            return
        peer = link.remote.peer
        if is_up:
            self._legs.link_up(link)
            self._note_direction(link)
            self.upgrades.link_up(link)
        else:
            self._legs.link_down(link)
            self.upgrades.link_down(link)
            self._keeper.peer_down(peer)
            self.forwarder.peer_down(peer)

    def _note_direction(self, link: QuicLink) -> None:
        """A stranger who gets in shows that strangers can."""
        if link.current_address.scheme != "udp":
            return
        if not link.is_dialer:
            self.candidates.observer.unsolicited(link.address, self._now())

    def _contacted(self, address: str) -> None:
        self.candidates.contacted(address)

    def _knocked(self, link: QuicLink, address: VirtualAddress) -> None:
        self._knocking.let_in(link, address)
        self._silence.knocked(link, address)

    def _relay_links(self) -> list[QuicLink]:
        links = (open_link(self._endpoint, held.peer) for held in self.relays)
        return [link for link in links if link is not None]

    def _relays_changed(self, addresses: tuple[str, ...]) -> None:
        self.candidates.relays = addresses
        self.upgrades.changed()

    def _awake(self, slept: float) -> None:
        """This machine was asleep: what is left of links, mappings and relays?"""
        log.info("awake again after %.0f s", slept)
        self.counters["woke"] += 1
        for link in self._endpoint.current():
            if isinstance(link, QuicLink):
                link.vitals.on_wake(slept)
        self.upgrades.ask_anew()
        self._keeper.awake(slept)
        if self.woke is not None:
            self.woke()

    async def _look(self) -> None:
        """Until cancelled: notice new addresses, and keep the forwarder's house in order."""
        version, moves = self.candidates.observer.version, self.candidates.observer.moves
        confirm_at, silence = self._now(), float("inf")
        while True:
            await anyio.sleep(CHECK_EVERY)
            self.forwarder.check()
            if (slept := self._waking.slept()) > 0.0:
                self._awake(slept)
            if self._now() >= confirm_at:
                confirm_at = self._now() + self._confirm_every
                self.upgrades.confirm()
            if self.candidates.report.udp is None and self.upgrades.finds_udp_blocked():
                self.candidates.observer.udp_blocked()
            if self._knocking.is_due and self._tasks is not None and (links := self._relay_links()):
                self._tasks.start_soon(self._knocking.ask, links)
            if self.candidates.observer.moves != moves:
                moves = self.candidates.observer.moves
                self.upgrades.ask_anew()
            if self.candidates.observer.safe_silence < silence:
                silence = self.candidates.observer.safe_silence
                self.upgrades.rest_at_most(silence)
            if self.candidates.observer.version != version:
                version = self.candidates.observer.version
                self.refresh()


async def _nobody() -> Sequence[Contact]:
    return ()
