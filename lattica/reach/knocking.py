"""What does a peer's own filter let in? A relay knocks from a port that it was never sent to."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import anyio

from lattica.config import ReachConfig
from lattica.errors import LatticaError, RelayError
from lattica.identity.keys import PeerId
from lattica.link.quic_link import QuicLink
from lattica.path import addresses as text
from lattica.path.combined import CombinedPath
from lattica.path.interface import VirtualAddress
from lattica.reach.candidates import MAIN_SOCKET, Candidates
from lattica.reach.messages import SERVICE
from lattica.reach.report import Filtering, public_endpoint
from lattica.reach.service import ReachService
from lattica.rpc import Rpc

log = logging.getLogger("lattica.reach")
KNOCKS = 3  # packets, for some are lost
BETWEEN = 0.2  # seconds


class Knocking:
    """Both parts. A relay knocks only where the one who asks is linked from, and rarely."""

    def __init__(
        self,
        rpc: Rpc,
        path: CombinedPath,
        candidates: Candidates,
        config: ReachConfig,
        *,
        now: Callable[[], float],
    ) -> None:
        self._rpc = rpc
        self._path = path
        self._candidates = candidates
        self._config = config
        self._now = now
        self._knocked: dict[PeerId, float] = {}  # for others, and when
        self._asked = float("-inf")
        self._heard = anyio.Event()

    @property
    def is_due(self) -> bool:
        """Whether something is to be found out, and it is time to ask."""
        return (
            self._now() - self._asked >= self._config.knock_every
            and self._candidates.report.filtering is Filtering.UNKNOWN
        )

    async def ask(self, relays: Sequence[QuicLink]) -> None:
        """Have relays knock, and note what came in or did not."""
        self._asked = self._now()
        for link in relays:
            if link.current_address.scheme != MAIN_SOCKET:
                continue
            where = public_endpoint(link.address)
            client = self._rpc.client(
                link.remote.peer, ReachService, SERVICE, timeout=self._config.call_timeout
            )
            self._heard = anyio.Event()
            try:
                await client.knock()
            except (LatticaError, TimeoutError) as error:
                log.debug("%s does not knock: %s", link.remote.peer.short, error)
                continue
            with anyio.move_on_after(self._config.knock_patience):
                await self._heard.wait()
                return
            if where is not None:
                # From which port it came does not matter: from one that was never sent to.
                self._candidates.observer.kept_out(text.join(where[0], 1), self._now())
            return

    def let_in(self, link: QuicLink, address: VirtualAddress) -> None:
        """A knock has come in."""
        if address.scheme != MAIN_SOCKET:
            return
        self._heard.set()
        source = link.path_of(address)
        if public_endpoint(source) is not None:
            self._candidates.observer.unsolicited(source, self._now())

    async def knock(self, peer: PeerId, link: QuicLink | None) -> None:
        """Do it for another.

        Raises:
            RelayError: its link does not come by UDP, or it has asked a moment ago.
        """
        extra, now = self._path.extra, self._now()
        if link is None or link.steering is None or link.current_address.scheme != MAIN_SOCKET:
            raise RelayError("your link here does not come by UDP, so there is no port to knock at")
        if extra is None or now - self._knocked.get(peer, float("-inf")) < self._config.knock_pause:
            raise RelayError("this peer does not knock so often; ask another")
        while len(self._knocked) >= 1024:
            del self._knocked[next(iter(self._knocked))]
        self._knocked.pop(peer, None)
        self._knocked[peer] = now
        numbers = extra.open(1)
        try:
            for number in numbers * KNOCKS:
                datagram = link.steering.knock()
                if datagram is None:
                    return
                extra.spray_from(number, datagram, [link.address])
                await anyio.sleep(BETWEEN)
        finally:
            extra.close_idle(numbers)
