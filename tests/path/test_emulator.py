"""The emulated network does to datagrams what it was told: measured at the other end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import anyio
import pytest

from lattica.path.emulator import Direction, Pipe
from lattica.path.interface import VirtualAddress
from lattica.path.memory import Conditions, MemoryPath, PacketNetwork
from lattica.virtual_loop import VirtualLoop

pytestmark = pytest.mark.anyio

SIZE = 1000


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


class Watch:
    """Notes when each datagram arrives."""

    def __init__(self, path: MemoryPath) -> None:
        self.arrivals: list[tuple[float, bytes]] = []
        path.start(self)

    def packets_received(self, packets: Sequence[tuple[bytes, VirtualAddress]]) -> None:
        now = anyio.current_time()
        self.arrivals += [(now, data) for data, _ in packets]

    def probes_received(self, probes: object) -> None: ...

    def path_refused(self, address: VirtualAddress) -> None: ...

    @property
    def numbers(self) -> list[int]:
        return [int.from_bytes(data[1:5], "big") for _, data in self.arrivals]


class Line:
    """Two members; `send` numbers datagrams from the first to the second."""

    def __init__(self, network: PacketNetwork) -> None:
        self.network = network
        self.source, target = network.path("a"), network.path("b")
        self.back = Watch(self.source)
        self.watch = Watch(target)
        self._numbers: Iterator[int] = iter(range(10**9))

    async def send(self, count: int, *, every: float = 0.0, size: int = SIZE) -> list[float]:
        """Send so many, and say when each was sent."""
        address = await self.source.resolve("b:1")
        times = []
        for _ in range(count):
            times.append(anyio.current_time())
            datagram = b"@" + next(self._numbers).to_bytes(4, "big")
            self.source.send([datagram.ljust(size, b".")], address)
            if every:
                await anyio.sleep(every)
        return times


def line(seed: int = 0, **conditions: Any) -> Line:
    return Line(PacketNetwork(Conditions(**conditions), seed=seed))


async def test_delay_is_as_told() -> None:
    told = line(latency=0.05)
    sent = await told.send(20, every=0.01)
    await anyio.sleep(1)
    delays = [at - then for (at, _), then in zip(told.watch.arrivals, sent, strict=True)]
    assert delays == pytest.approx([0.05] * 20, abs=1e-5)


async def test_rate_is_as_told_for_long_and_for_short_datagrams() -> None:
    for size in (100, 1000):
        told = line(latency=0.05, rate=1_000_000.0, queue=10_000_000)
        start = (await told.send(5000, size=size))[0]
        await anyio.sleep(10)
        last = told.watch.arrivals[-1][0]
        assert len(told.watch.arrivals) == 5000
        assert 5000 * size / (last - start - 0.05) == pytest.approx(1_000_000, rel=1e-4)


async def test_a_line_that_is_not_full_adds_only_its_own_time() -> None:
    told = line(rate=1_000_000.0)
    sent = await told.send(50, every=0.002)
    await anyio.sleep(1)
    delays = [at - then for (at, _), then in zip(told.watch.arrivals, sent, strict=True)]
    assert delays == pytest.approx([0.001] * 50, abs=1e-5)


async def test_the_queue_holds_its_bytes_and_drops_the_tail() -> None:
    told = line(rate=1_000_000.0, queue=20 * SIZE)
    start = (await told.send(100))[0]
    direction = told.network.direction("a:1", "b:1")
    assert direction.backlog(start) == pytest.approx(20 * SIZE)
    await anyio.sleep(1)
    assert told.watch.numbers == list(range(20))
    assert told.network.counters["overflowed"] == 80
    # The last one waited for all before it.
    assert told.watch.arrivals[-1][0] - start == pytest.approx(0.02, abs=1e-5)
    await told.send(5)
    await anyio.sleep(1)
    assert len(told.watch.arrivals) == 25


@pytest.mark.parametrize(
    ("name", "counter", "seen"),
    [
        ("loss", "lost", lambda got: 1 - len(got) / 10_000),
        ("duplicate", "duplicated", lambda got: len(got) / 10_000 - 1),
        ("corrupt", "corrupted", lambda got: sum(not data.endswith(b".") for data in got) / 10_000),
    ],
)
async def test_chances_are_as_told(
    name: str, counter: str, seen: Callable[[list[bytes]], float]
) -> None:
    # Corruption is looked for in one byte only, and the first byte's fixed bit decides
    # whether a datagram is QUIC's: short datagrams make both likely enough to see.
    told = line(seed=7, **{name: 0.05})
    await told.send(10_000, size=6)
    await anyio.sleep(1)
    counted = told.network.counters[counter] / 10_000
    assert counted == pytest.approx(0.05, abs=0.01)
    if name == "corrupt":
        assert 0.01 < seen([data for _, data in told.watch.arrivals]) < counted
    else:
        assert seen([data for _, data in told.watch.arrivals]) == pytest.approx(counted)


async def test_corruption_flips_a_few_bits() -> None:
    told = line(corrupt=1.0)
    await told.send(200)
    await anyio.sleep(1)
    flips = []
    for _, data in told.watch.arrivals:
        assert len(data) == SIZE
        clean = int.from_bytes(data[5:], "big") ^ int.from_bytes(b"." * (SIZE - 5), "big")
        flips.append(clean.bit_count())
    assert max(flips) <= 8
    assert sum(flips) / len(flips) == pytest.approx(4.5, abs=0.6)


async def test_jitter_is_within_its_bounds_and_keeps_the_order() -> None:
    told = line(latency=0.05, jitter=0.04)
    sent = await told.send(500, every=0.01)
    await anyio.sleep(1)
    delays = [at - then for (at, _), then in zip(told.watch.arrivals, sent, strict=True)]
    assert told.watch.numbers == list(range(500))
    assert min(delays) < 0.055
    assert 0.085 < max(delays) <= 0.0901


async def test_jitter_may_reorder() -> None:
    told = line(latency=0.05, jitter=0.04, jitter_reorders=True)
    await told.send(500, every=0.001)
    await anyio.sleep(1)
    assert told.watch.numbers != list(range(500))
    assert sorted(told.watch.numbers) == list(range(500))


async def test_larger_than_the_mtu_is_dropped() -> None:
    told = line(mtu=1000)
    await told.send(3, size=1000)
    await told.send(2, size=1001)
    await anyio.sleep(1)
    assert told.watch.numbers == [0, 1, 2]
    assert told.network.counters["too_big"] == 2


async def test_each_direction_has_its_own_conditions_and_chances() -> None:
    told = line(latency=0.01)
    told.network.shape("b:1", "a:1", Conditions(latency=0.2))
    start = anyio.current_time()
    await told.send(1)
    await anyio.sleep(1)
    assert told.watch.arrivals[0][0] - start == pytest.approx(0.01, abs=1e-5)
    told.network.carry(b"@\0\0\0\0", "b:1", "a:1")
    start = anyio.current_time()
    await anyio.sleep(1)
    assert told.back.arrivals[0][0] - start == pytest.approx(0.2, abs=1e-5)

    def fates(noise: int) -> list[bytes]:
        network = PacketNetwork(Conditions(loss=0.5), seed=3)
        for _ in range(noise):
            network.direction("b:1", "a:1").carry(b"@", 0.0)
        forth = network.direction("a:1", "b:1")
        return [b"".join(data for _, data in forth.carry(b"@", 0.0)) for _ in range(100)]

    assert fates(0) == fates(50)


async def test_members_share_an_uplink_and_a_downlink() -> None:
    network = PacketNetwork(Conditions(latency=0.01))
    network.downlink("c:1", 1_000_000.0, 10_000_000)
    a, b, c = (network.path(name) for name in "abc")
    watch = Watch(c)
    for sender in (a, b):
        sender.start(watch)
        sender.send([b"@" * SIZE] * 500, await sender.resolve("c:1"))
    start = anyio.current_time()
    await anyio.sleep(5)
    assert len(watch.arrivals) == 1000
    assert watch.arrivals[-1][0] - start == pytest.approx(1.01, abs=1e-3)

    network.uplink("a:1", 100_000.0, 50 * SIZE)
    a.send([b"@" * SIZE] * 100, await a.resolve("c:1"))
    start = anyio.current_time()
    await anyio.sleep(5)
    assert len(watch.arrivals) == 1050
    assert watch.arrivals[-1][0] - start == pytest.approx(0.511, abs=1e-3)


async def test_a_blackout_ends_by_itself_and_spares_others() -> None:
    told = line(latency=0.05)
    await told.send(10)  # on their way when the line is cut
    told.network.blackout("a:1", "b:1", 2.0)
    start = anyio.current_time()
    sent = await told.send(30, every=0.1)
    await anyio.sleep(1)
    times = [at - start for at, _ in told.watch.arrivals]
    assert times[0] == pytest.approx(2.05, abs=0.1)
    assert len(times) == sum(then - start >= 2.0 for then in sent)
    assert told.network.counters["cut"] == 40 - len(times)


async def test_silence_can_end() -> None:
    told = line()
    told.network.silence("b:1")
    await told.send(1)
    await anyio.sleep(0.1)
    told.network.unsilence("b:1")
    await told.send(1)
    await anyio.sleep(0.1)
    assert told.watch.numbers == [1]


def test_conditions_can_change_on_the_way() -> None:
    direction = Direction(Conditions(rate=1000.0, queue=10_000), "seed")
    assert direction.carry(b"@" * 1000, 0.0)[0][0] == pytest.approx(1.0)
    direction.conditions = Conditions(rate=100_000.0, queue=10_000)
    # What is being sent keeps its time, and nothing overtakes it.
    assert direction.backlog(0.0) == pytest.approx(1000)
    assert direction.carry(b"@" * 1000, 0.0)[0][0] == pytest.approx(1.0)
    assert direction.carry(b"@" * 1000, 2.0)[0][0] == pytest.approx(2.01)


def test_a_datagram_larger_than_the_queue_passes_an_idle_line() -> None:
    pipe = Pipe(1000.0, 10)
    assert pipe.enter(100, 0.0) == pytest.approx(0.1)
    assert pipe.enter(100, 0.0) is None
    assert pipe.enter(100, 0.2) == pytest.approx(0.3)
