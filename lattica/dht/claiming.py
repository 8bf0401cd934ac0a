"""Keys that one peer has for itself: claimed from the peers closest to them, and kept.

A claimant holds a key while enough of these have granted it a lease (`ballots.quorum`). It counts
each lease from before it asked, by a clock that only it reads and that the machine's sleep does
not stop, so it stops believing before any replica could give the key to somebody else.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import anyio
from kademlia.node import Node

from lattica.clock import Clock
from lattica.config import DhtConfig
from lattica.dht.ballots import Ballot, Standing, quorum, tolerated
from lattica.dht.keys import checked
from lattica.dht.lease_book import read_claim
from lattica.dht.lease_keeper import LeaseKeeper
from lattica.dht.messages import CLAIM, Claim, Lease
from lattica.dht.protocol import DhtProtocol
from lattica.dht.records import MICROSECONDS
from lattica.dht.routing import PeerNode
from lattica.errors import DhtError, LatticaError, NameTakenError, RecordError
from lattica.identity.keys import Identity, PeerId
from lattica.identity.signed import Signed

DRIFT = 0.01  # of a lease: two machines' clocks do not run quite alike
RENEWALS = 3  # within a lease
LOOK_UP_EVERY = 6  # renewals: whoever is closer now is looked for by asking everybody
PAUSE = 0.2  # seconds between the tries of those who claim at once; grows
MAX_PAUSE = 2.0


class Holding:
    """A key that this peer was given. Run `keep`, else it is lost when its lease ends."""

    def __init__(self, claims: Claims, key: bytes, replicas: Sequence[PeerNode], until: float):
        self._claims = claims
        self._key = key
        self._replicas = replicas
        self._until = until
        self._hurry = anyio.Event()
        self._is_over = False

    @property
    def is_held(self) -> bool:
        """Whether the key is this peer's at this moment."""
        return not self._is_over and self._claims.now < self._until

    def look_now(self) -> None:
        """There are signs of another who holds the key: renew at once."""
        self._hurry.set()

    async def keep(self) -> NameTakenError:
        """Renew until somebody else has the key: who.

        While too few replicas can be reached `is_held` turns false, and true again once they
        can and nobody has taken the key meanwhile.
        """
        config, renewed = self._claims.config, 0
        pause = config.lease / RENEWALS
        while True:
            with anyio.move_on_after(pause):
                await self._hurry.wait()
            self._hurry = anyio.Event()
            renewed += 1
            known = self._replicas if renewed % LOOK_UP_EVERY else ()
            asked = await self._claims.ask(self._key, known)
            if self._is_over:  # given up while the answers came
                return self._claims.taken(self._claims.local)
            self._replicas = asked.answered
            if asked.ballot.is_won(self._claims.local):
                self._until = asked.until
                pause = config.lease / RENEWALS
                continue
            rival = asked.ballot.first(but=self._claims.local)
            if rival is not None and self._must_yield(asked.ballot, rival):
                await self.release()
                return self._claims.taken(rival.claimant)
            self._replicas, pause = (), self._claims.jitter(MAX_PAUSE)
            if not self.is_held:
                # Leases short of a quorum keep others from one; they are claimed anew.
                await self._claims.give_back(self._key, asked.replicas)
                pause = self._claims.jitter(config.lease / RENEWALS)

    async def release(self) -> None:
        """Give the key back. Without this it is free when its lease ends."""
        if not self._is_over:
            self._is_over = True
            self._claims.over(self._key)
            # Those who have come since may have it from those who left.
            replicas = await self._claims.replicas(self._key, self._replicas)
            await self._claims.give_back(self._key, replicas)

    def _must_yield(self, ballot: Ballot, rival: Standing) -> bool:
        if not self.is_held:
            return self._claims.is_settled(ballot, rival)
        if ballot.is_won(rival.claimant):
            return True
        mine = ballot.standing(self._claims.local)
        # Who has never renewed has not won yet, and gives way to one that has.
        renewal = self._claims.config.lease / RENEWALS
        return rival.outranks(mine) and not rival.held_for < renewal <= mine.held_for


class Asked(NamedTuple):
    """The outcome of asking the replicas of a key once."""

    ballot: Ballot
    replicas: Sequence[PeerNode]
    answered: Sequence[PeerNode]  # empty if some did not: then they are looked up again
    until: float  # when the leases that were granted end, by this peer's clock
    refusal: RecordError | None  # what more replicas than may lie find fault with
    error: LatticaError | None  # of one that did not answer


class Claims:
    """Everything that this peer has for itself, or wants."""

    def __init__(
        self,
        identity: Identity,
        keeper: LeaseKeeper,
        protocol: DhtProtocol,
        *,
        closest: Callable[[bytes], Awaitable[list[PeerNode]]],
        serves: bool,
        config: DhtConfig,
        clock: Clock,
    ) -> None:
        """With `serves` this peer is a replica like others, and asks `keeper`, its own."""
        self._identity = identity
        self._keeper = keeper
        self._protocol = protocol
        self._closest = closest
        self._serves = serves
        self.config = config
        self._clock = clock
        self._own: dict[bytes, Holding | None] = {}  # None: being claimed
        self._sequence = 0
        self._random = random.Random(identity.peer_id.raw)

    @property
    def local(self) -> PeerId:
        """This peer."""
        return self._identity.peer_id

    @property
    def now(self) -> float:
        """By the clock that leases are counted with."""
        return self._clock.elapsed()

    async def claim(self, key: bytes) -> Holding:
        """Have a key for this peer alone.

        Raises:
            NameTakenError: another has it, or this peer itself.
            DhtError: too few of those who should decide answer.
            RecordError: a replica finds fault with the claim, such as with this peer's clock.
        """
        checked(key)
        if key in self._own:
            raise self.taken(self.local)
        self._own[key] = None
        try:
            holding = await self._claim(key)
        except BaseException:
            del self._own[key]
            raise
        self._own[key] = holding
        return holding

    async def _claim(self, key: bytes) -> Holding:
        give_up = self.now + self.config.claim_timeout
        pause = PAUSE
        while True:
            asked = await self.ask(key, ())
            ballot = asked.ballot
            if ballot.is_won(self.local) and self.now < asked.until:
                return Holding(self, key, asked.answered, asked.until)
            rival = ballot.first(but=self.local)
            if rival is not None and (self.is_settled(ballot, rival) or self.now > give_up):
                await self.give_back(key, asked.replicas)
                raise self.taken(rival.claimant)
            if self.now > give_up or asked.refusal is not None:
                await self.give_back(key, asked.replicas)
                raise asked.refusal or DhtError(
                    f"{ballot.told} of the {ballot.asked} peers that decide answered, "
                    f"{quorum(ballot.asked)} are needed ({asked.error}); try again"
                )
            if rival is not None and rival.outranks(ballot.standing(self.local)):
                await self.give_back(key, asked.replicas)
                pause = min(2 * pause, MAX_PAUSE)
                await anyio.sleep(self.jitter(pause))
            else:
                await anyio.sleep(PAUSE)

    async def holder(self, key: bytes) -> PeerId | None:
        """Who has a key, as more than half of its replicas say; None if nobody does.

        Fewer than must grant it: to a winner some may have lied, and now be silent.
        """
        nodes = self._among(await self._closest(key), key)
        ballot = Ballot(len(nodes))

        async def look(node: PeerNode) -> None:
            if node.peer == self.local:
                self._count(ballot, key, self._keeper.told(key), None)
            else:
                self._count(ballot, key, await self._protocol.call_leased(node, key), None)

        async with anyio.create_task_group() as looks:
            for node in nodes:
                looks.start_soon(look, node)
        first = ballot.first()
        return first.claimant if first is not None and 2 * first.votes > len(nodes) else None

    async def ask(self, key: bytes, known: Sequence[PeerNode]) -> Asked:
        """Ask each replica once, those who were `known` and those who have come."""
        began = self.now
        nodes = await self.replicas(key, known)
        envelope = self._seal(key, self.config.lease)
        ballot = Ballot(len(nodes))
        answered: list[PeerNode] = []
        errors: list[LatticaError] = []

        async def ask(node: PeerNode) -> None:
            lease = await self._call(node, envelope)
            if isinstance(lease, LatticaError):
                errors.append(lease)
            else:
                answered.append(node)
                self._count(ballot, key, lease, envelope)

        async with anyio.create_task_group() as asks:
            for node in nodes:
                asks.start_soon(ask, node)
        refusals = [error for error in errors if isinstance(error, RecordError)]
        return Asked(
            ballot,
            nodes,
            () if errors else answered,
            began + self.config.lease * (1 - DRIFT),
            refusals[0] if len(refusals) > tolerated(len(nodes)) else None,
            errors[0] if errors else None,
        )

    async def give_back(self, key: bytes, replicas: Sequence[PeerNode]) -> None:
        """Tell replicas that this peer does not have, or want, a key any more; best effort."""
        if not replicas:
            replicas = self._among(await self._closest(key), key)
        envelope = self._seal(key, 0.0)
        with anyio.move_on_after(self.config.query_timeout):
            async with anyio.create_task_group() as farewells:
                for node in replicas:
                    farewells.start_soon(self._call, node, envelope)

    async def leave(self) -> None:
        """Give back everything, before this peer goes."""
        async with anyio.create_task_group() as farewells:
            for holding in list(self._own.values()):
                if holding is not None:
                    farewells.start_soon(holding.release)

    def over(self, key: bytes) -> None:
        """A holding has ended."""
        self._own.pop(key, None)

    def is_settled(self, ballot: Ballot, rival: Standing) -> bool:
        """Whether who wants a key need not go on: another has it, and has renewed it."""
        has_renewed = rival.held_for >= self.config.lease / RENEWALS
        return ballot.is_won(rival.claimant) or (
            has_renewed and rival.votes > tolerated(ballot.asked)
        )

    def taken(self, holder: PeerId) -> NameTakenError:
        """What the loser is told."""
        who = "this peer itself" if holder == self.local else f"peer {holder.short}"
        error = NameTakenError(
            f"{who} holds it; it is free when that gives it up, or is gone for "
            f"{self.config.lease:.0f} s"
        )
        error.holder = holder
        return error

    def jitter(self, seconds: float) -> float:
        """About so long, another time each time: those who collided must not again."""
        return seconds * self._random.uniform(0.5, 1.5)

    async def _call(self, node: PeerNode, envelope: Signed) -> Lease | LatticaError | None:
        if node.peer == self.local:
            try:
                return await self._keeper.ask(envelope)
            except LatticaError as error:
                return error
        return await self._protocol.call_lease(node, envelope)

    def _count(self, ballot: Ballot, key: bytes, lease: Lease | None, asked: Signed | None) -> None:
        """Heed what a replica says, if it shows the signed claim of whom it names."""
        if lease is None:
            return
        try:
            claim = None if lease.claim == asked else read_claim(lease.claim, self.config)
        except RecordError:
            return
        if claim is not None:
            made = claim.sequence / MICROSECONDS
            is_old = made + self.config.max_lease + self.config.max_skew < self._clock.time()
            if claim.key != key or is_old or (asked and lease.claim.author == self.local):
                return
        ballot.count(lease.claim.author, lease.held_for)

    async def replicas(self, key: bytes, known: Sequence[PeerNode]) -> list[PeerNode]:
        """Who decides about a key now, by those who did so before, or by a look-up."""
        return self._among(await self._near(key, known), key)

    async def _near(self, key: bytes, known: Sequence[PeerNode]) -> Sequence[PeerNode]:
        """Who is closest now. One who knows its neighbours is asked: a look-up asks them all."""
        for node in known:
            if node.peer != self.local:
                answer = await self._protocol.call_find_node(node, Node(key))
                if answer is None:
                    break
                return list({each.peer: each for each in (*answer.nodes, *known)}.values())
        return await self._closest(key)

    def _among(self, nodes: Sequence[PeerNode], key: bytes) -> list[PeerNode]:
        """The replicas: the closest of these, and this peer if it serves and is one of them."""
        place = int.from_bytes(key, "big")
        everybody = {node.peer: node for node in nodes}
        if self._serves or not everybody:
            everybody[self.local] = PeerNode(self.local)
        ranked = sorted(everybody.values(), key=lambda node: node.long_id ^ place)
        return ranked[: self.config.lease_replicas]

    def _seal(self, key: bytes, length: float) -> Signed:
        self._sequence = max(self._sequence + 1, int(self._clock.time() * MICROSECONDS))
        return Signed.seal(self._identity, CLAIM, Claim(key, self._sequence, length))
