"""A race course for congestion controllers: model, pacer and an emulated path, no QUIC, no loop."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from itertools import count

from lattica.link.bbr import Bbr, Phase
from lattica.link.delivery import Flow, Sent
from lattica.link.pacing import Pacer
from lattica.path.emulator import Conditions, Direction, Pipe

PATIENCE = 0.5  # seconds without an acknowledgement: what is in flight is lost
ACK_EVERY = 0.001  # seconds: a receiver's delay


class Racer:
    """One flow. Sends whole datagrams as long as `wants(now)`."""

    def __init__(
        self,
        course: Course,
        conditions: Conditions,
        *,
        datagram: int = 1452,
        seed: int = 0,
        wants: Callable[[float], bool] = lambda now: True,
    ) -> None:
        self.course = course
        self.datagram = datagram
        self.wants = wants
        self.model = Bbr(datagram, chance=lambda: 0.5)
        self.flow = Flow()
        self.pacer = Pacer(datagram)
        self.direction = Direction(conditions, f"{seed}")
        self.back = conditions.latency
        self.rtts: list[tuple[float, float]] = []
        self.phases: set[Phase] = set()
        self._unacked: dict[int, Sent] = {}
        self._arrived: list[int] = []
        self._number = count()
        self._is_ack_due = False
        self._wake_at = -1.0
        self._heard = 0.0
        course.at(PATIENCE, self._watch)

    def push(self, now: float) -> None:
        """Send what may be sent."""
        flow, model = self.flow, self.model
        while self.wants(now) and flow.in_flight + self.datagram <= model.window:
            at = self.pacer.next_send_time(now)
            if at is not None:
                self._wake(at)
                return
            if flow.in_flight == 0 and flow.is_app_limited:
                model.on_restart(now)
            self.pacer.update_after_send(now)
            number = next(self._number)
            self._unacked[number] = flow.sent(self.datagram, now)
            self.pacer.sent(self.datagram)
            packet = number.to_bytes(8, "big").ljust(self.datagram)
            entered: float | None = now
            if self.course.shared is not None:
                entered = self.course.shared.enter(self.datagram, now)
            if entered is not None:
                for arrival, data in self.direction.carry(packet, entered):
                    self.course.at(arrival, lambda then, data=data: self._arrive(data, then))
        if not self.wants(now):
            flow.ran_dry()
            self._wake(now + 0.01)

    def _wake(self, at: float) -> None:
        if self._wake_at <= self.course.now or at < self._wake_at:
            self._wake_at = at
            self.course.at(at, lambda now: self.push(now) if now == self._wake_at else None)

    def _arrive(self, data: bytes, now: float) -> None:
        self._arrived.append(int.from_bytes(data[:8], "big"))
        if not self._is_ack_due:
            self._is_ack_due = True
            self.course.at(now + ACK_EVERY, self._answer)

    def _answer(self, now: float) -> None:
        self._is_ack_due = False
        numbers, self._arrived = self._arrived, []
        self.course.at(now + self.back, lambda then: self._acknowledge(numbers, then))

    def _acknowledge(self, numbers: list[int], now: float) -> None:
        newest: Sent | None = None
        for number in numbers:
            packet = self._unacked.pop(number, None)
            if packet is not None:
                self.flow.acked(packet, now)
                newest = packet
        sample = self.flow.take_sample(now)
        if sample is not None and newest is not None:
            rtt = now - newest.at
            self.rtts.append((now, rtt))
            self.model.on_ack(sample, rtt, self.flow.in_flight, self.flow.delivered, now)
            self.phases.add(self.model.phase)
            if self.model.is_probing_rtt:
                self.flow.ran_dry()
        self._heard = now
        self._lose([each for each in self._unacked if each < numbers[-1] - 3], now)
        self.pacer.set_rate(self.model.pacing_rate)
        self.push(now)

    def _lose(self, numbers: list[int], now: float) -> None:
        for number in numbers:
            packet = self._unacked.pop(number)
            self.flow.gone(packet, is_lost=True)
            self.model.on_lost(packet, self.flow.lost, now)

    def _watch(self, now: float) -> None:
        self.course.at(now + PATIENCE, self._watch)
        if self._unacked and now - self._heard > PATIENCE:
            self._lose(list(self._unacked), now)
            self.push(now)


class Course:
    """Runs flows, side by side through one line if there is one."""

    def __init__(self, shared: Pipe | None = None) -> None:
        self.shared = shared
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = count()

    def at(self, time: float, act: Callable[[float], None]) -> None:
        """Have something happen."""
        heapq.heappush(self._events, (time, next(self._order), act))

    def run(self, until: float) -> None:
        """Go on until then."""
        while self._events and self._events[0][0] <= until:
            self.now, _, act = heapq.heappop(self._events)
            act(self.now)
        self.now = until


def rates(course: Course, racers: Sequence[Racer], start: float, end: float) -> list[float]:
    """What each delivers between two times, bytes/s."""
    course.run(start)
    before = [racer.flow.delivered for racer in racers]
    course.run(end)
    return [
        (racer.flow.delivered - then) / (end - start)
        for racer, then in zip(racers, before, strict=True)
    ]
