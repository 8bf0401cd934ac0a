"""Frames that have overtaken the request to open their session. No I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from lattica.config import RelayConfig
from lattica.identity.keys import PeerId
from lattica.path.interface import VirtualAddress
from lattica.path.relay import HEADER, Batch


class _Orphan(NamedTuple):
    at: float
    frame: bytes
    source: VirtualAddress


class Orphans:
    """Kept for a moment, by the peer that sent them. Times in seconds.

    A peer's newest frames drive out its own oldest, never those of others.
    """

    def __init__(self, config: RelayConfig) -> None:
        self._config = config
        self._kept: dict[PeerId, deque[_Orphan]] = {}
        self._count = 0
        self._bytes = 0

    def __len__(self) -> int:
        return self._count

    @property
    def size(self) -> int:
        """Bytes kept."""
        return self._bytes

    def add(self, peer: PeerId, frame: bytes, source: VirtualAddress, now: float) -> int:
        """Keep a frame of a session not known. How many were dropped for lack of room."""
        config = self._config
        dropped = 0
        mine = self._kept.get(peer) or deque[_Orphan]()
        while mine and not (len(mine) < config.orphan_frames and self._has_room(len(frame))):
            self._forget(mine.popleft())
            dropped += 1
        if self._has_room(len(frame)) and config.orphan_frames > 0:
            mine.append(_Orphan(now, frame, source))
            self._count += 1
            self._bytes += len(frame)
        else:
            dropped += 1
        self._store(peer, mine)
        return dropped

    def take(self, session: bytes, peers: Iterable[PeerId], now: float) -> Batch:
        """The frames of a session that `peers` have sent lately, in order."""
        taken: Batch = []
        for peer in peers:
            mine = self._kept.get(peer, ())
            left = deque[_Orphan]()
            for each in mine:
                if each.frame[1:HEADER] == session and now - each.at <= self._config.orphan_wait:
                    self._forget(each)
                    taken.append((each.frame, each.source))
                else:
                    left.append(each)
            self._store(peer, left)
        return taken

    def expire(self, now: float) -> int:
        """Forget what waited too long; how many frames."""
        before = self._count
        for peer, mine in tuple(self._kept.items()):
            while mine and now - mine[0].at > self._config.orphan_wait:
                self._forget(mine.popleft())
            self._store(peer, mine)
        return before - self._count

    def _has_room(self, size: int) -> bool:
        config = self._config
        return self._count < config.max_orphans and self._bytes + size <= config.max_orphan_bytes

    def _forget(self, orphan: _Orphan) -> None:
        self._count -= 1
        self._bytes -= len(orphan.frame)

    def _store(self, peer: PeerId, mine: deque[_Orphan]) -> None:
        if mine:
            self._kept[peer] = mine
        else:
            self._kept.pop(peer, None)
