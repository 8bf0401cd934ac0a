"""The fork server: workers end with it, it ends with the host, and nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import anyio
import psutil
import pytest

from tests.actors.hosting import eventually, hosting, read
from tests.actors.test_host_actors import Counter

pytestmark = pytest.mark.anyio

HOST_PROGRAM = """
import asyncio, sys
from pathlib import Path
from tests.actors.hosting import hosting
from tests.actors.test_host_actors import Counter

class Parent(Counter):
    def spawn(self):
        import subprocess
        plain = subprocess.Popen(["sleep", "600"])
        daemon = subprocess.Popen(["sleep", "600"], start_new_session=True)
        return [plain.pid, daemon.pid]

    def hog(self):
        while True:
            pass

async def main():
    async with hosting(Path(sys.argv[1])) as bench:
        idle = await bench.create(Parent)
        pids = await idle.call("spawn")
        busy = await bench.create(Parent)
        asyncio.ensure_future(busy.call("hog"))
        await asyncio.sleep(0.05)
        import tempfile
        print(bench.host.forkserver_pid, *bench.host.worker_pids(), *pids, flush=True)
        print(bench.host._workers._directory, flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_killing_the_host_leaves_no_process_and_no_files(tmp_path: Path) -> None:
    program = [sys.executable, "-c", HOST_PROGRAM, str(tmp_path)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as host:
        assert host.stdout is not None
        pids = [int(pid) for pid in host.stdout.readline().split()]
        directory = host.stdout.readline().strip()
        assert len(pids) == 5
        assert all(psutil.pid_exists(pid) for pid in pids)
        assert _exists(directory)
        host.kill()
    await eventually(lambda: not any(map(_runs, pids)), seconds=2.0)
    await eventually(lambda: not _exists(directory), seconds=2.0)


async def test_a_killed_fork_server_is_replaced(tmp_path: Path) -> None:
    async with hosting(tmp_path) as bench:
        counter = await bench.create(Counter, max_restarts=1)
        mortal = await bench.create(Counter)
        before, worker = bench.host.forkserver_pid, counter.pid
        os.kill(before, signal.SIGKILL)
        await counter.until("alive", restarts=1)
        assert bench.host.forkserver_pid != before
        assert not _runs(worker)
        assert await counter.call("add") == 1
        await mortal.until("dead")
        failure = await mortal.call("add")
        assert "fork server died" in failure.message


async def test_workers_that_ignore_sigterm_end_with_the_host(tmp_path: Path) -> None:
    def deaf() -> int:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return os.getpid()

    async with hosting(tmp_path) as bench:
        pid = await bench.run(deaf)
        with anyio.fail_after(5):
            await bench.host._workers.close()
        assert not _runs(pid)


async def test_user_code_may_clean_up_when_the_host_ends(tmp_path: Path) -> None:
    class Tidy:
        def __init__(self, path: str) -> None:
            self.path = path

        def work(self) -> None:
            try:
                Path(self.path).write_text("busy")
                while True:
                    time.sleep(0.01)
            finally:
                Path(self.path).write_text("tidy")

    path = tmp_path / "state"
    async with anyio.create_task_group() as tasks:
        async with hosting(tmp_path) as bench:
            tidy = await bench.create(Tidy, str(path))
            tasks.start_soon(tidy.call, "work")
            await eventually(lambda: read(path) == "busy")
    assert read(path) == "tidy"


async def test_many_workers_at_once(tmp_path: Path) -> None:
    async with hosting(tmp_path) as bench:
        actors = []

        async def create() -> None:
            actors.append(await bench.create(Counter, requirements={"cpus": 0.1}))

        async with anyio.create_task_group() as tasks:
            for _ in range(40):
                tasks.start_soon(create)
        assert len({actor.pid for actor in actors}) == 40


def _exists(path: str) -> bool:
    return os.path.exists(path)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
