"""How long does this peer's router remember? A socket is silent for a while, then called."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TypeVar

import anyio

from lattica.config import ReachConfig
from lattica.errors import LatticaError, RelayError
from lattica.identity.keys import PeerId
from lattica.link.quic_link import QuicLink
from lattica.path import addresses as text
from lattica.path.combined import CombinedPath
from lattica.path.extra import SCHEME as EXTRA
from lattica.path.interface import VirtualAddress
from lattica.reach.candidates import MAIN_SOCKET, Candidates
from lattica.reach.messages import SERVICE
from lattica.reach.service import ReachService
from lattica.rpc import Rpc

T = TypeVar("T")
log = logging.getLogger("lattica.reach")
PACKETS = 3  # each way, for some are lost
BETWEEN = 0.2  # seconds
MAX_REMEMBERED = 1024  # peers


class Silence:
    """Both parts. A relay calls only the host that the asker's link comes from, and rarely."""

    def __init__(
        self,
        rpc: Rpc,
        path: CombinedPath,
        candidates: Candidates,
        config: ReachConfig,
        *,
        relay_links: Callable[[], Iterable[QuicLink]],
        now: Callable[[], float],
    ) -> None:
        self._rpc = rpc
        self._path = path
        self._candidates = candidates
        self._config = config
        self._relay_links = relay_links
        self._now = now
        self._knockers: dict[PeerId, str] = {}  # where others' further sockets are
        self._called: dict[PeerId, float] = {}  # others, and when
        self._asked: QuicLink | None = None
        self._heard = anyio.Event()

    async def run(self) -> None:
        """Until cancelled: find out how long a mapping lives, anew in another network."""
        observer = self._candidates.observer
        while True:
            moves = observer.moves
            for seconds in self._config.silences:
                if not await self._is_outlived(seconds, moves):
                    break
            await self._rest(moves)

    def knocked(self, link: QuicLink, address: VirtualAddress) -> None:
        """A knock has come in: the answer to our question, or where to call somebody later."""
        if address.scheme == EXTRA:
            if link is self._asked:
                self._heard.set()
        elif address.scheme == link.current_address.scheme == MAIN_SOCKET:
            place = link.path_of(address)
            if text.split(place)[0] == text.split(link.address)[0]:
                _remember(self._knockers, link.remote.peer, place)

    async def call(self, peer: PeerId, link: QuicLink | None) -> None:
        """Do it for another.

        Raises:
            RelayError: it has not knocked from the host of its link, or has asked a moment ago.
        """
        now = self._now()
        if now - self._called.get(peer, float("-inf")) < self._config.silence_pause:
            raise RelayError("this peer does not call so often; ask another")
        place = self._knockers.pop(peer, None)
        is_there = link is not None and link.current_address.scheme == MAIN_SOCKET
        if link is None or link.steering is None or place is None or not is_there:
            raise RelayError("nothing came from another port of yours, so there is none to call")
        if text.split(place)[0] != text.split(link.address)[0]:
            raise RelayError("your link comes from another host now")
        _remember(self._called, peer, now)
        for _ in range(PACKETS):
            datagram = link.steering.knock()
            if datagram is None:
                return
            self._path.spray(datagram, [place])
            await anyio.sleep(BETWEEN)

    async def _is_outlived(self, seconds: float, moves: int) -> bool:
        """Find out and note it; False too if this is another network meanwhile.

        A call that did not come in may have been lost, so one alone is not believed. But links are
        heard of more often at once: a second look takes longer than such a router remembers.
        """
        observer = self._candidates.observer
        for _ in range(2):
            has_survived = await self._tells(seconds)
            if observer.moves != moves:
                return False
            observer.idled(seconds, has_survived)
            if has_survived:
                return True
        return False

    async def _rest(self, moves: int) -> None:
        for _ in range(int(self._config.silence_again / self._config.silence_pause)):
            if self._candidates.observer.moves != moves:
                return
            await anyio.sleep(self._config.silence_pause)

    async def _tells(self, seconds: float) -> bool:
        """Whether a mapping outlives so much silence, as soon as that can be told."""
        has_survived = None
        while has_survived is None:
            await anyio.sleep(self._config.silence_pause)
            has_survived = await self._outlives(seconds)
        return has_survived

    async def _outlives(self, seconds: float) -> bool | None:
        """Whether a mapping outlives so much silence; None: it cannot be told now."""
        links = (each for each in self._relay_links() if each.current_address.scheme == MAIN_SOCKET)
        link, extra = next(links, None), self._path.extra
        if link is None or extra is None or link.steering is None:
            return None
        numbers = extra.open(1)
        self._asked, self._heard = link, anyio.Event()
        try:
            for number in numbers * PACKETS:
                datagram = link.steering.knock()
                if datagram is None:
                    return None
                extra.spray_from(number, datagram, [link.address])
                await anyio.sleep(BETWEEN)
            await anyio.sleep(seconds)
            client = self._rpc.client(
                link.remote.peer, ReachService, SERVICE, timeout=self._config.call_timeout
            )
            await client.call()
            with anyio.move_on_after(self._config.knock_patience):
                await self._heard.wait()
            return self._heard.is_set()
        except (LatticaError, TimeoutError) as error:
            log.debug("%s does not call: %s", link.remote.peer.short, error)
            return None
        finally:
            self._asked = None
            extra.close_idle(numbers)


def _remember(table: dict[PeerId, T], peer: PeerId, value: T) -> None:
    table.pop(peer, None)
    while len(table) >= MAX_REMEMBERED:
        del table[next(iter(table))]
    table[peer] = value
