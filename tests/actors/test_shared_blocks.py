"""Blocks as programs use them: two whole peers over real sockets, one with workers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import pytest

import lattica
from lattica.actors.context import Context, set_current
from lattica.actors.shared_blocks import SharedBlocks
from lattica.config import ActorsConfig, Config
from lattica.errors import ActorsError, BlockMissingError, GetTimeoutError, StoreError
from lattica.peer import Peer, PeerOptions
from lattica.rpc import Buffer

pytestmark = pytest.mark.anyio

DATA = Random(7).randbytes(3_000_000)
NOBODY = "b3-" + "a" * 52
LIMIT = 4_000_000  # bytes; too little for twice the data


@contextlib.asynccontextmanager
async def two_peers() -> AsyncIterator[tuple[Peer, Peer]]:
    """One that works and one that drives; the API of this process is the second one's."""
    config = Config(actors=ActorsConfig(pipe_frame=LIMIT))
    async with Peer.open(PeerOptions(name="host", cpus=1, config=config)) as host:
        ticket = host.invite().encode()
        async with Peer.open(PeerOptions(name="driver", ticket=ticket, cpus=0)) as driver:
            context = Context(driver.core, asyncio.get_running_loop(), kind="driver")
            set_current(context)
            try:
                yield host, driver
            finally:
                context.close()
                set_current(None)


def fetch_and_answer(manifest_id: str) -> tuple[int, str]:
    """In a worker: what arrived, and the id under which an answer was put."""
    data = lattica.fetch_blocks(manifest_id, timeout=20)
    return len(data), lattica.put_blocks(data[::-1])


def forget(manifest_id: str) -> str:
    """In a worker: what went wrong with removing blocks."""
    try:
        lattica.remove_blocks(manifest_id)
    except StoreError as error:
        return str(error)
    return "removed"


def fetch_in_vain(manifest_id: str, timeout: float | None = None) -> str:
    """In a worker: the error of a fetch."""
    try:
        lattica.fetch_blocks(manifest_id, timeout=timeout)
    except lattica.LatticaError as error:
        return f"{type(error).__name__}: {error}"
    return ""


async def remotely(function: Any, *args: Any) -> Any:
    return await lattica.remote(function).remote(*args)


async def test_a_worker_fetches_through_its_host_which_then_provides() -> None:
    async with two_peers() as (host, driver):
        name = await asyncio.to_thread(lattica.put_blocks, DATA)
        assert not host.blocks.has(name)
        size, answer = await remotely(fetch_and_answer, name)
        assert size == len(DATA)
        assert host.blocks.has(name)
        report = host.blocks.report(name)
        assert report is not None
        assert report.provided == {driver.identity.peer_id: len(DATA)}
        assert await asyncio.to_thread(lattica.fetch_blocks, answer) == DATA[::-1]
        # The first provider may forget them: the host has become one.
        await asyncio.to_thread(lattica.remove_blocks, name)
        assert not driver.blocks.has(name)
        assert await asyncio.to_thread(lattica.fetch_blocks, name, timeout=20) == DATA


async def test_only_what_programs_brought_can_be_removed_by_them() -> None:
    async with two_peers() as (host, driver):
        own = await host.blocks.add_bytes(b"a model that the host serves")
        theirs = await driver.blocks.add_bytes(DATA)
        assert await remotely(fetch_and_answer, own)
        assert "this peer's own" in await remotely(forget, own)
        assert host.blocks.has(own)
        await remotely(fetch_and_answer, theirs)
        assert await remotely(forget, theirs) == "removed"
        assert await remotely(forget, theirs) == "removed", "again: does nothing"
        assert not host.blocks.has(theirs)
        assert driver.blocks.has(theirs)
        assert "no manifest id" in await remotely(forget, "../../etc/passwd")


async def test_errors_reach_the_worker_as_what_they_are() -> None:
    async with two_peers() as (host, driver):
        assert (await remotely(fetch_in_vain, NOBODY)).startswith("BlockMissingError")
        assert "no manifest id" in await remotely(fetch_in_vain, "weights")
        assert (await remotely(fetch_in_vain, NOBODY, 0.0)).startswith("GetTimeoutError")
        large = await driver.blocks.add_bytes(DATA * 2)
        assert "too many" in await remotely(fetch_in_vain, large)
        assert not host.blocks.has(large)


async def test_in_a_driver_wrong_arguments_are_told_at_the_call() -> None:
    async with two_peers():
        with pytest.raises(TypeError, match="takes bytes, not a str"):
            lattica.put_blocks("text")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="takes an id, not an int"):
            lattica.fetch_blocks(3)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="takes an id"):
            lattica.remove_blocks(b"x")  # type: ignore[arg-type]
        with pytest.raises(BlockMissingError):
            await asyncio.to_thread(lattica.fetch_blocks, NOBODY)
        with pytest.raises(GetTimeoutError):
            await asyncio.to_thread(lattica.fetch_blocks, NOBODY, timeout=0.0)


async def test_a_put_over_the_limit_is_refused_before_it_is_written() -> None:
    async with two_peers() as (_, driver):
        blocks = SharedBlocks(driver.blocks, limit=9)
        assert driver.blocks.has(await blocks.put(Buffer(b"123456789")))
        with pytest.raises(StoreError, match="10 bytes at once are too many; the limit is 9"):
            await blocks.put(Buffer(b"1234567890"))


async def test_a_peer_without_blocks_says_so() -> None:
    blocks = SharedBlocks(None, limit=9)
    with pytest.raises(ActorsError, match="keeps no blocks"):
        await blocks.fetch(NOBODY, None)
