"""The tests over sockets run once with each QUIC engine; those of item streams share a mesh."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from lattica.config import RpcConfig
from tests.faults.baseline import leftovers
from tests.rpc.mesh import WINDOW, Mesh, until

ENGINES = ("aioquic", "qh3")
OVER_SOCKETS = {"test_sockets", "test_tcp"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.module.__name__.rpartition(".")[2] in OVER_SOCKETS:
        metafunc.parametrize("engine", ENGINES, indirect=True)


@pytest.fixture(autouse=True)
def _with_engine(engine: str | None) -> None:
    """So that the parameter reaches tests that do not ask for it."""


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    """Small windows and few places; at the end nothing may be left of any call."""
    async with Mesh(RpcConfig(stream_window=WINDOW, max_streams_per_peer=8)) as mesh:
        yield mesh
        await until(lambda: not leftovers(mesh.a) and not leftovers(mesh.b))
