"""Looks for better ways for each link, and for any way for a link that has lost its own."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Iterable

import anyio
import msgspec
from anyio.abc import TaskGroup

from lattica.config import ReachConfig
from lattica.errors import AddressError, BusyError, LatticaError, UnknownMethodError
from lattica.identity.keys import PeerId
from lattica.link.quic_link import QuicLink
from lattica.path import addresses as text
from lattica.path.interface import VirtualAddress
from lattica.path.way import Way, WayKind
from lattica.reach.candidates import Candidates
from lattica.reach.detours import Detours
from lattica.reach.messages import SERVICE, News, Order
from lattica.reach.plan import Punch, plan
from lattica.reach.puncher import Puncher, is_direct, needs_room
from lattica.reach.report import public_endpoint
from lattica.reach.service import ReachService
from lattica.rpc import Rpc

log = logging.getLogger("lattica.reach")


class _Care:
    """What is known and under way for one link."""

    def __init__(self, link: QuicLink) -> None:
        self.link = link
        self.scope = anyio.CancelScope()
        self.theirs: News | None = None
        self.wake = anyio.Event()
        self.is_punching = False
        self.is_rescuing = False
        self.attempts = 0

    def hurry(self) -> None:
        self.wake.set()
        self.attempts = 0

    def learn(self, theirs: News) -> None:
        """The other end has told where it is: ways from there may be its own.

        At once, for the way may open before the order to punch arrives, or without one.
        """
        self.theirs = theirs
        if self.link.steering is not None:
            self.link.steering.name((*theirs.addresses, *theirs.report.public, *theirs.hosts))


class Attempt(msgspec.Struct, frozen=True):
    """One try to make a link direct, for people."""

    peer: PeerId
    punch: Punch
    is_direct: bool
    seconds: float


class Upgrades:
    """Cares for the links of one peer. The dialer of a link leads, its acceptor follows."""

    def __init__(
        self,
        rpc: Rpc,
        candidates: Candidates,
        puncher: Puncher,
        detours: Detours,
        config: ReachConfig,
        *,
        again_after: float,
        relay_links: Callable[[], Iterable[QuicLink]],
        let_in: Callable[[QuicLink, VirtualAddress], None],
        now: Callable[[], float],
    ) -> None:
        """`again_after` seconds pass before ports are guessed again for the same link.

        `relay_links()` are those to the relays that keep this peer reachable. `let_in` is told
        of knocks that came in.
        """
        self._relay_links = relay_links
        self._let_in = let_in
        self._rpc = rpc
        self._candidates = candidates
        self._puncher = puncher
        self._detours = detours
        self._config = config
        self._again_after = again_after
        self._now = now
        self._chance = random.Random()
        self._cares: dict[QuicLink, _Care] = {}
        self._tasks: TaskGroup | None = None
        self._asked = float("-inf")
        self.attempted: Callable[[Attempt], None] | None = None

    def start(self, tasks: TaskGroup) -> None:
        """Work in `tasks` from now on."""
        self._tasks = tasks

    def stop(self) -> None:
        """The tasks are about to end."""
        self._tasks = None

    # ------------------------------------------------------------ from the links

    def link_up(self, link: QuicLink) -> None:
        """A link is open."""
        steering = link.steering
        if steering is None or self._tasks is None:
            return
        care = self._cares[link] = _Care(link)
        link.rest_at_most(self._candidates.observer.safe_silence)
        steering.moved = lambda old, new: self._moved(care, old, new)
        steering.lost = lambda: self._lost(care)
        steering.suspected = self._suspected
        steering.let_in = lambda address: self._let_in(link, address)
        steering.seen = lambda way: self._seen(care, way)
        if steering.ways is not None:
            for way in steering.ways.all:
                if way.observed:
                    self._seen(care, way)
        if link.is_dialer and steering.is_watched:
            self._start(self._drive, care)

    def link_down(self, link: QuicLink) -> None:
        """It is no more."""
        care = self._cares.pop(link, None)
        if care is not None:
            care.scope.cancel()

    def rest_at_most(self, seconds: float) -> None:
        """This end's router forgets what is silent for longer."""
        for care in self._cares.values():
            care.link.rest_at_most(seconds)

    def changed(self) -> None:
        """This peer may be reached otherwise than before: tell, and try again at once."""
        for care in tuple(self._cares.values()):
            if care.link.is_dialer:
                care.hurry()
            elif care.theirs is not None:
                self._start(self._tell, care)

    def ask_anew(self) -> None:
        """This may be another network: ask all where they see this peer.

        Some may have said so already, before the change of network was noticed and all that was
        known of the last one forgotten.
        """
        for care in self._cares.values():
            ways = care.link.steering.ways if care.link.steering is not None else None
            for way in () if ways is None else ways.all:
                way.observed = ""
            care.link.probe()

    # ---------------------------------------------------------- from the service

    def exchanged(self, peer: PeerId, theirs: News) -> None:
        """The other end has told where it is."""
        care = self._care(peer)
        if care is not None:
            is_news = care.theirs is not None and care.theirs.addresses != theirs.addresses
            care.learn(theirs)
            if is_news and care.link.is_dialer:
                care.hurry()

    def ordered(self, peer: PeerId, order: Order) -> None:
        """The dialer calls for a punch.

        Raises:
            BusyError: one runs already, or too many do.
        """
        care = self._care(peer)
        if care is None or self._tasks is None:
            return
        if care.is_punching or (needs_room(order.punch) and self._puncher.is_busy):
            raise BusyError("an attempt runs already", retry_after=self._config.punch_time)
        care.learn(order.news)
        self._start(self._follow, care, order)

    # ------------------------------------------------------------------ inside

    def _start(self, work: Callable[..., Awaitable[None]], *args: object) -> None:
        if self._tasks is not None:
            self._tasks.start_soon(self._guarded, work, args)

    async def _guarded(
        self, work: Callable[..., Awaitable[None]], args: tuple[object, ...]
    ) -> None:
        """One link's trouble must not end the care for all others."""
        try:
            await work(*args)
        except Exception:
            log.exception("the care for a link failed")

    def _care(self, peer: PeerId) -> _Care | None:
        for link, care in self._cares.items():
            if link.is_open and link.remote.peer == peer:
                return care
        return None

    def _moved(self, care: _Care, old: Way, new: Way) -> None:
        log.info("the link to %s goes over %s now", care.link.remote.peer.short, care.link.address)
        if new.kind is WayKind.DIRECT:
            self._candidates.reached(care.link.path_of(new.address))
        care.wake.set()

    def _seen(self, care: _Care, way: Way) -> None:
        self._candidates.note(way, care.link.path_of(way.address))

    def confirm(self) -> None:
        """Idle links are not probed; what their other ends said holds while they live."""
        for care in self._cares.values():
            ways = care.link.steering.ways if care.link.steering is not None else None
            for way in () if ways is None else ways.all:
                self._candidates.confirm(way, care.link.path_of(way.address))

    def finds_udp_blocked(self) -> bool:
        """Whether two hosts or more answer by TCP and not by UDP, and none at all by UDP."""
        parties: set[str] = set()
        for care in self._cares.values():
            ways = care.link.steering.ways if care.link.steering is not None else None
            if ways is None:
                continue
            if any(way.kind is WayKind.DIRECT and way.is_proven for way in ways.all):
                return False
            if care.attempts and ways.way.kind is WayKind.STREAM and care.theirs is not None:
                place = public_endpoint(text.strip_scheme(care.link.path_of(ways.way.address)))
                if place and any(_is_udp_at(place[0], each) for each in care.theirs.addresses):
                    parties.add(text.party(place[0]))
        return len(parties) >= 2

    def _suspected(self) -> None:
        """Perhaps this end has another address now, and then no link knows it yet: ask all relays,
        for it may soon be they who are needed."""
        now = self._now()
        if now - self._asked < self._config.ask_pause:
            return
        self._asked = now
        for link in self._relay_links():
            link.probe()

    def _lost(self, care: _Care) -> None:
        if not care.is_rescuing:
            self._start(self._rescue, care)

    async def _drive(self, care: _Care) -> None:
        link, steering = care.link, care.link.steering
        assert steering is not None
        with care.scope:
            while link.is_open:
                care.wake = anyio.Event()
                pause = self._config.upgrade_max
                if not is_direct(steering) or care.theirs is None:
                    try:
                        pause = await self._attempt(care)
                    except UnknownMethodError:
                        return  # the other end knows no such service
                    except BusyError as error:
                        pause = error.retry_after or self._config.punch_time
                    except (LatticaError, TimeoutError) as error:
                        log.debug("no attempt with %s: %s", link.remote.peer.short, error)
                        pause = self._pause(care)
                with anyio.move_on_after(pause * self._chance.uniform(0.8, 1.2)):
                    await care.wake.wait()

    def _pause(self, care: _Care) -> float:
        config = self._config
        care.attempts += 1
        return min(config.upgrade_max, config.upgrade_first * 3.0 ** (care.attempts - 1))

    async def _attempt(self, care: _Care) -> float:
        """Exchange news, then punch; seconds until it is worth trying again."""
        link, steering = care.link, care.link.steering
        assert steering is not None
        client = self._rpc.client(
            link.remote.peer, ReachService, SERVICE, timeout=self._config.call_timeout
        )
        mine = self._candidates.news()
        theirs = await client.exchange(mine)
        care.learn(theirs)
        if is_direct(steering):
            return self._config.upgrade_max
        punch = plan(mine.report, theirs.report)
        if needs_room(punch) and self._puncher.is_busy:
            raise BusyError("other attempts run here", retry_after=self._config.punch_time)
        began = self._now()
        refused: list[Exception] = []
        care.is_punching = True
        try:
            ok = False
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(
                    self._order, client, Order(punch, mine), tasks.cancel_scope, refused
                )
                # The other end begins when the order arrives: half a round trip from now.
                await anyio.sleep(link.rtt / 2)
                ok = await self._puncher.run(
                    link, punch, theirs, is_dialer=True, vouch=lambda: self._vouch(link)
                )
                tasks.cancel_scope.cancel()
        finally:
            care.is_punching = False
        if refused:
            raise refused[0]
        self._tell_attempt(Attempt(link.remote.peer, punch, ok, self._now() - began))
        if ok:
            care.attempts = 0
            return self._config.upgrade_max
        pause = self._pause(care)
        return max(pause, self._again_after) if needs_room(punch) else pause

    async def _order(
        self,
        client: ReachService,
        order: Order,
        scope: anyio.CancelScope,
        refused: list[Exception],
    ) -> None:
        try:
            await client.punch(order)
        except (LatticaError, TimeoutError) as error:
            refused.append(error)
            scope.cancel()

    async def _follow(self, care: _Care, order: Order) -> None:
        care.is_punching = True
        try:
            # Bounded by the puncher's limits, and it looks whether the link is still open.
            await self._puncher.run(
                care.link,
                order.punch,
                order.news,
                is_dialer=False,
                vouch=lambda: self._vouch(care.link),
            )
        finally:
            care.is_punching = False

    async def _vouch(self, link: QuicLink) -> set[str]:
        """The hosts at which others than the peer itself see it now."""
        hosts: set[str] = set()
        relays: set[PeerId] = set()
        ways = link.steering.ways if link.steering is not None else None
        for way in () if ways is None else ways.all:
            where = link.path_of(way.address)
            if not way.is_proven:
                continue
            if text.is_relay(where):
                relays.add(PeerId.parse(text.split_relay(where)[0]))
            else:
                hosts.add(text.split(text.strip_scheme(where))[0])
        for relay in relays:
            client = self._rpc.client(
                relay, ReachService, SERVICE, timeout=self._config.call_timeout
            )
            try:
                hosts.update((await client.seen(link.remote.peer)).hosts)
            except (LatticaError, TimeoutError) as error:
                log.debug("the relay does not say where it sees a peer: %s", error)
        return hosts

    async def _tell(self, care: _Care) -> None:
        peer = care.link.remote.peer
        client = self._rpc.client(peer, ReachService, SERVICE, timeout=self._config.call_timeout)
        try:
            care.learn(await client.exchange(self._candidates.news()))
        except (LatticaError, TimeoutError) as error:
            log.debug("%s was not told of new addresses: %s", peer.short, error)

    async def _rescue(self, care: _Care) -> None:
        """No way answers: ask relays for one."""
        if care.theirs is None:
            return
        care.is_rescuing = True
        try:
            async with anyio.create_task_group() as tasks:
                for address in care.theirs.relays[: self._config.relays]:
                    tasks.start_soon(self._detour, care, address)
        finally:
            care.is_rescuing = False

    async def _detour(self, care: _Care, address: str) -> None:
        link, steering = care.link, care.link.steering
        assert steering is not None
        try:
            with anyio.fail_after(self._config.call_timeout):
                virtual = await self._detours.open(
                    link.remote.peer, address, lambda error: log.info("%s: %s", address, error)
                )
        except (AddressError, TimeoutError) as error:
            log.info("no way through %s: %s", address, error)
            return
        steering.offer(virtual, self._now(), patience=self._config.rescue_patience)
        if not steering.has(virtual):
            self._detours.abandon(virtual)

    def _tell_attempt(self, attempt: Attempt) -> None:
        if self.attempted is not None:
            self.attempted(attempt)


def _is_udp_at(host: str, address: str) -> bool:
    scheme, where = text.split_scheme(address)
    place = public_endpoint(where)
    return scheme == text.UDP and place is not None and place[0] == host
