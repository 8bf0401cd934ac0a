"""How many bytes each peer has had forwarded lately. No I/O."""

from __future__ import annotations

import msgspec

from lattica.config import RelayConfig
from lattica.identity.keys import PeerId

MAX_PEERS = 4096


class _Account(msgspec.Struct):
    until: float
    spent: int


class Allowances:
    """So many bytes a peer in a period that begins with its first one. Times in seconds."""

    def __init__(self, config: RelayConfig, *, max_peers: int = MAX_PEERS) -> None:
        self._config = config
        self._max_peers = max_peers
        self._accounts: dict[PeerId, _Account] = {}  # in the order in which their periods end

    def __len__(self) -> int:
        return len(self._accounts)

    def spend(self, peer: PeerId, size: int, now: float) -> None:
        """Bytes were forwarded for a peer."""
        self._expire(now)
        if not size:
            return
        account = self._accounts.get(peer)
        if account is None:
            if len(self._accounts) >= self._max_peers:
                del self._accounts[next(iter(self._accounts))]
            account = self._accounts[peer] = _Account(now + self._config.allowance_period, 0)
        account.spent += size

    def pause(self, peer: PeerId, now: float) -> float:
        """For how long nothing more is forwarded for a peer; 0.0 while it has something left."""
        self._expire(now)
        account = self._accounts.get(peer)
        if account is None or account.spent < self._config.allowance:
            return 0.0
        return account.until - now

    def _expire(self, now: float) -> None:
        while self._accounts:
            first = next(iter(self._accounts))
            if now < self._accounts[first].until:
                return
            del self._accounts[first]
