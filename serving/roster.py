"""The roster: one replicated document that says who serves what.

An entry is a claim. Whoever wants to use it asks the volunteer itself, so the entry of a
peer that is gone is never shown: no ghosts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any

import anyio
import msgspec

from lattica.errors import IdentityError, LatticaError
from lattica.identity.keys import PeerId
from lattica.link.supervision import PeerState
from serving.config import ServingConfig
from serving.errors import UnknownModelError
from serving.messages import StageInfo
from serving.ports import MeshPeer
from serving.reach import ask_info
from serving.routing import Live

DOCUMENT = "roster"
MAP = "serving"
GRACE = 0.15  # seconds that slower volunteers get once those that answered are enough

Enough = Callable[[list[Live]], bool]


class Roster:
    """Reads and writes the roster for one peer."""

    def __init__(self, peer: MeshPeer, document: Any, config: ServingConfig | None = None) -> None:
        self._peer = peer
        self._document = document
        self._config = config or ServingConfig()
        self._ghosts: dict[PeerId, tuple[StageInfo, float]] = {}  # claim, until when
        self.invalid = 0  # entries dropped because they are malformed

    @classmethod
    async def open(cls, peer: MeshPeer, config: ServingConfig | None = None) -> Roster:
        """The roster of the peer's mesh."""
        return cls(peer, await peer.document(DOCUMENT), config)

    def publish(self, info: StageInfo) -> None:
        """Write this peer's entry. Numbers that change all the time are left out."""
        lasting = msgspec.structs.replace(info, kv_free=0, sessions=0)
        value = msgspec.to_builtins(lasting)
        entries = self._document.map(MAP)
        key = str(self._peer.identity.peer_id)
        if dict(entries.items()).get(key) != value:
            entries.set(key, value)

    def withdraw(self) -> None:
        """Remove this peer's entry."""
        entries = self._document.map(MAP)
        key = str(self._peer.identity.peer_id)
        if key in dict(entries.items()):
            entries.delete(key)

    def claims(self) -> dict[PeerId, StageInfo]:
        """Every well-formed entry, of live and of gone peers."""
        found: dict[PeerId, StageInfo] = {}
        for key, value in self._document.map(MAP).items():
            try:
                found[PeerId.parse(key)] = msgspec.convert(value, StageInfo)
            except (IdentityError, msgspec.ValidationError):
                self.invalid += 1
        return found

    async def live(
        self,
        model: str | None = None,
        *,
        avoid: Collection[PeerId] = (),
        enough: Enough = lambda _: False,
        anew: bool = False,
    ) -> list[Live]:
        """The volunteers (of `model`) that answer now, with what they answer.

        All are asked at once. Once `enough` holds of those that answered, the others get
        only a moment more, so that a peer that has just died does not hold up the rest.
        A peer that could not be reached is left out for a while, unless `anew`.
        """
        asked = [
            peer
            for peer, info in self.claims().items()
            if peer not in avoid
            and (model is None or info.model == model)
            and (anew or not self._is_ghost(peer, info))
        ]
        found: list[Live] = []
        async with anyio.create_task_group() as tasks:
            tasks.cancel_scope.deadline = anyio.current_time() + self._config.probe_timeout

            async def ask(peer: PeerId) -> None:
                entry = await self._probe(peer)
                if entry is not None and (model is None or entry.info.model == model):
                    found.append(entry)
                    if enough(found):
                        soon = anyio.current_time() + GRACE
                        tasks.cancel_scope.deadline = min(tasks.cancel_scope.deadline, soon)

            for peer in asked:
                tasks.start_soon(ask, peer)
        self._remember(asked, [entry.peer for entry in found])
        return sorted(found, key=lambda entry: entry.peer)

    async def _probe(self, peer: PeerId) -> Live | None:
        started = time.perf_counter()
        try:
            info = await ask_info(self._peer, peer, self._config.probe_timeout)
        except LatticaError:
            return None  # gone, or no longer a volunteer: its entry is a ghost
        return Live(peer, info, time.perf_counter() - started)

    def _remember(self, asked: Collection[PeerId], answered: Collection[PeerId]) -> None:
        """Spare the next caller the wait for peers that nothing is heard of."""
        until = time.monotonic() + self._config.ghost_for
        claims = self.claims()
        links = self._peer.rpc.links
        for peer in asked:
            is_heard = links.find(peer) is not None and links.state(peer) is not PeerState.SUSPECT
            if peer in answered or is_heard:
                self._ghosts.pop(peer, None)
            elif peer in claims:
                self._ghosts[peer] = (claims[peer], until)

    def _is_ghost(self, peer: PeerId, info: StageInfo) -> bool:
        claim, until = self._ghosts.get(peer, (None, 0.0))
        return claim == info and time.monotonic() < until

    async def find_model(self, model: str, timeout: float) -> StageInfo:
        """A claim about `model`, waiting for the document to arrive.

        Raises:
            UnknownModelError: none within `timeout` seconds; says what there is.
        """
        with anyio.move_on_after(timeout):
            while True:
                for info in self.claims().values():
                    if info.model == model and info.manifest:
                        return info
                await self._document.changed()
        known = sorted({info.model for info in self.claims().values()})
        there = f"the mesh serves {', '.join(known)}" if known else "no model is served in the mesh"
        raise UnknownModelError(
            f"no volunteer has a model named {model!r}: {there}; "
            "give the path of a model folder to bring it in"
        )
