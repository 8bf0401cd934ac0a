"""The tests over sockets run once with each QUIC engine."""

from __future__ import annotations

import pytest

ENGINES = ("aioquic", "qh3")
OVER_SOCKETS = {"test_sockets", "test_tcp"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.module.__name__.rpartition(".")[2] in OVER_SOCKETS:
        metafunc.parametrize("engine", ENGINES, indirect=True)


@pytest.fixture(autouse=True)
def _with_engine(engine: str | None) -> None:
    """So that the parameter reaches tests that do not ask for it."""
