"""Every test of a whole stack runs once with each QUIC engine, on a clock that jumps."""

from __future__ import annotations

import pytest

from lattica.virtual_loop import VirtualLoop

ENGINES = ("aioquic", "qh3")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine" in metafunc.fixturenames:
        metafunc.parametrize("engine", ENGINES, indirect=True)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualLoop}
