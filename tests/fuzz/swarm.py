"""A fetch's conversation with a peer that says anything, at both ends."""

from __future__ import annotations

import asyncio
import math
from collections import Counter

import anyio

from lattica.config import StoreConfig
from lattica.errors import FrameError, LatticaError
from lattica.identity.keys import Identity, PeerId
from lattica.rpc.codec import DECODE_ERRORS, Decoder
from lattica.rpc.framing import FrameReader
from lattica.store.blocks.manifest import BlockRef, FileEntry, Manifest
from lattica.store.swarm.asking import MAX_NAMED, Asker
from lattica.store.swarm.messages import MAX_WANTED, Given, Have, Want
from lattica.store.swarm.picking import Picker
from lattica.store.swarm.providers import Providers
from lattica.store.swarm.service import MAX_OWED, Owed
from lattica.store.swarm.sharing import Share

COUNT = 20  # blocks
KINDS = tuple(Decoder(kind) for kind in (Have, Want, Given))


class FuzzBoard:
    """A fetch that notes what it is told."""

    def __init__(self) -> None:
        blocks = tuple(BlockRef(bytes((number,)) * 32, 1) for number in range(COUNT))
        self.share = Share(bytes(32), Manifest((FileEntry("f", COUNT, blocks),)), 0)
        self.picker = Picker((1 << COUNT) - 1, COUNT, random=lambda _: 0)
        self.providers = Providers(set(), Counter())
        self.config = StoreConfig()
        self.met = 0
        self.askers: list[Asker] = []

    def meet(self, _peer: PeerId) -> None:
        self.met += 1

    def nudge(self) -> None:
        for asker in self.askers:
            asker.refill()

    def spare(self, _idle: Asker) -> int | None:
        return None

    async def keep(self, number: int, data: memoryview, asker: Asker) -> None:
        raise AssertionError


class SwarmFuzz:
    """Plays scripts: frames of the number of a kind and a message."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._peer = Identity(b"fuzz".ljust(32)).peer_id

    def play(self, data: bytes) -> None:
        """One conversation."""
        self._loop.run_until_complete(self._play(data))

    async def _play(self, data: bytes) -> None:
        board, owed, taken = FuzzBoard(), Owed(COUNT), 0
        asker = Asker(self._peer, board)
        board.askers.append(asker)
        send, receive = anyio.create_memory_object_stream[Want](math.inf)
        with send, receive:
            asker._wants = send
            try:
                for payload in FrameReader(1 << 16).feed(data):
                    message = KINDS[payload[0] % 3].unpack(payload[1:])
                    if isinstance(message, Have):
                        asker._heard(message)
                    elif isinstance(message, Want):
                        owed._add(message)
                    elif asker._got(message) is not None:
                        board.picker.arrived(message.block)
                        taken += 1
            except (*DECODE_ERRORS, FrameError, LatticaError):
                pass
        assert not (asker._have or 0) >> COUNT
        assert len(asker.owes) <= COUNT
        assert taken + board.picker.left.bit_count() == COUNT, "each that was asked for, once"
        assert len(owed._numbers) <= MAX_OWED + MAX_WANTED
        assert board.met <= MAX_NAMED
