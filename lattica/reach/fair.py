"""A rate shared fairly by those who use it, without a queue. No I/O.

Bytes that may pass are made at the total rate and given out in small steps: equal parts to the
groups, in a group equal parts to its flows, and what one has no room for goes to the others
(max-min fairness by water-filling). A flow that asks for less than its part keeps a full
bucket whatever the others do, so it loses nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from lattica.config import RelayConfig

STEP = 0.001  # seconds between two refills, at least,
STEP_PER_FLOW = 5e-6  # and so much for each flow in use: their number must not cost more CPU
QUIET = 2.0  # seconds; a flow silent for longer leaves its bucket to the others


class Flow:
    """One direction between two peers.

    Attributes:
        level: bytes that may pass now. Below zero, small frames have been lent what comes next.
        is_awake: whether it takes part in the sharing; see `Shares.wake`.
    """

    __slots__ = ("group", "holds", "is_awake", "key", "level", "used")

    def __init__(self, group: Group, key: object) -> None:
        self.group = group
        self.key = key
        self.level = 0.0
        self.used = 0.0
        self.is_awake = False
        self.holds = 0


class Group:
    """The flows that share one part."""

    __slots__ = ("awake", "flows")

    def __init__(self) -> None:
        self.flows: dict[object, Flow] = {}
        self.awake: list[Flow] = []


class Shares:
    """Who may send how much. Times in seconds, sizes in bytes.

    In any time `t`, at most `rate * t + burst` passes, and `min_burst + small_reserve` for
    each flow in use.
    """

    def __init__(self, config: RelayConfig, now: float) -> None:
        self._config = config
        self._at = now
        self._step = STEP
        self._pool = config.burst / 2  # made, and given to nobody yet; below zero: lent
        self._awake: dict[Group, None] = {}
        self._count = 0

    @property
    def awake(self) -> int:
        """Flows in use."""
        return self._count

    def join(self, group: Group, key: object) -> Flow:
        """The group's flow of that key. To be given back by `leave`."""
        flow = group.flows.get(key)
        if flow is None:
            flow = group.flows[key] = Flow(group, key)
        flow.holds += 1
        return flow

    def leave(self, flow: Flow) -> None:
        """The counterpart of `join`."""
        flow.holds -= 1
        if flow.holds == 0:
            del flow.group.flows[flow.key]
            if flow.is_awake:
                self._sleep(flow)

    def wake(self, flow: Flow, now: float) -> None:
        """The flow is in use. If it was not, it begins with something in its bucket.

        That is lent where it must be: a new flow's first frames should pass on a busy relay too.
        """
        flow.used = now
        if flow.is_awake:
            return
        flow.is_awake = True
        flow.group.awake.append(flow)
        self._awake[flow.group] = None
        self._count += 1
        self._step = max(STEP, STEP_PER_FLOW * self._count)
        least = self._config.min_burst
        if self._pool >= least * (1 - self._count):
            flow.level = min(self._room, least + max(0.0, self._pool) / 2)
            self._pool -= flow.level

    def rest(self, now: float) -> None:
        """Take the flows out that are not in use."""
        for group in tuple(self._awake):
            for flow in tuple(group.awake):
                if now - flow.used > QUIET:
                    self._sleep(flow)

    def refill(self, now: float) -> None:
        """Give out what time has made since the last step, if that is long enough ago."""
        passed = now - self._at
        if passed < self._step:
            return
        self._at = now
        config = self._config
        made = config.rate * passed
        # What was lent is paid back by half of what is made. Until then a flow that asks for its
        # part lives on the other half and on `min_burst`, which is just enough.
        amount = max(made / 2, made + self._pool)
        still_owed = amount - made - self._pool
        room = self._room
        most = config.rate_per_peer * passed
        groups: list[tuple[list[Flow], list[float]]] = []
        wants: list[float] = []
        for group in self._awake:
            rooms = []
            for flow in group.awake:
                if flow.level > room:  # others have come: less may be kept
                    amount += flow.level - room
                    flow.level = room
                rooms.append(room - flow.level)
            groups.append((group.awake, rooms))
            wants.append(min(most, sum(rooms)))
        for part, (flows, rooms) in zip(fill(amount, wants), groups, strict=True):
            amount -= part
            for flow, given in zip(flows, fill(part, rooms), strict=True):
                flow.level += given
        self._pool = min(amount - still_owed, config.burst / 2)

    @property
    def _room(self) -> float:
        """What a flow may keep for later."""
        return self._config.min_burst + self._config.burst / 2 / max(1, self._count)

    def _sleep(self, flow: Flow) -> None:
        self._pool = min(self._pool + flow.level, self._config.burst / 2)
        flow.level = 0.0
        flow.is_awake = False
        flow.group.awake.remove(flow)
        if not flow.group.awake:
            del self._awake[flow.group]
        self._count -= 1
        self._step = max(STEP, STEP_PER_FLOW * self._count)


def fill(amount: float, wants: Sequence[float]) -> Sequence[float]:
    """Equal parts of `amount`, but to nobody more than wanted; the rest is the others'."""
    if sum(wants) <= amount:
        return wants
    parts = [0.0] * len(wants)
    left = len(wants)
    for at in sorted(range(len(wants)), key=wants.__getitem__):
        parts[at] = min(wants[at], amount / left)
        amount -= parts[at]
        left -= 1
    return parts
