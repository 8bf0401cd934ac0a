"""The whole stack over a faulty packet network: what every fault test starts from."""

from __future__ import annotations

from contextlib import AsyncExitStack
from types import TracebackType
from typing import TypeVar

from lattica.config import LinkConfig, RpcConfig
from lattica.identity import grants
from lattica.identity.keys import Identity
from lattica.identity.signed import Signed
from lattica.link.endpoint import Endpoint
from lattica.path.memory import Conditions, PacketNetwork
from lattica.rpc import Rpc

T = TypeVar("T")
AUTHORITY = Identity(b"the authority of the faults".ljust(32))


class Peer:
    """One member (or stranger) with its endpoint and its calls."""

    def __init__(self, name: str, endpoint: Endpoint, rpc: Rpc) -> None:
        self.name = name
        self.endpoint = endpoint
        self.rpc = rpc

    def knows(self, other: Peer) -> None:
        """Tell this peer where the other is."""
        self.endpoint.learn(other.endpoint.local, other.endpoint.addresses)

    def client(self, other: Peer, service: type[T], name: str, timeout: float = 30.0) -> T:
        """A stub for a service of the other, which this one can now dial."""
        self.knows(other)
        return self.rpc.client(other.rpc.local, service, name, timeout=timeout)


class Stack:
    """Peers on one seeded network. Use as an async context manager."""

    def __init__(
        self,
        *names: str,
        conditions: Conditions | None = None,
        seed: int = 0,
        link: LinkConfig | None = None,
        rpc: RpcConfig | None = None,
        strangers: tuple[str, ...] = (),
    ) -> None:
        self.network = PacketNetwork(conditions or Conditions(latency=0.005), seed=seed)
        self.peers: dict[str, Peer] = {}
        self._names = names
        self._strangers = strangers
        self._link = link or LinkConfig()
        self._rpc = rpc
        self._exit = AsyncExitStack()

    async def __aenter__(self) -> Stack:
        for name in (*self._names, *self._strangers):
            self.peers[name] = await self.add(name, is_member=name not in self._strangers)
        return self

    async def add(self, name: str, *, is_member: bool = True) -> Peer:
        """One more peer; its host is its name."""
        identity, mesh = Identity(name.encode().ljust(32)), AUTHORITY.peer_id
        chain: tuple[Signed, ...] = ()
        if is_member:
            chain = (
                grants.issue(
                    AUTHORITY,
                    mesh=mesh,
                    subject=identity.peer_id,
                    scopes=grants.MEMBER,
                    expires=4e9,
                ),
            )
        endpoint = await self._exit.enter_async_context(
            Endpoint(
                identity,
                grants.Membership(mesh, chain),
                self.network.path(name),
                name=name,
                config=self._link,
            )
        )
        rpc = await self._exit.enter_async_context(Rpc(endpoint, config=self._rpc, name=name))
        return Peer(name, endpoint, rpc)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._exit.__aexit__(kind, error, traceback)

    def __getitem__(self, name: str) -> Peer:
        return self.peers[name]
