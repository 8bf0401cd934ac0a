"""Calls as users make them, over in-memory links."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from lattica.errors import BadArgumentsError, RemoteError, UnknownMethodError
from lattica.rpc import Buffer, Rpc, caller, method
from tests.rpc.mesh import Mesh

pytestmark = pytest.mark.anyio


class Echo:
    @method(scope=None)
    async def echo(self, data: Buffer) -> Buffer:
        return data

    @method()
    async def add(self, a: int, b: int = 1) -> int:
        return a + b

    @method()
    async def fail(self, text: str) -> None:
        raise ValueError(text)

    @method()
    async def who(self) -> str:
        return caller().name

    @method()
    async def count(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i

    @method()
    async def parts(self, n: int, size: int) -> AsyncIterator[Buffer]:
        for i in range(n):
            yield Buffer(bytes([i % 256]) * size)


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    async with Mesh() as mesh:
        mesh.b.register("echo", Echo())
        mesh.a.register("echo", Echo())
        yield mesh


@pytest.fixture(params=["link", "local"])
def echo(mesh: Mesh, request: pytest.FixtureRequest) -> Echo:
    rpc: Rpc = mesh.a if request.param == "link" else mesh.b
    return rpc.client(mesh.b.local, Echo, "echo", timeout=5)


@pytest.mark.parametrize("size", [0, 1, 16 * 1024, 16 * 1024 + 1, 3_000_000])
async def test_buffers_of_any_size_come_back(echo: Echo, size: int) -> None:
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    assert bytes(await echo.echo(Buffer(data))) == data


async def test_arguments_and_defaults(echo: Echo) -> None:
    assert await echo.add(2) == 3
    assert await echo.add(2, b=5) == 7


async def test_wrong_arguments_are_told_before_sending(echo: Echo) -> None:
    with pytest.raises(BadArgumentsError, match="add"):
        echo.add("two")  # type: ignore[arg-type]
    with pytest.raises(BadArgumentsError, match="missing"):
        echo.add()  # type: ignore[call-arg]


async def test_a_handlers_error_arrives(echo: Echo) -> None:
    with pytest.raises(RemoteError, match="no such luck") as caught:
        await echo.fail("no such luck")
    assert caught.value.type_name == "ValueError"
    assert "in fail" in caught.value.remote_traceback


async def test_streams(echo: Echo) -> None:
    assert [i async for i in echo.count(1000)] == list(range(1000))
    parts = [bytes(part) async for part in echo.parts(5, 700_000)]
    assert parts == [bytes([i]) * 700_000 for i in range(5)]


async def test_unknown_names_say_what_exists(mesh: Mesh) -> None:
    with pytest.raises(UnknownMethodError, match="echo"):
        await mesh.a.client(mesh.b.local, Echo, "ekko").add(1)


async def test_both_directions_at_once(mesh: Mesh) -> None:
    ab = mesh.a.client(mesh.b.local, Echo, "echo")
    ba = mesh.b.client(mesh.a.local, Echo, "echo")
    assert await ab.who() == "a"
    assert await ba.who() == "b"
