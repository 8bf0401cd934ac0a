"""What a worker gets to see, may use, and where its words go."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from typing import Any

import pytest

from lattica.actors.limits import clean_environment
from lattica.config import ActorsConfig
from tests.actors.hosting import ALICE, BOB, eventually, hosting

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="the limits are Linux's"),
]


def test_only_harmless_names_are_kept() -> None:
    environment = {
        "PATH": "/bin",
        "LANG": "C",
        "LC_ALL": "C",
        "PYTHONHASHSEED": "1",
        "OMP_NUM_THREADS": "2",
        "AWS_SECRET_ACCESS_KEY": "s",
        "HF_TOKEN": "s",
        "SSH_AUTH_SOCK": "s",
        "MINE": "1",
    }
    kept = clean_environment(environment, ("MINE",))
    assert sorted(kept) == ["LANG", "LC_ALL", "MINE", "OMP_NUM_THREADS", "PATH", "PYTHONHASHSEED"]


async def test_a_worker_sees_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def environment() -> dict[str, str]:
        raw = Path("/proc/self/environ").read_text()
        return {**dict(each.split("=", 1) for each in raw.split("\0") if "=" in each), **os.environ}

    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("MINE", "kept")
    async with hosting(tmp_path, config=ActorsConfig(worker_env=("MINE",))) as bench:
        seen = await bench.run(environment)
        assert "HF_TOKEN" not in seen
        assert "secret" not in seen.values()
        assert seen["MINE"] == "kept"
        assert seen["PATH"] == os.environ["PATH"]


async def test_a_worker_has_its_own_directory_group_and_privileges(tmp_path: Path) -> None:
    def look() -> dict[str, Any]:
        import tempfile

        status = Path("/proc/self/status").read_text()
        Path("left-behind").write_text("x")
        return {
            "cwd": os.getcwd(),
            "mode": os.stat(".").st_mode & 0o777,
            "tmp": tempfile.gettempdir(),
            "group": os.getpgrp() == os.getpid() == os.getsid(0),
            "no_new_privs": "NoNewPrivs:\t1" in status,
            "core": resource.getrlimit(resource.RLIMIT_CORE),
            "fds": sorted(os.listdir("/proc/self/fd"), key=int),
        }

    async with hosting(tmp_path) as bench:
        seen = await bench.run(look)
        cwd = seen["cwd"]
        assert cwd != os.getcwd()
        assert seen["mode"] == 0o700
        assert seen["tmp"] == cwd
        assert seen["group"]
        assert seen["no_new_privs"]
        assert seen["core"] == (0, 0)
        assert len(seen["fds"]) < 12, "descriptors of the host or fork server leaked"
        assert _exists(f"{cwd}/left-behind")
    assert not _exists(cwd)


async def test_memory_asked_for_is_memory_allowed(tmp_path: Path) -> None:
    def take(size: int) -> int:
        return len(bytearray(size))

    async with hosting(tmp_path, resources={"memory": 4e9}) as bench:
        options = {"requirements": {"memory": 200_000_000}}
        assert await bench.run(take, 100_000_000, **options) == 100_000_000
        failure = await bench.run(take, 400_000_000, **options)
        assert failure.type_name == "MemoryError"
        assert await bench.run(take, 400_000_000) == 400_000_000


async def test_what_workers_print_is_kept_and_told(tmp_path: Path) -> None:
    def speak() -> None:
        print("to stdout")
        print("to stderr", file=sys.stderr)
        os.system("echo from a child")

    async with hosting(tmp_path) as bench:
        lines: list[tuple[str, int, str]] = []
        bench.host.set_log_listener(lambda name, pid, line: lines.append((name, pid, line)))
        await bench.run(speak)
        await eventually(lambda: len(lines) == 3)
        assert {line for _, _, line in lines} == {"to stdout", "to stderr", "from a child"}
        assert [pid for _, pid, _ in lines] == bench.host.worker_pids() * 3
        [log] = bench.log_dir.glob("worker-*-task.log")
        assert "to stderr" in log.read_text()


async def test_a_log_does_not_grow_without_end(tmp_path: Path) -> None:
    def shout() -> None:
        for i in range(5000):
            print(f"{i:060}")
        sys.stdout.write("x" * 100_000)

    async with hosting(tmp_path, config=ActorsConfig(worker_log=100_000)) as bench:
        await bench.run(shout)
        logs = list(bench.log_dir.glob("worker-*"))
        assert len(logs) >= 2
        assert sum(log.stat().st_size for log in logs) <= 2 * 100_000 + 65_536


async def test_workers_of_a_preloaded_library_draw_different_numbers(tmp_path: Path) -> None:
    pytest.importorskip("numpy")

    def draw() -> tuple[float, float]:
        import random

        import numpy

        return random.random(), float(numpy.random.rand())

    async with hosting(tmp_path, config=ActorsConfig(preload=("numpy",))) as bench:
        one, two = await bench.run(draw, peer=ALICE), await bench.run(draw, peer=BOB)
        assert one[0] != two[0]
        assert one[1] != two[1]


async def test_a_preloaded_module_is_there_before_it_is_asked_for(tmp_path: Path) -> None:
    def loaded() -> bool:
        return "colorsys" in sys.modules

    config = ActorsConfig(preload=("colorsys", "no_such_module"))
    async with hosting(tmp_path, config=config) as bench:
        assert await bench.run(loaded)
        assert "no_such_module" in (bench.log_dir / "forkserver.log").read_text()


def _exists(path: str) -> bool:
    return os.path.exists(path)
