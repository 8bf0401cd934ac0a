"""Cares for each link: notices when a better way, or any way, should be looked for."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable

from anyio.abc import TaskGroup

from lattica.config import ReachConfig
from lattica.identity.keys import PeerId
from lattica.link.quic_link import QuicLink
from lattica.path import addresses as text
from lattica.path.interface import VirtualAddress
from lattica.path.way import Way, WayKind
from lattica.reach.attempts import Attempts
from lattica.reach.candidates import Candidates
from lattica.reach.care import Care
from lattica.reach.messages import News, Order
from lattica.reach.report import public_endpoint
from lattica.reach.rescue import Rescue

log = logging.getLogger("lattica.reach")


class Upgrades:
    """Cares for the links of one peer. The dialer of a link leads, its acceptor follows."""

    def __init__(
        self,
        candidates: Candidates,
        attempts: Attempts,
        rescue: Rescue,
        config: ReachConfig,
        *,
        relay_links: Callable[[], Iterable[QuicLink]],
        let_in: Callable[[QuicLink, VirtualAddress], None],
        now: Callable[[], float],
    ) -> None:
        """`relay_links()` are those to the relays that keep this peer reachable.

        `let_in` is told of knocks that came in.
        """
        self._candidates = candidates
        self._attempts = attempts
        self._rescue = rescue
        self._config = config
        self._relay_links = relay_links
        self._let_in = let_in
        self._now = now
        self._cares: dict[QuicLink, Care] = {}
        self._tasks: TaskGroup | None = None
        self._asked = float("-inf")

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
        care = self._cares[link] = Care(link)
        link.vitals.rest_at_most(self._candidates.observer.safe_silence)
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
            self._start(self._attempts.lead, care)

    def link_down(self, link: QuicLink) -> None:
        """It is no more."""
        care = self._cares.pop(link, None)
        if care is not None:
            care.scope.cancel()

    def rest_at_most(self, seconds: float) -> None:
        """This end's router forgets what is silent for longer."""
        for care in self._cares.values():
            care.link.vitals.rest_at_most(seconds)

    def changed(self) -> None:
        """This peer may be reached otherwise than before: tell, and try again at once."""
        for care in tuple(self._cares.values()):
            if care.link.is_dialer:
                care.hurry()
            elif care.theirs is not None:
                self._start(self._attempts.tell, care)

    def ask_anew(self) -> None:
        """This may be another network: ask all where they see this peer.

        Some may have said so already, before the change of network was noticed and all that was
        known of the last one forgotten.
        """
        for care in self._cares.values():
            ways = care.link.steering.ways if care.link.steering is not None else None
            for way in () if ways is None else ways.all:
                way.observed = ""
            care.link.vitals.probe()

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
        self._attempts.claim(care, order.punch)
        care.learn(order.news)
        self._start(self._attempts.follow, care, order)

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

    def _care(self, peer: PeerId) -> Care | None:
        for link, care in self._cares.items():
            if link.is_open and link.remote.peer == peer:
                return care
        return None

    def _moved(self, care: Care, old: Way, new: Way) -> None:
        log.info("the link to %s goes over %s now", care.link.remote.peer.short, care.link.address)
        if new.kind is WayKind.DIRECT:
            self._candidates.reached(care.link.path_of(new.address))
        care.wake.set()

    def _seen(self, care: Care, way: Way) -> None:
        self._candidates.note(way, care.link.path_of(way.address))

    def _suspected(self) -> None:
        """Perhaps this end has another address now, and then no link knows it yet: ask all relays,
        for it may soon be they who are needed."""
        now = self._now()
        if now - self._asked < self._config.ask_pause:
            return
        self._asked = now
        for link in self._relay_links():
            link.vitals.probe()

    def _lost(self, care: Care) -> None:
        self._start(self._rescue.run, care)


def _is_udp_at(host: str, address: str) -> bool:
    scheme, where = text.split_scheme(address)
    place = public_endpoint(where)
    return scheme == text.UDP and place is not None and place[0] == host
