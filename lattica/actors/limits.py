"""What a worker process may not do, and what it does not get to see.

Linux has all of it; elsewhere the parts that the system lacks are left out, and a worker
still ends with its host because the pipe between them closes.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Iterable, Mapping

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38

_KEEP = frozenset(
    {"PATH", "HOME", "LANG", "LANGUAGE", "TZ", "TERM", "USER", "LOGNAME", "VIRTUAL_ENV"}
    | {"LD_LIBRARY_PATH", "SYSTEMROOT", "SSL_CERT_FILE", "SSL_CERT_DIR"}
)
_KEEP_PREFIXES = ("LC_", "PYTHON", "OMP_", "MKL_", "OPENBLAS_", "KMP_", "GOTO_")
_KEEP_TORCH = frozenset({"TORCH_NUM_THREADS", "TORCH_NUM_INTEROP_THREADS"})

_OOM_SCORE = "500"  # the kernel ends workers before the host


def clean_environment(environ: Mapping[str, str], extra: Iterable[str] = ()) -> dict[str, str]:
    """The part of `environ` that holds no secrets, and the names in `extra`."""
    wanted = _KEEP | _KEEP_TORCH | frozenset(extra)
    return {
        name: value
        for name, value in environ.items()
        if name in wanted or name.startswith(_KEEP_PREFIXES)
    }


def die_with_parent(parent: int, signum: signal.Signals) -> None:
    """Have the kernel send `signum` when the parent ends; exit at once if it has."""
    _prctl(_PR_SET_PDEATHSIG, signum)
    if os.getppid() != parent:  # it ended before the kernel was told
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parents end, so that they can be ended."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def confine(memory: int) -> None:
    """No core files, no new privileges, and at most `memory` more bytes of data (0: no limit)."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory > 0:
        # RLIMIT_DATA, not RLIMIT_AS: address space that is only reserved (thread stacks,
        # arenas, mapped libraries; gigabytes with torch) is not memory in use.
        limit = _data_in_use() + memory
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(_OOM_SCORE)
    except OSError:
        return  # not Linux, or not allowed: only a preference


def child_pids() -> list[int]:
    """The children of this single-threaded process; empty where the system cannot tell."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return []


def was_started_in(pid: int, directory: str) -> bool:
    """Whether a process still has the environment of the worker with this directory."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return f"TMPDIR={directory}".encode() in file.read().split(b"\0")
    except OSError:
        return False


def _data_in_use() -> int:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[5]) * resource.getpagesize()
    except (OSError, IndexError, ValueError):
        return 0


def _prctl(option: int, value: int) -> None:
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}, {value}): {os.strerror(number)}")
