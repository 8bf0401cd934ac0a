"""One link's signs of life and its clocks, and what is done about them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from lattica.errors import LinkError
from lattica.link.engine import Engine
from lattica.link.interface import LinkHandler
from lattica.link.owner import LinkOwner
from lattica.link.phase import Phase
from lattica.link.refusals import CloseCode
from lattica.link.sending import Sending
from lattica.link.statistics import Meter
from lattica.link.watch import Watch
from lattica.path.interface import VirtualAddress

if TYPE_CHECKING:
    from lattica.link.quic_link import QuicLink


class Vitals:
    """What the endpoint tells of time, silence and the path goes here; acts through the link.

    Times in seconds of the event loop's clock.

    Attributes:
        pulse: what is heard of the other end.
        liveness: whether the other end lives.
    """

    def __init__(
        self,
        link: QuicLink,
        owner: LinkOwner,
        engine: Engine,
        sending: Sending,
        meter: Meter,
        now: float,
    ) -> None:
        self._link = link
        self._owner = owner
        self._engine = engine
        self._sending = sending
        self._meter = meter
        self._loop = asyncio.get_running_loop()
        self._watch = Watch(self, owner.config, owner.clock, now, is_dialer=link.is_dialer)
        self.pulse = self._watch.pulse
        self.liveness = self.pulse.liveness

    # -------------------------------------------------------------- from the link

    def keyed(self, binding: bytes) -> bytes:
        """TLS is done. The id under which beats arrive."""
        return self._watch.keyed(binding)

    def opened(self, now: float, *, expires: float) -> None:
        """Both ends have accepted each other; see `Watch.opened`."""
        steering = self._sending.steering
        assert steering is not None
        self.look_at(min(self._watch.opened(now, expires=expires), steering.begin(now)))
        self._sending.hasten = self.look_at

    def handled(self, handler: LinkHandler, *, is_local: bool) -> None:
        """See `Watch.handled`."""
        self._watch.handled(handler, is_local=is_local)

    def written(self, now: float) -> None:
        """Something has been sent: somebody may wait for the other end now."""
        if self._watch.may_get_busy:
            self._watch.look_busy(now)

    # ---------------------------------------- from the endpoint, and who looks after links

    def check(self, now: float) -> float:
        """Look at the clocks; when to look again. Not called any more once it is closed."""
        look_again = self._watch.check(now)
        steering = self._sending.steering
        if not self._link.is_open or steering is None:
            return look_again
        look_again = min(look_again, steering.check(now, self.liveness.heard))
        return min(look_again, self._link.leaving.check(now))

    def receive_beat(self, datagram: bytes, now: float) -> None:
        """Take in a datagram of a beat's size. There are no events after it."""
        self._meter.packets_in += 1
        self._meter.bytes_in += len(datagram)
        answer = self.pulse.on_beat(datagram, now) if self._link.is_open else None
        if answer is not None:
            self.send_beat(answer)

    def receive_probe(self, datagram: bytes, address: VirtualAddress, now: float) -> None:
        """Take in a probe of the path, or the reply to one of ours."""
        steering = self._sending.steering
        if steering is not None:
            steering.received(datagram, address, now)
            if self._link.is_open:
                self.look_at(min(self.liveness.due(now), steering.due))

    def on_refused(self, address: VirtualAddress, now: float) -> None:
        """The network says that nobody listens there (a hint, not a fact)."""
        steering = self._sending.steering
        if self._is_over or (steering is not None and steering.refused(address, now)):
            return
        if address == self._sending.address:
            self._watch.on_refused(now)

    def on_stall(self, seconds: float, now: float) -> None:
        """This end's loop did not run for `seconds`: nobody is to blame for them."""
        self._watch.on_stall(seconds, now)

    def on_wake(self, slept: float) -> None:
        """This machine was asleep, or the process stopped: see at once what is left of it."""
        if self._link.is_open:
            self._watch.on_wake(slept, self._loop.time())
            self.probe()

    def rest_at_most(self, seconds: float) -> None:
        """Be heard of at least so often, on every way, also while nothing is in flight."""
        self.liveness.rest_at_most(seconds)
        if self._sending.steering is not None:
            self._sending.steering.rest_at_most(seconds)
        if self._link.is_open:
            self.look_at(self.liveness.due(self._loop.time()))

    # ------------------------------------------------------------ for the watch

    @property
    def rtt(self) -> float:
        """See `Watched`."""
        return self._engine.rtt

    def look_at(self, at: float) -> None:
        """See `Watched`."""
        self._owner.link_due(self._link, at)

    def probe(self) -> None:
        """See `Watched`."""
        if not self._is_over:
            self._engine.ping()
            if self._sending.steering is not None:
                now = self._loop.time()
                self.look_at(min(self.liveness.due(now), self._sending.steering.hurry(now)))
            self._owner.link_dirty(self._link)

    def wake(self) -> None:
        """See `Watched`."""
        self._engine.ping()
        self._owner.link_dirty(self._link)

    def suspicion(self, reason: str | None) -> None:
        """See `Watched`."""
        if reason is None:
            self._owner.link_heard(self._link)
        else:
            self._owner.link_suspect(self._link, reason)

    def send_beat(self, datagram: bytes) -> None:
        """See `Watched`."""
        self._sending.send_beat(datagram)

    def refuse(self, error: LinkError) -> None:
        """See `Watched`."""
        self._link.refuse(error)

    def end(self, error: LinkError, code: CloseCode, reason: str) -> None:
        """See `Watched`."""
        self._link.end(error, code, reason)

    # ------------------------------------------------------------------ inside

    @property
    def _is_over(self) -> bool:
        return self._link.phase is Phase.CLOSED
