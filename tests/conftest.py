"""What every test shares."""

from __future__ import annotations

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """Everything runs on asyncio: the QUIC driver uses its event loop."""
    return "asyncio"
