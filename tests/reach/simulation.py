"""Two ends behind the lab's NATs that learn what they are behind, then punch. Virtual time.

An end here does what the link's table of ways does with probes (`lattica.path.ways`): it answers
where a probe came from, tries that address itself, and takes an address for proven when a probe
sent there is answered.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from itertools import count

from lattica.path import addresses as text
from lattica.path.way import WayTimers
from lattica.path.ways import MAX_WAYS
from lattica.reach.nat import NatObserver, NatReport
from lattica.reach.plan import Punch, Side, plan
from lattica.reach.spray import Openings, Spray
from tests.netlab.kinds import KINDS
from tests.netlab.nat import Address, Box, Firewall, Nat, Packet

MAIN = 4242
WITNESSES = tuple((f"198.18.200.{number}", 4000 + number) for number in range(1, 6))
STRANGER = ("198.18.201.1", 4000)
PATIENCE = WayTimers().patience  # seconds that an address is tried


class Network:
    """What a host sees of the world through its boxes, inner first."""

    def __init__(self, kind: str, number: int, seed: object) -> None:
        self.kind = KINDS[kind]
        self.boxes: list[Box] = []
        public = f"198.18.{number}.1"
        if self.kind.home is not None:
            outside = f"100.64.{number}.2" if self.kind.carrier else public
            self.boxes.append(Nat(self.kind.home, outside, seed=f"{seed} home {number}"))
        if self.kind.carrier is not None:
            self.boxes.append(Nat(self.kind.carrier, public, seed=f"{seed} carrier {number}"))
        if self.kind.firewall is not None:
            self.boxes.append(Firewall(self.kind.firewall))
        self.host = f"10.0.{number}.2" if self.kind.home is not None else public

    def outbound(self, packet: Packet | None, now: float) -> Packet | None:
        if not self.kind.policy.udp:
            return None
        for box in self.boxes:
            packet = packet and box.outbound(packet, now)
        return packet

    def inbound(self, packet: Packet | None, now: float) -> Packet | None:
        if not self.kind.policy.udp:
            return None
        for box in reversed(self.boxes):
            packet = packet and box.inbound(packet, now)
        return packet


def learn(
    network: Network,
    *,
    witnesses: int = 3,
    filters: bool = True,
    local: int = MAIN,
    start: float = 0.0,
) -> NatObserver:
    """What a main socket at `network` is told by peers, 10 ms apart; the last at time `start`."""
    observer = NatObserver()
    observer.interfaces([network.host, "127.0.0.1"])
    inside = (network.host, local)
    now = start - 0.01 * witnesses
    for witness in WITNESSES[:witnesses]:
        now += 0.01
        observer.contacted(text.join(*witness), now)
        seen = network.outbound(Packet(inside, witness), now)
        if seen is not None:
            observer.observed(text.join(*witness), text.join(*seen.source), text.join(*inside), now)
    public = observer.report(start).public
    if not public:
        observer.udp_blocked()
    if filters and public:
        # The witness last sent to knows the newest address; a neighbour of it has another port.
        target = text.split(public[0])
        for source in (STRANGER, (WITNESSES[witnesses - 1][0], 9)):
            came = network.inbound(Packet(source, target), start)
            told = observer.unsolicited if came is not None else observer.kept_out
            told(text.join(*source), start)
    return observer


class End:
    """One peer during the attempt."""

    def __init__(self, world: World, network: Network, report: NatReport) -> None:
        self.world = world
        self.network = network
        self.report = report
        self.packets = 0
        self.proven: set[tuple[int, Address]] = set()
        self.peer: End
        self._tried: dict[tuple[int, Address], float] = {}
        self._began: dict[tuple[int, Address], float] = {}
        self._flying: dict[int, tuple[int, Address]] = {}

    def begin(self, punch: Punch, side: Side, seed: int) -> None:
        """Do one's part of the plan."""
        now = self.world.now
        for address in self.peer.report.public:
            self.offer(MAIN, text.split(address))
        self._openings = Openings(punch, side, now)
        self._spray = Spray(side, self.peer.report, now + punch.delay, seed=seed)
        self._open()
        self._guess()

    def offer(self, port: int, remote: Address) -> None:
        """Try an address from one of the sockets."""
        way = (port, remote)
        is_new = way not in self._tried
        self._tried[way] = self.world.now + PATIENCE
        if is_new:
            if len(self._tried) > MAX_WAYS:
                del self._tried[next(each for each in self._tried if each not in self.proven)]
            self._began[way] = self.world.now
            self._try(way)

    def arrived(self, source: Address, port: int, sequence: int, is_reply: bool) -> None:
        """A probe or a reply that passed all boxes."""
        if not is_reply:
            self.send(port, source, sequence, is_reply=True)
            self.offer(port, source)
            return
        way = self._flying.get(sequence)
        if way is None:
            self.offer(port, source)  # sprayed
        elif way == (port, source) or (self.world.is_lenient and way[0] == port):
            self.proven.add(way)
        else:
            self.offer(port, source)

    def send(self, port: int, target: Address, sequence: int, *, is_reply: bool = False) -> None:
        """One packet."""
        self.packets += 1
        inside = (self.network.host, port)
        packet = self.network.outbound(Packet(inside, target), self.world.now)
        if packet is not None:
            self.world.carry(packet, sequence, is_reply)

    def _try(self, way: tuple[int, Address]) -> None:
        now = self.world.now
        if way in self.proven or now > self._tried.get(way, 0.0):
            return
        sequence = next(self.world.sequences)
        self._flying[sequence] = way
        self.send(*way, sequence)
        pause = 0.1 if now - self._began[way] < 1.0 else 0.3
        self.world.at(now + pause, lambda: self._try(way))

    def _open(self) -> None:
        fixed = self.peer.report.public
        for number in self._openings.take(self.world.now):
            self.send(40_000 + number, text.split(fixed[0]), next(self.world.sequences))
        if self._openings.due != float("inf"):
            self.world.at(self._openings.due, self._open)

    def _guess(self) -> None:
        for port in self._spray.take(self.world.now):
            self.send(MAIN, (self.peer.report.hosts[0], port), next(self.world.sequences))
        if self._spray.due != float("inf"):
            self.world.at(self._spray.due, self._guess)


class World:
    """One attempt of two ends.

    `is_lenient`: an answer proves the address that the probe was sent to, wherever it came from;
    else only if it came from there.
    `noise` other connections leave each network between its report and the attempt.
    """

    def __init__(
        self,
        dialer: str,
        acceptor: str,
        seed: int,
        *,
        delay: float = 0.01,
        loss: float = 0.0,
        noise: int = 2,
        filters: bool = True,
        is_lenient: bool = True,
    ) -> None:
        self.now = 0.0
        self.is_lenient = is_lenient
        self.sequences = count()
        self._random = random.Random(f"world {seed}")
        self._seed = seed
        self._delay = delay
        self._loss = loss
        self._order = count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self.ends = [
            self._end(kind, number, noise, filters) for number, kind in ((1, dialer), (2, acceptor))
        ]
        self.dialer, self.acceptor = self.ends
        self.dialer.peer, self.acceptor.peer = self.acceptor, self.dialer
        self.punch = plan(self.dialer.report, self.acceptor.report)

    def run(self, until: float = 30.0) -> float | None:
        """When both ends have proven a direct way, in seconds; None if they do not."""
        self.at(0.0, lambda: self.dialer.begin(self.punch, self.punch.dialer, self._seed))
        skew = 2 * self._delay
        self.at(skew, lambda: self.acceptor.begin(self.punch, self.punch.acceptor, -self._seed))
        while self._events and self._events[0][0] <= until:
            self.now, _, act = heapq.heappop(self._events)
            act()
            if self.dialer.proven and self.acceptor.proven:
                return self.now
        return None

    def at(self, when: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), act))

    def carry(self, packet: Packet, sequence: int, is_reply: bool) -> None:
        """From one network's outside to the other's."""
        if self._random.random() < self._loss:
            return
        self.at(self.now + 2 * self._delay, lambda: self._enter(packet, sequence, is_reply))

    def _enter(self, packet: Packet, sequence: int, is_reply: bool) -> None:
        for end in self.ends:
            if packet.target[0] == f"198.18.{1 + self.ends.index(end)}.1":
                inside = end.network.inbound(packet, self.now)
                if inside is not None:
                    end.arrived(inside.source, inside.target[1], sequence, is_reply)

    def _end(self, kind: str, number: int, noise: int, filters: bool) -> End:
        network = Network(kind, number, self._seed)
        report = learn(network, filters=filters, start=-1.0).report(-1.0)
        for other in range(self._random.randint(0, noise)):
            network.outbound(Packet((network.host, 50_000 + other), STRANGER), -0.5)
        return End(self, network, report)
