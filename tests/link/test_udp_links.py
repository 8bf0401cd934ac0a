"""Links over real sockets, and between two processes."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.abc import Process

from lattica.config import LinkConfig
from lattica.errors import UnreachableError
from lattica.path.udp import UdpPath
from tests.link.helpers import ALICE, BOB, CAROL, Peer, peer

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def bob_process() -> AsyncIterator[tuple[Process, str]]:
    """Bob as a process of its own, and his address."""
    async with await anyio.open_process(
        [sys.executable, "-m", "tests.link.udp_peer"], stderr=sys.stderr
    ) as process:
        assert process.stdout is not None
        try:
            with anyio.fail_after(20):
                line = b""
                while not line.endswith(b"\n"):
                    line += await process.stdout.receive()
            yield process, line.decode().strip()
        finally:
            if process.returncode is None:
                process.kill()


@asynccontextmanager
async def alice_on_udp() -> AsyncIterator[Peer]:
    async with peer(ALICE, UdpPath.bind("127.0.0.1:0"), config=LinkConfig()) as alice:
        yield alice


async def test_two_endpoints_exchange_bytes() -> None:
    async with (
        alice_on_udp() as alice,
        peer(BOB, UdpPath.bind("127.0.0.1:0"), config=LinkConfig()) as bob,
    ):
        link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        await bob.until_linked(alice)
        theirs = bob.to(alice)
        payload = os.urandom(3_000_000)
        stream_id = link.open_stream(unidirectional=True)
        link.write(stream_id, payload, end=True)
        await theirs.until(lambda: theirs.ended == [stream_id])
        assert theirs.data[stream_id] == payload
        assert link.address == bob.endpoint.addresses[0]
        assert 0 < link.rtt < 1


async def test_ipv6() -> None:
    async with (
        peer(ALICE, UdpPath.bind("[::1]:0"), config=LinkConfig()) as alice,
        peer(BOB, UdpPath.bind("[::1]:0"), config=LinkConfig()) as bob,
    ):
        assert bob.endpoint.addresses[0].startswith("[::1]:")
        link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        assert link.address == bob.endpoint.addresses[0]


async def test_two_processes_echo() -> None:
    async with bob_process() as (_, address), alice_on_udp() as alice:
        link = await alice.endpoint.connect(BOB.peer_id, [address])
        stream_id = link.open_stream(unidirectional=False)
        link.write(stream_id, b"are you there?", end=True)
        recorder = alice.handlers[0]
        await recorder.until(lambda: recorder.ended == [stream_id])
        assert recorder.data[stream_id] == b"are you there?"


async def test_a_killed_process_is_noticed_at_once() -> None:
    async with bob_process() as (process, address), alice_on_udp() as alice:
        await alice.endpoint.connect(BOB.peer_id, [address])
        recorder = alice.handlers[0]
        process.send_signal(signal.SIGKILL)
        started = time.monotonic()
        await recorder.until(lambda: bool(recorder.lost), timeout=5)
        assert time.monotonic() - started < 2.0
        assert alice.endpoint.current() == ()


async def test_a_frozen_process_is_noticed_within_two_seconds() -> None:
    async with bob_process() as (process, address), alice_on_udp() as alice:
        await alice.endpoint.connect(BOB.peer_id, [address])
        recorder = alice.handlers[0]
        process.send_signal(signal.SIGSTOP)  # its port stays, and nothing answers
        started = time.monotonic()
        await recorder.until(lambda: bool(recorder.lost), timeout=5)
        assert time.monotonic() - started < 2.2
        assert "nothing was heard" in str(recorder.lost[0])


async def test_a_port_where_nobody_listens_is_told_quickly() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    async with alice_on_udp() as alice:
        started = time.monotonic()
        with pytest.raises(UnreachableError, match="nobody listens there"):
            await alice.endpoint.connect(CAROL.peer_id, [f"127.0.0.1:{port}"])
        assert time.monotonic() - started < 3.0


async def test_a_forged_hint_does_not_end_a_link() -> None:
    async with (
        alice_on_udp() as alice,
        peer(BOB, UdpPath.bind("127.0.0.1:0"), config=LinkConfig()) as bob,
    ):
        link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        for _ in range(5):
            alice.endpoint.path_refused(link.virtual_address)  # type: ignore[attr-defined]
            await anyio.sleep(0.1)
        assert link.is_open
