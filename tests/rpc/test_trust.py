"""Who may call what; refusals are typed, counted and logged once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest

from lattica.errors import (
    BadArgumentsError,
    DeadlineError,
    PermissionDeniedError,
    RemoteError,
    UnknownMethodError,
)
from lattica.rpc import Buffer, method, serving
from tests.rpc.mesh import Mesh, until
from tests.rpc.services import Bench

pytestmark = pytest.mark.anyio


class Open:
    @method(scope=None)
    async def fail(self) -> None:
        raise ValueError("here")


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    async with Mesh() as mesh:
        mesh.b.register("bench", Bench())
        mesh.b.register("open", Open())
        yield mesh


async def test_a_stranger_calls_what_is_open_and_nothing_else(
    mesh: Mesh, caplog: pytest.LogCaptureFixture
) -> None:
    stub = mesh.stranger.client(mesh.b.local, Bench, "bench")
    with caplog.at_level(logging.WARNING, "lattica.rpc"):
        for _ in range(5):
            with pytest.raises(PermissionDeniedError, match="'submit'"):
                await stub.submit()
            with pytest.raises(PermissionDeniedError, match="'call'"):
                await stub.add(1)
            with pytest.raises(PermissionDeniedError):
                await anext(stub.count(3))
    assert bytes(await stub.echo(Buffer(b"hello"))) == b"hello"
    assert mesh.b.counters["refused:permission"] == 15
    assert len(caplog.records) == 3
    stats = mesh.b.stats()
    assert stats.served["bench.submit"].calls == stats.served["bench.count"].calls == 0


async def test_a_member_may_do_what_its_grant_says(mesh: Mesh) -> None:
    assert await mesh.a.client(mesh.b.local, Bench, "bench").submit() == "done"
    assert await mesh.b.client(mesh.b.local, Bench, "bench").submit() == "done"


async def test_large_bodies_of_the_refused_are_not_taken_in(mesh: Mesh) -> None:
    class Greedy:
        @method()
        async def add(self, data: Buffer) -> int: ...  # type: ignore[empty-body]

    stub = mesh.stranger.client(mesh.b.local, Greedy, "bench")
    with pytest.raises(PermissionDeniedError):
        await stub.add(Buffer(bytes(40_000_000)))
    echo = mesh.stranger.client(mesh.b.local, Bench, "bench")
    with pytest.raises(BadArgumentsError, match="bytes of arguments"):
        await echo.echo(Buffer(bytes(serving.STRANGER_BODY + 1)))
    assert mesh.b.counters["refused:too_large"] == 1
    assert bytes(await echo.echo(Buffer(b"still there"))) == b"still there"


async def test_a_stranger_learns_neither_names_nor_code(mesh: Mesh) -> None:
    for service in ("bench", "none"):

        class Guess:
            @method()
            async def guess(self) -> None: ...

        with pytest.raises(UnknownMethodError) as caught:
            await mesh.stranger.client(mesh.b.local, Guess, service).guess()
        assert "submit" not in str(caught.value)
        assert "services here" not in str(caught.value)
        with pytest.raises(UnknownMethodError, match=r"submit|services here"):
            await mesh.a.client(mesh.b.local, Guess, service).guess()
    with pytest.raises(RemoteError) as refused:
        await mesh.stranger.client(mesh.b.local, Open, "open").fail()
    assert refused.value.remote_traceback == ""
    with pytest.raises(RemoteError) as told:
        await mesh.a.client(mesh.b.local, Open, "open").fail()
    assert "in fail" in told.value.remote_traceback


async def test_the_server_checks_arguments_too(mesh: Mesh) -> None:
    class Liar:
        @method()
        async def add(self, a: str) -> int: ...  # type: ignore[empty-body]

    with pytest.raises(BadArgumentsError, match="add"):
        await mesh.a.client(mesh.b.local, Liar, "bench").add("two")
    assert mesh.b.counters["refused:bad_arguments"] == 1


async def test_a_stranger_holds_little(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    class Waits:
        @method(scope=None)
        async def wait(self, data: Buffer) -> None:
            await asyncio.Event().wait()

    mesh.b.register("waits", Waits())
    monkeypatch.setattr(serving, "STRANGER_HELD", 1_000_000)
    monkeypatch.setattr(serving, "STRANGER_CALLS", 4)
    stub = mesh.stranger.client(mesh.b.local, Waits, "waits", timeout=0.2)
    outcomes = await asyncio.gather(
        *(stub.wait(Buffer(bytes(400_000))) for _ in range(3)),
        *(stub.wait(Buffer(b"")) for _ in range(3)),
        return_exceptions=True,
    )
    assert [type(one).__name__ for one in outcomes] == [
        *["DeadlineError"] * 2,
        "BusyError",
        *["DeadlineError"] * 2,
        "BusyError",
    ]
    await until(lambda: mesh.b.stats().served["waits.wait"].in_flight == 0)
    with pytest.raises(DeadlineError):
        await stub.wait(Buffer(bytes(900_000)))
