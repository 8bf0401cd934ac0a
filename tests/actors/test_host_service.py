"""The host over rpc: who may submit, and what comes back."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from lattica.actors.host import Host
from lattica.actors.host_service import HostService
from lattica.actors.messages import LeaseRequest, Requirements
from lattica.clock import SystemClock
from lattica.errors import LeaseRefusedError, PermissionDeniedError
from lattica.identity import grants
from lattica.identity.keys import Identity
from lattica.link.memory import MemoryLinks, MemoryNetwork
from lattica.rpc import Rpc
from tests.actors.hosting import FakeCore, actor, eventually, new_id, read, task, value_of
from tests.actors.test_host_actors import Counter

pytestmark = pytest.mark.anyio


class Mesh:
    """A host, a member, and a stranger, linked in memory."""

    def __init__(self, host: Host, member: Any, stranger: Any, links: MemoryLinks) -> None:
        self.host = host
        self.member = member
        self.stranger = stranger
        self.member_links = links


@asynccontextmanager
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    authority = Identity.generate()
    network = MemoryNetwork()
    async with AsyncExitStack() as stack:

        async def join(name: str, scopes: tuple[str, ...]) -> tuple[Rpc, MemoryLinks]:
            identity = Identity.generate()
            chain: tuple[Any, ...] = ()
            if scopes:
                chain = (
                    grants.issue(
                        authority,
                        mesh=authority.peer_id,
                        subject=identity.peer_id,
                        scopes=scopes,
                        expires=SystemClock().time() + 600,
                    ),
                )
            membership = grants.Membership(authority.peer_id, chain)
            links = MemoryLinks(network, identity, membership, name=name)
            return await stack.enter_async_context(Rpc(links, name=name)), links

        host_rpc, _ = await join("host", grants.MEMBER)
        member_rpc, member_links = await join("member", grants.MEMBER)
        stranger_rpc, _ = await join("stranger", ())
        host = await stack.enter_async_context(
            Host(host_rpc, "host", {"CPU": 4.0}, {}, FakeCore(), tmp_path / "logs")
        )
        member, stranger = (
            rpc.client(host_rpc.local, HostService, "host", timeout=20.0)
            for rpc in (member_rpc, stranger_rpc)
        )
        yield Mesh(host, member, stranger, member_links)


REQUEST = LeaseRequest(Requirements(cpus=0.5), "task", "it")


async def test_tasks_and_streams_over_rpc(tmp_path: Path) -> None:
    def numbers(n: int) -> Iterator[int]:
        yield from range(n)

    async with mesh(tmp_path) as parts:
        member = parts.member
        reply = await member.lease(REQUEST)
        [outcome] = await member.run(reply.lease, task(len, b"x" * 1_000_000))
        assert value_of(outcome) == 1_000_000
        [outcome] = await member.run(reply.lease, task(bytes, 2_000_000))
        assert len(value_of(outcome)) == 2_000_000
        stream = member.run_stream(reply.lease, task(numbers, 200, returns=(), stream=new_id()))
        assert [value_of(outcome) async for outcome in stream] == list(range(200))
        assert await member.renew(reply.lease)
        await member.release(reply.lease)
        assert not await member.renew(reply.lease)
        with pytest.raises(LeaseRefusedError, match="no such lease"):
            await member.run(reply.lease, task(os.getpid))


async def test_an_actor_over_rpc(tmp_path: Path) -> None:
    async with mesh(tmp_path) as parts:
        member = parts.member
        lease = (await member.lease(REQUEST)).lease
        spec = actor(Counter, 40, max_restarts=1)
        assert await member.create_actor(lease, spec) is None
        from tests.actors.hosting import Actor

        handle = Actor(parts.host, spec, lease)
        [outcome] = await member.call(handle.message("add", 2))
        assert value_of(outcome) == 42
        await member.kill(spec.actor, False)
        async for state in member.watch(spec.actor):
            if state.state == "alive" and state.restarts == 1:
                break
        [outcome] = await member.call(handle.message("add", 2))
        assert value_of(outcome) == 42
        await member.kill(spec.actor, True)
        states = [state async for state in member.watch(spec.actor)]
        assert states[-1].state == "dead"
        assert "killed by member" in states[-1].reason


async def test_a_stranger_runs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "written"

    class Bomb:
        def __reduce__(self) -> Any:
            return Path.write_text, (path, "boom")

    async with mesh(tmp_path) as parts:
        stranger, lease = parts.stranger, (await parts.member.lease(REQUEST)).lease
        bomb = task(len, Bomb())
        for call in (
            lambda: stranger.lease(REQUEST),
            lambda: stranger.run(lease, bomb),
            lambda: stranger.create_actor(lease, actor(Counter, Bomb())),
            lambda: stranger.renew(lease),
            lambda: stranger.release(lease),
            lambda: stranger.cancel(bomb.task, True),
            lambda: stranger.kill(b"a", True),
        ):
            with pytest.raises(PermissionDeniedError):
                await call()
        for stream in (
            lambda: stranger.run_stream(lease, bomb),
            lambda: stranger.watch(b"a"),
        ):
            with pytest.raises(PermissionDeniedError):
                async for _ in stream():
                    pass
        assert await parts.member.renew(lease)
        assert parts.host.worker_pids() == []
    assert not path.exists()


async def test_a_lost_link_frees_what_its_peer_left_running(tmp_path: Path) -> None:
    def wait(path: str) -> None:
        import time

        Path(path).write_text("begun")
        try:
            time.sleep(600)
        finally:
            Path(path).write_text("interrupted")

    import anyio

    from lattica.errors import LatticaError

    path = tmp_path / "state"
    async with mesh(tmp_path) as parts:
        lease = (await parts.member.lease(REQUEST)).lease

        async def run() -> None:
            with pytest.raises(LatticaError):
                await parts.member.run(lease, task(wait, str(path)))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await eventually(path.exists)
            parts.member_links.leave()
        await eventually(lambda: read(path) == "interrupted")
