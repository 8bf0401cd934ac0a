"""Processes that tests start, and whether they have ended."""

from __future__ import annotations

from collections.abc import Iterable

import psutil


def still_running(processes: Iterable[psutil.Process], *, timeout: float = 5.0) -> list[str]:
    """Those that go on after `timeout` seconds.

    A zombie has ended: an orphan stays one until whoever adopted it looks, and in some
    containers nobody ever does.
    """
    _, alive = psutil.wait_procs(list(processes), timeout=timeout)
    return [repr(each) for each in alive if _state(each) != psutil.STATUS_ZOMBIE]


def _state(process: psutil.Process) -> str:
    try:
        return str(process.status())
    except psutil.NoSuchProcess:
        return psutil.STATUS_ZOMBIE
