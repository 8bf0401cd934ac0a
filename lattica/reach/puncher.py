"""One attempt to open a direct way for a link, at one of its ends: what a plan says, done."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Sequence

import anyio

from lattica.config import PunchConfig, ReachConfig
from lattica.errors import AddressError
from lattica.link.quic_link import QuicLink
from lattica.link.steering import Steering
from lattica.path import addresses as text
from lattica.path.combined import CombinedPath
from lattica.path.extra import ExtraPaths
from lattica.path.way import WayKind
from lattica.reach.candidates import Candidates
from lattica.reach.messages import News
from lattica.reach.plan import Punch, guess_hosts
from lattica.reach.spray import NEVER, Openings, Spray

log = logging.getLogger("lattica.reach")
Vouch = Callable[[], Awaitable[Collection[str]]]


class Puncher:
    """Acts for one peer. Times in seconds of the event loop's clock."""

    def __init__(
        self,
        path: CombinedPath,
        candidates: Candidates,
        config: ReachConfig,
        punch: PunchConfig,
        *,
        now: Callable[[], float],
    ) -> None:
        self._path = path
        self._candidates = candidates
        self._config = config
        self._punch = punch
        self._now = now
        self._room = anyio.CapacityLimiter(config.guesses_at_once)

    @property
    def is_busy(self) -> bool:
        """Whether no attempt that needs further sockets or guesses can begin now."""
        return self._room.available_tokens < 1

    async def run(
        self, link: QuicLink, punch: Punch, theirs: News, *, is_dialer: bool, vouch: Vouch
    ) -> bool:
        """Try until a direct way carries the link or time is up; whether one does.

        `vouch()` names the hosts at which somebody else has seen the other end: guesses and what
        further sockets send go to no others, for a peer's own word could name a third party's.
        """
        steering = link.steering
        if steering is None:
            return False
        begin = self._now()
        await self._offer(steering, theirs, is_dialer=is_dialer)
        side = punch.dialer if is_dialer else punch.acceptor
        guessing = needs_room(punch)
        limit = self._punch.patience if guessing else self._config.punch_time
        openings = Openings(punch, side, begin, self._punch)
        spray = Spray(
            side, theirs.report, begin + punch.delay, seed=steering.tag[0], config=self._punch
        )
        with anyio.move_on_after(limit):
            async with anyio.create_task_group() as tasks:
                if side.sockets:
                    tasks.start_soon(self._open_sockets, steering, openings, theirs, vouch)
                if side.guesses:
                    tasks.start_soon(self._guess, steering, spray, theirs, vouch)
                while link.is_open and not is_direct(steering):
                    await steering.next_change()
                tasks.cancel_scope.cancel()
        return link.is_open and is_direct(steering)

    # ------------------------------------------------------------------ inside

    async def _offer(self, steering: Steering, theirs: News, *, is_dialer: bool) -> None:
        """Probe where the other end may be; a few packets each."""
        # One connection is enough: the dialer's, unless only the other end can make one.
        may_connect = is_dialer or not any(map(_is_stream, self._candidates.direct()))
        for address in self._candidates.worth_trying(theirs):
            if _is_stream(address) and not may_connect:
                continue
            try:
                virtual = await self._path.resolve(address)
            except AddressError as error:
                log.debug("not tried: %s", error)
                continue
            self._candidates.contacted(address)
            steering.offer(virtual, self._now(), patience=self._config.punch_time)

    async def _open_sockets(
        self, steering: Steering, openings: Openings, theirs: News, vouch: Vouch
    ) -> None:
        """Give the other end many ports to find: each socket makes one in this end's NAT."""
        extra = self._path.extra
        if extra is None:
            return
        hosts = guess_hosts(theirs.report, await vouch())
        targets = [each for each in theirs.report.public if text.split(each)[0] in hosts][:1]
        if not targets:
            return
        numbers: list[int] = []
        async with self._room:
            try:
                while openings.due < NEVER:
                    await self._sleep_until(openings.due)
                    datagram = steering.spray(self._now(), self._punch.patience)
                    if datagram is None:
                        return
                    for index in openings.take(self._now()):
                        if _socket(extra, numbers, index):
                            extra.spray_from(numbers[index], datagram, targets)
                await anyio.sleep_forever()  # until a way opens, or `run`'s limit
            finally:
                extra.close_idle(numbers)

    async def _guess(self, steering: Steering, spray: Spray, theirs: News, vouch: Vouch) -> None:
        """Knock on ports of the other end's NAT, the likeliest first."""
        async with self._room:
            hosts = guess_hosts(theirs.report, await vouch())[:1]
            for host in hosts:
                self._candidates.sprayed(host)
            while hosts and spray.due < NEVER:
                await self._sleep_until(spray.due)
                datagram = steering.spray(self._now(), self._punch.patience)
                if datagram is None:
                    return
                ports = spray.take(self._now())
                self._path.spray(datagram, [text.join(hosts[0], port) for port in ports])

    async def _sleep_until(self, at: float) -> None:
        await anyio.sleep(max(0.0, at - self._now()))


def needs_room(punch: Punch) -> bool:
    """Whether an attempt opens sockets or guesses, at either end."""
    sides: Sequence[tuple[int, int]] = [
        (side.sockets, side.guesses) for side in (punch.dialer, punch.acceptor)
    ]
    return any(sockets or guesses for sockets, guesses in sides)


def is_direct(steering: Steering) -> bool:
    """Whether packets go to the other end with nothing but NATs between."""
    ways = steering.ways
    return ways is not None and ways.way.kind is WayKind.DIRECT


def _socket(extra: ExtraPaths, numbers: list[int], index: int) -> bool:
    """Open the socket of an index, if it is the next; whether there is one."""
    if index == len(numbers):
        numbers += extra.open(1)
    return index < len(numbers)


def _is_stream(address: str) -> bool:
    return text.split_scheme(address)[0] != text.UDP
