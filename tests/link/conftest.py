"""Every test of this directory that makes links runs once with each QUIC engine."""

from __future__ import annotations

import pytest

ENGINES = ("aioquic", "qh3")
CHOOSE_THEMSELVES = {
    "test_ack_delay",
    "test_bbr",
    "test_pacing",
    "test_wan",
    "test_congestion",
    "test_engine_contract",
    "test_engines",
    "test_interop",
    "test_parts",
    "test_proof",
    "test_sizing",
    "test_sizing_veth",
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    name = metafunc.module.__name__.rpartition(".")[2]
    if name == "test_retry" and not metafunc.definition.get_closest_marker("anyio"):
        return  # its sans-IO part
    if name not in CHOOSE_THEMSELVES:
        metafunc.parametrize("engine", ENGINES, indirect=True)


@pytest.fixture(autouse=True)
def _with_engine(engine: str | None) -> None:
    """So that the parameter reaches tests that do not ask for it."""
