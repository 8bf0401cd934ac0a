"""Discovery over a real kernel's devices: two namespaces joined by a cable of a certain MTU."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from lattica.config import LinkConfig
from lattica.path.udp import UdpPath
from tests.link.helpers import ALICE, BOB, Peer, eventually, exchange, peer
from tests.link.test_sizing import GROWING, size

HERE, THERE = "10.99.0.1", "10.99.0.2"
OVERHEAD = 28  # IPv4 and UDP headers


def _can_make_namespaces() -> bool:
    if sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("ip"):
        return False
    return subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode == 0


pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not _can_make_namespaces(), reason="needs root, `ip` and namespaces"),
]


class Cable:
    """Two namespaces named after this process, removed at the end."""

    def __init__(self, mtu: int) -> None:
        self.one, self.other = (f"lattica-{os.getpid()}-{end}" for end in "ab")
        self._ip("netns", "add", self.one)
        self._ip("netns", "add", self.other)
        self._ip(
            "-n", self.one, "link", "add", "v0", "type", "veth", "peer", "v0", "netns", self.other
        )
        for name, address in ((self.one, HERE), (self.other, THERE)):
            self._ip("-n", name, "address", "add", f"{address}/24", "dev", "v0")
            self._ip("-n", name, "link", "set", "v0", "up")
        self.resize(mtu)

    def resize(self, mtu: int, *ends: str) -> None:
        for name in ends or (self.one, self.other):
            self._ip("-n", name, "link", "set", "v0", "mtu", str(mtu))

    def bind(self, namespace: str, address: str) -> UdpPath:
        """A path whose socket is in the namespace: sockets stay where they were made."""
        with _inside(namespace):
            return UdpPath.bind(f"{address}:0")

    def remove(self) -> None:
        for name in (self.one, self.other):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)

    def _ip(self, *args: str) -> None:
        subprocess.run(["ip", *args], check=True, capture_output=True)


@pytest.fixture
def cable(request: pytest.FixtureRequest) -> Iterator[Cable]:
    made = Cable(request.param)
    yield made
    made.remove()


@contextmanager
def _inside(namespace: str) -> Iterator[None]:
    """Have this thread in a network namespace for a while."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/self/ns/net").open() as home, Path("/run/netns", namespace).open() as there:
        assert libc.setns(there.fileno(), 0) == 0, os.strerror(ctypes.get_errno())
        try:
            yield
        finally:
            assert libc.setns(home.fileno(), 0) == 0


@asynccontextmanager
async def joined(cable: Cable) -> AsyncIterator[tuple[Peer, Peer]]:
    config = LinkConfig()
    async with (
        peer(ALICE, cable.bind(cable.one, HERE), config=config) as alice,
        peer(BOB, cable.bind(cable.other, THERE), config=config) as bob,
    ):
        await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        await bob.until_linked(alice)
        yield alice, bob


@pytest.mark.parametrize(
    ("cable", "expected"), [(1280, 1232), (1500, 1472), (9000, 8952)], indirect=["cable"]
)
@GROWING
async def test_the_size_of_a_cable_is_found_each_way(cable: Cable, expected: int) -> None:
    async with joined(cable) as (alice, bob):
        least, most = expected, expected + 32
        await eventually(lambda: least <= size(alice, bob) <= most)
        await eventually(lambda: least <= size(bob, alice) <= most)
        await exchange(alice.to(bob).link, bob.to(alice), os.urandom(2_000_000))
        assert alice.endpoint.counters["datagram_shrunk"] == 0


@pytest.mark.parametrize("cable", [9000], indirect=True)
@GROWING
async def test_an_interface_that_shrinks_is_followed_at_once(cable: Cable) -> None:
    """This end's own interface refuses: EMSGSIZE."""
    async with joined(cable) as (alice, bob):
        await eventually(lambda: size(alice, bob) >= 8_952)
        payload = os.urandom(4_000_000)
        cable.resize(1500)
        await exchange(alice.to(bob).link, bob.to(alice), payload)
        assert alice.endpoint.counters["too_big"] > 0
        await eventually(lambda: 1200 < size(alice, bob) <= 1472)


@pytest.mark.parametrize("cable", [9000], indirect=True)
@GROWING
async def test_a_black_hole_is_found_out(cable: Cable) -> None:
    """Only the far end shrinks: what is too large for it vanishes on the way."""
    async with joined(cable) as (alice, bob):
        await eventually(lambda: size(alice, bob) >= 8_952)
        cable.resize(1500, cable.other)
        payload = os.urandom(1_000_000)
        await exchange(alice.to(bob).link, bob.to(alice), payload)
        await eventually(lambda: 1200 < size(alice, bob) <= 1472, timeout=10)
        assert alice.endpoint.counters["datagram_shrunk"] >= 1
