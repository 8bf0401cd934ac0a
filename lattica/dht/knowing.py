"""What a look-up knows already, told to those it asks, so that they need not say it again.

In a mesh that lives on, most of those asked would name the contacts that the asking peer has in its
table, and send the records that it or somebody before them has sent. Eight bytes say which these
are. Who leaves something out on their strength says no more and no less than by saying it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kademlia.node import Node

from lattica.dht.digests import contacts_digest
from lattica.dht.protocol import DhtProtocol, FindAnswer
from lattica.dht.routing import PeerNode


class Knowing:
    """Asks for one look-up; see `lattica.dht.crawling.CrawlProtocol`."""

    def __init__(
        self,
        protocol: DhtProtocol,
        nodes: Sequence[PeerNode],
        held: Callable[[], bytes] = bytes,
    ) -> None:
        """`nodes` are the contacts closest to the target, nearest first; `held()` is the digest
        of the records that are there by now."""
        self._protocol = protocol
        self._nodes = nodes
        self._digest = contacts_digest(nodes) if nodes else b""
        self._held = held

    async def call_find_node(self, node: PeerNode, target: Node) -> FindAnswer | None:
        """Ask for the contacts closest to `target`."""
        return await self.call_find_value(node, target, "")

    async def call_find_value(self, node: PeerNode, target: Node, kind: str) -> FindAnswer | None:
        """Ask for contacts, and for records of `kind`."""
        held = self._held() if kind else b""
        answer = await self._protocol.call_find_value(node, target, kind, self._digest, held)
        if answer is not None and not answer.nodes and self._digest:
            return answer._replace(nodes=[each for each in self._nodes if each is not node])
        return answer
