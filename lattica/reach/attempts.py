"""Attempts to make links direct: who is told what, and what both ends then do in step."""

from __future__ import annotations

import logging
import random

import anyio

from lattica.config import ReachConfig
from lattica.errors import BusyError, LatticaError, UnknownMethodError
from lattica.identity.keys import PeerId
from lattica.link.quic_link import QuicLink
from lattica.path import addresses as text
from lattica.reach.candidates import Candidates
from lattica.reach.care import Care
from lattica.reach.messages import SERVICE, Order
from lattica.reach.plan import Punch, plan
from lattica.reach.puncher import Puncher, is_direct, needs_room
from lattica.reach.service import ReachService
from lattica.rpc import Rpc

log = logging.getLogger("lattica.reach")


class Attempts:
    """Makes them for one peer. The dialer of a link leads, its acceptor follows."""

    def __init__(
        self,
        rpc: Rpc,
        candidates: Candidates,
        puncher: Puncher,
        config: ReachConfig,
        *,
        again_after: float,
    ) -> None:
        """`again_after` seconds pass before ports are guessed again for the same link."""
        self._rpc = rpc
        self._candidates = candidates
        self._puncher = puncher
        self._config = config
        self._again_after = again_after
        self._chance = random.Random()

    async def lead(self, care: Care) -> None:
        """Until the link ends: try whenever it may help. The dialer's part."""
        link, steering = care.link, care.link.steering
        assert steering is not None
        with care.scope:
            while link.is_open:
                care.wake = anyio.Event()
                pause = self._config.upgrade_max
                if not is_direct(steering) or care.theirs is None:
                    try:
                        pause = await self._attempt(care)
                    except UnknownMethodError:
                        return  # the other end knows no such service
                    except BusyError as error:
                        pause = error.retry_after or self._config.punch_time
                    except (LatticaError, TimeoutError) as error:
                        log.debug("no attempt with %s: %s", link.remote.peer.short, error)
                        pause = self._pause(care)
                with anyio.move_on_after(pause * self._chance.uniform(0.8, 1.2)):
                    await care.wake.wait()

    async def follow(self, care: Care, order: Order) -> None:
        """Try once, as the dialer has ordered; it is claimed. The acceptor's part."""
        try:
            # Bounded by the puncher's limits, and it looks whether the link is still open.
            await self._puncher.run(
                care.link,
                order.punch,
                order.news,
                is_dialer=False,
                vouch=lambda: self._vouch(care.link),
            )
        finally:
            care.is_punching = False

    async def tell(self, care: Care) -> None:
        """Say where this peer is now, and learn where the other end is."""
        peer = care.link.remote.peer
        try:
            care.learn(await self._client(peer).exchange(self._candidates.news()))
        except (LatticaError, TimeoutError) as error:
            log.debug("%s was not told of new addresses: %s", peer.short, error)

    def claim(self, care: Care, punch: Punch) -> None:
        """An attempt is about to begin. Orders may come together, so it counts from now on.

        Raises:
            BusyError: one with this link runs already, or too many that guess do.
        """
        if care.is_punching:
            raise BusyError("an attempt runs already", retry_after=self._config.punch_time)
        if needs_room(punch) and self._puncher.is_busy:
            raise BusyError("other attempts run here", retry_after=self._config.punch_time)
        care.is_punching = True

    # ------------------------------------------------------------------ inside

    def _pause(self, care: Care) -> float:
        config = self._config
        care.attempts += 1
        return min(config.upgrade_max, config.upgrade_first * 3.0 ** (care.attempts - 1))

    async def _attempt(self, care: Care) -> float:
        """Exchange news, then punch; seconds until it is worth trying again."""
        link, steering = care.link, care.link.steering
        assert steering is not None
        client = self._client(link.remote.peer)
        mine = self._candidates.news()
        theirs = await client.exchange(mine)
        care.learn(theirs)
        if is_direct(steering):
            return self._config.upgrade_max
        punch = plan(mine.report, theirs.report)
        self.claim(care, punch)
        refused: list[Exception] = []
        try:
            ok = False
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(
                    self._order, client, Order(punch, mine), tasks.cancel_scope, refused
                )
                # The other end begins when the order arrives: half a round trip from now.
                await anyio.sleep(link.rtt / 2)
                ok = await self._puncher.run(
                    link, punch, theirs, is_dialer=True, vouch=lambda: self._vouch(link)
                )
                tasks.cancel_scope.cancel()
        finally:
            care.is_punching = False
        if refused:
            raise refused[0]
        if ok:
            care.attempts = 0
            return self._config.upgrade_max
        pause = self._pause(care)
        return max(pause, self._again_after) if needs_room(punch) else pause

    async def _order(
        self,
        client: ReachService,
        order: Order,
        scope: anyio.CancelScope,
        refused: list[Exception],
    ) -> None:
        try:
            await client.punch(order)
        except (LatticaError, TimeoutError) as error:
            refused.append(error)
            scope.cancel()

    async def _vouch(self, link: QuicLink) -> set[str]:
        """The hosts at which others than the peer itself see it now."""
        hosts: set[str] = set()
        relays: set[PeerId] = set()
        ways = link.steering.ways if link.steering is not None else None
        for way in () if ways is None else ways.all:
            where = link.path_of(way.address)
            if not way.is_proven:
                continue
            if text.is_relay(where):
                relays.add(PeerId.parse(text.split_relay(where)[0]))
            else:
                hosts.add(text.split(text.strip_scheme(where))[0])
        for relay in relays:
            try:
                hosts.update((await self._client(relay).seen(link.remote.peer)).hosts)
            except (LatticaError, TimeoutError) as error:
                log.debug("the relay does not say where it sees a peer: %s", error)
        return hosts

    def _client(self, peer: PeerId) -> ReachService:
        return self._rpc.client(peer, ReachService, SERVICE, timeout=self._config.call_timeout)
