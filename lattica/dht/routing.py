"""The `kademlia` package's routing table over PeerIds, with its known faults mended."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

from kademlia.node import Node
from kademlia.routing import KBucket, RoutingTable

from lattica.dht.keys import KEY_BITS, node_id
from lattica.identity.keys import PeerId
from lattica.identity.tickets import Contact


class PeerNode(Node):  # type: ignore[misc]  # kademlia has no types
    """A place in the key space that belongs to a proven peer."""

    id: bytes
    long_id: int

    def __init__(self, peer: PeerId, addresses: tuple[str, ...] = ()) -> None:
        super().__init__(node_id(peer))
        self.peer = peer
        self.addresses = addresses
        self.said: tuple[str, ...] = ()  # what it calls its addresses, unchecked,
        self.said_at = float("-inf")  # and when that was looked at, in monotonic seconds
        self.strikes = 0  # calls in a row that went unanswered
        self.heard = float("-inf")  # when it last showed life, in monotonic seconds

    @property
    def contact(self) -> Contact:
        """The node as others are told of it."""
        return Contact(self.peer, self.addresses)

    def same_home_as(self, node: Node) -> bool:
        """Whether it is the same peer; several may share an address behind one NAT."""
        return bool(self.id == node.id)

    def __repr__(self) -> str:
        return f"PeerNode({self.peer.short})"


class Table(RoutingTable):  # type: ignore[misc]  # kademlia has no types
    """k-buckets of peers that have answered us.

    Changed against the package: `find_neighbors` returns the true k closest (the package's
    walk over neighbouring buckets often does not); a full bucket asks its owner to check the
    oldest contact instead of starting a task that nobody awaits; times are arguments.
    """

    def __init__(self, local: PeerId, ksize: int, on_full: Callable[[PeerNode], None]) -> None:
        """`on_full(oldest)` is told that a bucket has no room for a newer contact."""
        self._on_full = on_full
        super().__init__(None, ksize, PeerNode(local))

    def __iter__(self) -> Iterator[PeerNode]:
        for bucket in self.buckets:
            yield from bucket.nodes.values()

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self.buckets)

    def find(self, peer: PeerId) -> PeerNode | None:
        """The contact of `peer`, if it is in the table."""
        place = node_id(peer)
        for bucket in self.buckets:  # a dozen, and asked for each contact of each answer
            found: PeerNode | None = bucket.nodes.get(place)
            if found is not None:
                return found
        return None

    def add_contact(self, node: PeerNode) -> None:
        """Enter a peer as the newest of its bucket, or as a replacement if that is full."""
        if node.id == self.node.id:
            return
        while True:
            index = self.get_bucket_for(node)
            bucket: KBucket = self.buckets[index]
            if bucket.add_node(node):
                return
            if not self._may_split(bucket):
                break
            self.split_bucket(index)
        self._on_full(bucket.head())

    def _may_split(self, bucket: KBucket) -> bool:
        # Kademlia paper §4.2: split if our own id is in range, or to keep the tree relaxed.
        return bool(bucket.has_in_range(self.node) or bucket.depth() % 5 != 0)

    def full_bucket_of(self, node: PeerNode) -> PeerNode | None:
        """The oldest contact of the bucket that `node` belongs to, if that takes no more."""
        bucket: KBucket = self.buckets[self.get_bucket_for(node)]
        if len(bucket) < self.ksize or self._may_split(bucket):
            return None
        oldest: PeerNode = bucket.head()
        return oldest

    def has_room_for(self, node: PeerNode, *, beside: int = 0) -> bool:
        """Whether a peer is not in the table and would find room in its bucket as it is, also
        if so many others were in it besides."""
        bucket: KBucket = self.buckets[self.get_bucket_for(node)]
        return bucket[node.id] is None and len(bucket) + beside < self.ksize

    def split_bucket(self, index: int) -> None:
        """Halve a bucket; both halves were last refreshed when it was."""
        refreshed = self.buckets[index].last_updated
        super().split_bucket(index)
        for half in self.buckets[index : index + 2]:
            half.last_updated = refreshed

    def flush(self) -> None:
        """Forget every contact."""
        super().flush()
        self.buckets[0].last_updated = float("-inf")  # as yet no look-up

    def find_neighbors(
        self, node: Node, k: int | None = None, exclude: Node | None = None
    ) -> list[PeerNode]:
        """The true k closest contacts, nearest first, without `node` itself and `exclude`."""
        left_out = {node.id} if exclude is None else {node.id, exclude.id}
        return self.closest(node.long_id, k or self.ksize, left_out)

    def closest(self, place: int, k: int, left_out: set[bytes] | None = None) -> list[PeerNode]:
        """The k contacts closest to a place in the key space, nearest first."""
        skip = left_out or set()
        return heapq.nsmallest(
            k, (n for n in self if n.id not in skip), key=lambda n: n.long_id ^ place
        )

    def touch(self, place: int, now: float) -> None:
        """Note that a look-up went through the bucket of `place`."""
        for bucket in self.buckets:
            if bucket.range[0] <= place <= bucket.range[1]:
                bucket.last_updated = now
                return

    def stale_places(self, *, now: float, age: float) -> list[int]:
        """One place inside each bucket that no look-up went through for `age` seconds."""
        places = []
        for bucket in self.buckets:
            if bucket.last_updated + age <= now:
                low, high = bucket.range
                places.append(min((low + high) // 2, 2**KEY_BITS - 1))
        return places
