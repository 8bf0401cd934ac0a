"""What every test shares."""

from __future__ import annotations

import signal

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell has started the tests in the background. What they start would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def anyio_backend() -> str:
    """Everything runs on asyncio: the QUIC driver uses its event loop."""
    return "asyncio"


@pytest.fixture
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """The QUIC engine in use, also by processes that the test starts; None for any."""
    name: str | None = getattr(request, "param", None)
    if name is not None:
        monkeypatch.setenv("LATTICA_QUIC", name)
    return name
