"""The peak of a process's resident memory, as Linux keeps it."""

from __future__ import annotations

import gc
from pathlib import Path


class Peak:
    """How much more memory this process needed at most than at the start.

    Raises:
        OSError: this system has no /proc/self/clear_refs.
    """

    def __init__(self) -> None:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5", "ascii")  # the peak is now what is resident
        self._base = status("VmRSS")

    def extra(self) -> int:
        """Bytes since the start."""
        return max(0, status("VmHWM") - self._base)


def status(field: str, pid: int | None = None) -> int:
    """A size in /proc/PID/status, in bytes; of this process by default."""
    for line in Path(f"/proc/{pid or 'self'}/status").read_text("ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/{pid or 'self'}/status has no {field}")
