"""A congestion controller that models the path: numbers in, a window and a rate out. Sans-IO.

After draft-ietf-ccwg-bbr (BBR version 3): it learns the path's bandwidth and its round-trip
time, sends at that rate with a bounded amount in flight, and looks again from time to
time. A few percent of loss do not slow it; more than that bounds what is in flight.
Sizes are bytes, rates bytes/s, times seconds.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from enum import Enum, auto

from lattica.link.bbr_model import (
    BETA,
    LOSS_THRESHOLD,
    Aggregation,
    FullPipe,
    MaxBandwidth,
    MinRtt,
    is_too_much,
)
from lattica.link.delivery import Sample, Sent

INITIAL_WINDOW = 10  # datagrams (RFC 9002 §7.2)
MIN_WINDOW = 4  # datagrams
PACING_MARGIN = 0.99  # of the bandwidth, so that queues go
STARTUP_GAIN = 2.77  # 4 ln 2: doubles the rate each round
STARTUP_GROWTH = 1.25
STARTUP_ROUNDS = 3  # without that growth: the pipe is full
STARTUP_LOSSES = 6  # events in a round that end the start, if they are too much
PROBE_GROWTH = 1.1  # probing for bandwidth paces at 1.25: less growth than this is noise
PROBE_ROUNDS = 2  # the first to send more, the second to see it arrive
DRAIN_GAIN = 0.35
HEADROOM = 0.15  # of the bound on what is in flight is left to others
PROBE_WAIT = 2.0  # seconds between probes for bandwidth, and up to one more
MAX_RENO_ROUNDS = 63  # a Reno flow beside us gets its chance as often
PROBE_RTT_TIME = 0.2  # seconds
PROBE_RTT_GAIN = 0.5
NOMINAL_RTT = 0.001  # before the first sample
QUANTUM = 64 * 1024  # most bytes of one burst
SLOW = 150_000  # bytes/s below which a burst is one datagram


class Phase(Enum):
    """What the controller is about."""

    STARTUP = auto()
    DRAIN = auto()
    DOWN = auto()  # the four phases of a probe for bandwidth: give back,
    CRUISE = auto()  # go with the estimate,
    REFILL = auto()  # fill the pipe,
    UP = auto()  # ask for more
    PROBE_RTT = auto()


class _Acks(Enum):
    """Of which part of the probe the acknowledgements tell now, a round after it."""

    NOTHING = auto()
    REFILLING = auto()
    STARTING = auto()
    FEEDBACK = auto()
    STOPPING = auto()


_PACING = {
    Phase.STARTUP: STARTUP_GAIN,
    Phase.DRAIN: DRAIN_GAIN,
    Phase.DOWN: 0.9,
    Phase.CRUISE: 1.0,
    Phase.REFILL: 1.0,
    Phase.UP: 1.25,
    Phase.PROBE_RTT: 1.0,
}
_WINDOW = dict.fromkeys(Phase, 2.0) | {Phase.UP: 2.25, Phase.PROBE_RTT: PROBE_RTT_GAIN}
_PROBE = frozenset((Phase.DOWN, Phase.CRUISE, Phase.REFILL, Phase.UP))
_ASKING = frozenset((Phase.STARTUP, Phase.REFILL, Phase.UP))


class Bbr:
    """Reads samples; `window` and `pacing_rate` say what may be sent."""

    def __init__(
        self,
        datagram: int,
        *,
        limit: int = 1 << 62,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`limit` bounds the window; `chance` (0 to 1) keeps flows from probing in step."""
        self.datagram = datagram
        self.limit = limit
        self.phase = Phase.STARTUP
        self.window = INITIAL_WINDOW * datagram
        self.pacing_rate = STARTUP_GAIN * self.window / NOMINAL_RTT
        self.max_bandwidth = MaxBandwidth()
        self.min_rtt = MinRtt()
        self.inflight_hi = math.inf  # more than this lost too much, when last asked for
        self._inflight_lo = self._bandwidth_lo = math.inf  # since the last probe
        self._chance = chance
        self._aggregation = Aggregation()
        self._full_pipe = FullPipe()
        self._is_full = False  # the start is over
        self._delivered = 0
        self._round_end = self._loss_round_end = 0
        self._is_round_start = False
        self._rate_latest = 0.0
        self._inflight_latest = 0
        self._lost_in_round = self._losses_in_round = 0
        self._acks = _Acks.NOTHING
        self._may_judge = False  # loss now tells of what the probe has put in flight
        self._phase_at = 0.0
        self._probe_wait = PROBE_WAIT
        self._rounds_since_probe = 0
        self._is_bounded = False  # in this round, by the upper bound
        self._up_rounds = 0
        self._up_acked = 0
        self._up_step = math.inf  # bytes acknowledged for one datagram more
        self._probe_rtt_ends: float | None = None
        self._probe_rtt_round = False
        self._saved_window = 0
        self._is_restarting = False  # after quiet: the model is old, not wrong
        self._is_reviving = False  # after everything was lost

    @property
    def bandwidth(self) -> float:
        """What the path is taken to carry."""
        return min(self.max_bandwidth.value, self._bandwidth_lo)

    def bdp(self, gain: float = 1.0) -> float:
        """Bandwidth times delay; the first window until both are known."""
        rtt = self.min_rtt.value
        if rtt == math.inf or not self.max_bandwidth.value:
            return gain * INITIAL_WINDOW * self.datagram
        return gain * self.bandwidth * rtt

    # ------------------------------------------------------------------ events

    def on_ack(
        self, sample: Sample, rtt: float, in_flight: int, delivered: int, now: float
    ) -> None:
        """An acknowledgement: its sample, what is left in flight, what the flow has delivered."""
        is_first = self.min_rtt.value == math.inf
        self._delivered = delivered
        self._start_round_if_due(sample)
        is_loss_round = self._take_signals(sample)
        if self._is_round_start:
            self._aggregation.next_round()
            self._check_startup(sample)
        self._aggregation.update(sample.acked, self.bandwidth, self.window, now)
        if self.phase is Phase.STARTUP and self._is_full:
            self._aggregation = Aggregation()  # so far it was growth, not bunching
            self._enter(Phase.DRAIN, now)
        if self.phase is Phase.DRAIN and in_flight <= self._inflight(1.0):
            self._start_down(now)
        if self._is_full:
            self._cycle(sample, in_flight, now)
        expired = self.min_rtt.update(rtt, now)
        self._probe_rtt(expired, in_flight, now)
        if is_loss_round:
            self._rate_latest, self._inflight_latest = sample.rate, sample.delivered
            self._lost_in_round = self._losses_in_round = 0
        self._set_rate(is_first)
        self._set_window(sample.acked)
        self._is_restarting = False

    def on_lost(self, packet: Sent, lost: int, now: float) -> None:
        """A packet is lost; `lost` is what the flow has lost so far, with it."""
        self._lost_in_round += packet.size
        self._losses_in_round += 1
        during = lost - packet.lost
        if not self._may_judge or not is_too_much(during, packet.in_flight, self.datagram):
            return
        # How much was in flight when the loss became too much: a part of this packet.
        before = packet.in_flight - packet.size
        over = LOSS_THRESHOLD * before - (during - packet.size)
        at = before + max(0.0, over / (1.0 - LOSS_THRESHOLD))
        self._too_high(at, is_app_limited=packet.is_app_limited, now=now)

    def on_blackout(self) -> None:
        """Everything sent for a long time is lost (RFC 9002 §7.6): begin small, trust the model.

        A cut path comes back as it was more often than not; if it does, so does the window,
        a round trip later.
        """
        if not self._is_reviving:
            self._saved_window = max(self._saved_window, self.window)
        self._is_reviving = True
        self._round_end = self._delivered
        self._reset_short_term()
        self.window = MIN_WINDOW * self.datagram

    def on_restart(self, now: float) -> None:
        """Something is sent after quiet: do not take the pause for a probe."""
        self._is_restarting = True
        if self.phase in _PROBE:
            self._set_pacing(1.0)

    def set_datagram(self, size: int) -> None:
        """Packets have another size from now on."""
        self.datagram = size
        self.window = max(self.window, MIN_WINDOW * size)

    # ----------------------------------------------------------------- signals

    def _start_round_if_due(self, sample: Sample) -> None:
        self._is_round_start = sample.prior_delivered >= self._round_end
        if self._is_round_start:
            self._round_end = self._delivered
            self._rounds_since_probe += 1

    def _take_signals(self, sample: Sample) -> bool:
        """Note the rate and the loss; whether a round of looking at loss is over."""
        rate = sample.rate
        self._rate_latest = max(self._rate_latest, rate)
        self._inflight_latest = max(self._inflight_latest, sample.delivered)
        if rate and (rate >= self.max_bandwidth.value or not sample.is_app_limited):
            self.max_bandwidth.update(rate)
        if sample.prior_delivered < self._loss_round_end:
            return False
        self._loss_round_end = self._delivered
        # The draft yields to any loss in a round. Loss below the threshold is what a radio
        # link does all the time, and a rate that yields each round never comes back.
        if self.phase not in _ASKING and is_too_much(
            self._lost_in_round, sample.in_flight, self.datagram
        ):
            low = self.max_bandwidth.value if self._bandwidth_lo == math.inf else self._bandwidth_lo
            self._bandwidth_lo = max(self._rate_latest, BETA * low)
            bound = self.window if self._inflight_lo == math.inf else self._inflight_lo
            self._inflight_lo = max(self._inflight_latest, BETA * bound)
        return True

    def _check_startup(self, sample: Sample) -> None:
        """Look at the rate once a round: does it still grow?"""
        is_start = self.phase is Phase.STARTUP
        if sample.rate and not sample.is_app_limited:
            if not is_start:
                self._full_pipe.on_round(sample.rate, PROBE_GROWTH, PROBE_ROUNDS)
            elif self._full_pipe.on_round(sample.rate, STARTUP_GROWTH, STARTUP_ROUNDS):
                self._is_full = True
        if (
            is_start
            and self._losses_in_round >= STARTUP_LOSSES
            and is_too_much(self._lost_in_round, sample.in_flight, self.datagram)
        ):
            self._is_full = True
            self.inflight_hi = max(self.bdp(), self._inflight_latest)

    def _reset_short_term(self) -> None:
        self._bandwidth_lo = self._inflight_lo = math.inf
        self._rate_latest, self._inflight_latest = 0.0, 0
        self._lost_in_round = self._losses_in_round = 0

    # ---------------------------------------------------- probing for bandwidth

    def _cycle(self, sample: Sample, in_flight: int, now: float) -> None:
        self._adapt_upper_bound(sample, now)
        phase = self.phase
        if phase is Phase.DOWN:
            if not self._refill_if_due(now) and in_flight <= min(
                self._with_headroom(), self._inflight(1.0)
            ):
                self.phase = Phase.CRUISE
        elif phase is Phase.CRUISE:
            self._refill_if_due(now)
        elif phase is Phase.REFILL:
            if self._is_round_start:
                self._start_up(sample, now)
        elif phase is Phase.UP and self._full_pipe.is_full:
            self._start_down(now)

    def _refill_if_due(self, now: float) -> bool:
        # A Reno flow in the same place needs as many rounds to come back as it has packets.
        rounds = min(self.bdp() / self.datagram, MAX_RENO_ROUNDS)
        is_due = now - self._phase_at > self._probe_wait or self._rounds_since_probe >= max(
            rounds, 8
        )
        if is_due:
            self._reset_short_term()
            self._up_rounds = self._up_acked = 0
            self._acks = _Acks.REFILLING
            self._enter(Phase.REFILL, now)
        return is_due

    def _start_up(self, sample: Sample, now: float) -> None:
        self._acks = _Acks.STARTING
        self._may_judge = True
        self._full_pipe.reset(sample.rate)
        self._enter(Phase.UP, now)
        self._raise_slope()

    def _start_down(self, now: float) -> None:
        self._rate_latest, self._inflight_latest = 0.0, 0
        self._lost_in_round = self._losses_in_round = 0
        self._up_step = math.inf
        self._rounds_since_probe = 0
        self._probe_wait = PROBE_WAIT + self._chance()
        self._acks = _Acks.STOPPING
        self._enter(Phase.DOWN, now)

    def _enter(self, phase: Phase, now: float) -> None:
        self.phase = phase
        self._phase_at = now
        self._round_end = self._delivered

    def _adapt_upper_bound(self, sample: Sample, now: float) -> None:
        if self._is_round_start:
            if self._acks is _Acks.STARTING:
                self._acks = _Acks.FEEDBACK
            elif self._acks is _Acks.STOPPING:
                self._may_judge = False
                self._acks = _Acks.NOTHING
                if self.phase in _PROBE and not sample.is_app_limited:
                    self.max_bandwidth.advance()
        if self._may_judge and is_too_much(sample.lost, sample.in_flight, self.datagram):
            self._too_high(sample.in_flight, is_app_limited=sample.is_app_limited, now=now)
            return
        if self.inflight_hi == math.inf:
            return
        self.inflight_hi = max(self.inflight_hi, sample.in_flight)
        if self.phase is Phase.UP:
            self._probe_upward(sample)

    def _probe_upward(self, sample: Sample) -> None:
        """Raise the bound where it holds the flow back, each round twice as fast."""
        if (
            self.window >= self.inflight_hi
            and sample.in_flight + 2 * self.datagram >= self.window
            and not sample.is_app_limited
        ):
            self._is_bounded = True
            self._up_acked += sample.acked
            if self._up_acked >= self._up_step:
                steps = int(self._up_acked / self._up_step)
                self._up_acked -= int(steps * self._up_step)
                self.inflight_hi += steps * self.datagram
        if self._is_round_start and self._is_bounded:
            self._is_bounded = False
            self._raise_slope()
            self._full_pipe.reset(sample.rate)  # the rate had no chance to grow

    def _raise_slope(self) -> None:
        growth = self.datagram << self._up_rounds
        self._up_rounds = min(self._up_rounds + 1, 30)
        self._up_step = max(self.window / growth * self.datagram, self.datagram)

    def _too_high(self, in_flight: float, *, is_app_limited: bool, now: float) -> None:
        self._may_judge = False
        if not is_app_limited:
            target = min(self.bdp(), self.window)
            self.inflight_hi = max(in_flight, BETA * target)
        if self.phase is Phase.UP:
            self._start_down(now)

    # ------------------------------------------------------- probing for delay

    def _probe_rtt(self, expired: bool, in_flight: int, now: float) -> None:
        if self.phase is not Phase.PROBE_RTT:
            if expired and not self._is_restarting and not self._is_reviving:
                self._saved_window = self.window
                self._probe_rtt_ends = None
                self._acks = _Acks.STOPPING
                self._enter(Phase.PROBE_RTT, now)
            return
        if self._probe_rtt_ends is None:
            if in_flight <= self._probe_rtt_window():
                self._probe_rtt_ends = now + PROBE_RTT_TIME
                self._probe_rtt_round = False
                self._round_end = self._delivered
            return
        self._probe_rtt_round = self._probe_rtt_round or self._is_round_start
        if self._probe_rtt_round and now > self._probe_rtt_ends:
            self.min_rtt.confirm(now)
            self.window = max(self.window, self._saved_window)
            self._saved_window = 0
            self._reset_short_term()
            if self._is_full:
                self._start_down(now)
                self.phase = Phase.CRUISE
            else:
                self.phase = Phase.STARTUP

    @property
    def is_probing_rtt(self) -> bool:
        """Less than the application has is in flight now, on purpose."""
        return self.phase is Phase.PROBE_RTT

    def _probe_rtt_window(self) -> float:
        return max(self.bdp(PROBE_RTT_GAIN), MIN_WINDOW * self.datagram)

    # ----------------------------------------------------------------- results

    def _inflight(self, gain: float) -> float:
        """What to have in flight for the bandwidth times `gain`, bursts allowed for."""
        least = self.datagram if self.pacing_rate < SLOW else 2 * self.datagram
        burst = min(max(self.pacing_rate * 0.001, least), QUANTUM)
        return max(self.bdp(gain) + 3 * burst, MIN_WINDOW * self.datagram)

    def _with_headroom(self) -> float:
        """The bound, less what is left to others."""
        if self.inflight_hi == math.inf:
            return math.inf
        room = max(HEADROOM * self.inflight_hi, self.datagram)
        return max(self.inflight_hi - room, MIN_WINDOW * self.datagram)

    def _set_rate(self, is_first: bool) -> None:
        if is_first:  # the rate so far was a guess without a round-trip time
            rtt = max(self.min_rtt.value, NOMINAL_RTT)
            self.pacing_rate = STARTUP_GAIN * INITIAL_WINDOW * self.datagram / rtt
        self._set_pacing(_PACING[self.phase])

    def _set_pacing(self, gain: float) -> None:
        rate = gain * self.bandwidth * PACING_MARGIN
        if rate and (self._is_full or rate > self.pacing_rate):
            self.pacing_rate = rate

    def _set_window(self, acked: int) -> None:
        smallest = MIN_WINDOW * self.datagram
        if self._is_reviving and self._is_round_start and not self._lost_in_round:
            self._is_reviving = False
            self.window = max(self.window, self._saved_window)
            self._saved_window = 0
        most = self._inflight(_WINDOW[self.phase]) + self._aggregation.extra
        if self._is_full:
            self.window = int(min(self.window + acked, most))
        elif self.window < most or self._delivered < INITIAL_WINDOW * self.datagram:
            self.window += acked
        bound = float(self.limit)
        if self.phase is Phase.PROBE_RTT:
            bound = min(self._probe_rtt_window(), self._with_headroom())
        elif self.phase is Phase.CRUISE:
            bound = min(self._with_headroom(), bound)
        elif self.phase in _PROBE:
            bound = min(self.inflight_hi, bound)
        bound = min(bound, self._inflight_lo)
        self.window = int(max(min(self.window, bound), smallest))
