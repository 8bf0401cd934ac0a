"""All dials of one endpoint: one at a time to a peer, with pauses after failures."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from anyio.abc import TaskGroup

from lattica.config import LinkConfig
from lattica.errors import LinkLostError, UnknownPeerError
from lattica.identity.keys import PeerId
from lattica.link.book import AddressBook
from lattica.link.dial import Dial, Dialer
from lattica.link.peers import Peers
from lattica.link.quic_link import QuicLink


class Dials:
    """Runs the dials that calls and kept peers ask for.

    Attributes:
        book: where peers may be reached.
        peers: how this end stands with each.
    """

    def __init__(self, dialer: Dialer, config: LinkConfig) -> None:
        self._dialer = dialer
        self._config = config
        self._dials: dict[PeerId, Dial] = {}
        self._tasks: TaskGroup | None = None
        self.book = AddressBook()
        self.peers = Peers(config, self._redial)

    def start(self, tasks: TaskGroup) -> None:
        """Begin to dial, in `tasks`, on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._tasks = tasks
        self.peers.start()

    def close(self) -> None:
        """Dial no more. The owner of the tasks ends those that run."""
        self._tasks = None
        self.peers.close()

    def is_dialling(self, peer: PeerId) -> bool:
        """Whether a dial to `peer` runs or waits for its turn."""
        return peer in self._dials

    def learn(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """Remember where a peer may be reached; a new address is worth trying at once."""
        if self.book.learn(peer, addresses):
            self.peers.supervisor.reset(peer)
            self.peers.tell(None)
            if (dial := self._dials.get(peer)) is not None:
                dial.hurry(self.book.get(peer))

    async def connect(self, peer: PeerId, addresses: Sequence[str]) -> QuicLink:
        """See `lattica.link.interface.Links.connect`."""
        self.learn(peer, addresses)
        dial = self._dials.get(peer)
        if dial is None:
            known = self.book.get(peer)
            if not known:
                raise UnknownPeerError(f"no address is known for {peer.short}")
            if self._tasks is None:
                raise LinkLostError("the endpoint is closed")
            pause = self.peers.pause(peer, self._loop.time())
            dial = self._start(peer, known, pause, self._tasks)
        return await dial.wait()

    def succeed(self, link: QuicLink) -> None:
        """A link is up: a dial to its peer has what it was for."""
        dial = self._dials.pop(link.remote.peer, None)
        if dial is not None:
            dial.succeed(link)

    # ----------------------------------------------------------------- inside

    def _redial(self, peer: PeerId) -> None:
        """A kept peer is down, and it is time to try again."""
        if peer in self._dials or self._tasks is None:
            return
        known = self.book.get(peer)
        if known:
            self._start(peer, known, 0.0, self._tasks)
        else:
            error = UnknownPeerError(f"no address is known for {peer.short}")
            self.peers.tell(self.peers.supervisor.failed(peer, error, self._loop.time()))

    def _start(
        self, peer: PeerId, addresses: Sequence[str], pause: float, tasks: TaskGroup
    ) -> Dial:
        dial = Dial(peer, addresses, timeout=self._config.connect_timeout, pause=pause)
        self._dials[peer] = dial
        self.peers.tell(self.peers.supervisor.dialling(peer, self._loop.time()))
        tasks.start_soon(self._run, dial)
        return dial

    async def _run(self, dial: Dial) -> None:
        try:
            await dial.run(self._dialer, self.book)
        finally:
            if self._dials.get(dial.peer) is dial:
                del self._dials[dial.peer]
            if dial.link is None and self._tasks is not None:
                supervisor, now = self.peers.supervisor, self._loop.time()
                self.peers.tell(supervisor.failed(dial.peer, dial.error(), now))
            self._dialer.dial_over()
