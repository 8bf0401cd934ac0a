"""The real lab is skipped, with the reason, where the system cannot have it."""

from __future__ import annotations

import pytest

from tests.netlab.requirements import reason


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Look once, and only if such a test is to run."""
    if item.get_closest_marker("netlab") is not None and (why := reason()) is not None:
        pytest.skip(why)
