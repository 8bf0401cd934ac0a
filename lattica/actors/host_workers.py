"""Where a host's workers come from: one fork server, one directory, one log per worker."""

from __future__ import annotations

import itertools
import os
import signal
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.abc

from lattica.actors import limits
from lattica.actors import pipe_messages as pm
from lattica.actors.core import Core
from lattica.actors.forkserver_client import Forker
from lattica.actors.pipe_server import CoreServer
from lattica.actors.pool import WorkerKey
from lattica.actors.worker_log import WorkerLog
from lattica.actors.worker_process import WorkerProcess, start_worker
from lattica.config import ActorsConfig
from lattica.errors import ActorsError
from lattica.identity.keys import PeerId

LogListener = Callable[[str, int, str], None]  # the worker's name, its pid, a line


class Workers:
    """Starts workers, knows the living ones, and ends them all."""

    def __init__(
        self,
        peer: PeerId,
        peer_name: str,
        core: Core,
        log_dir: Path,
        config: ActorsConfig,
        counters: Counter[str],
        tasks: anyio.abc.TaskGroup,
    ) -> None:
        self._setup = pm.Setup(peer, peer_name, config.pipe_frame)
        self._core = core
        self._log_dir = log_dir
        self._config = config
        self._counters = counters
        self._tasks = tasks
        self._numbers = itertools.count(1)
        self._directory = Path(tempfile.mkdtemp(prefix="lattica-workers-"))
        self._environment = limits.clean_environment(os.environ, config.worker_env)
        self._living: set[WorkerProcess] = set()
        self.on_line: LogListener | None = None
        log_dir.mkdir(parents=True, exist_ok=True)
        self.forker = Forker(
            directory=self._directory,
            log=log_dir / "forkserver.log",
            environment=self._environment,
            preload=config.preload,
        )
        self.forker.start()

    def pids(self) -> list[int]:
        """Of the living workers."""
        return sorted(worker.pid for worker in self._living)

    async def start(self, key: WorkerKey, name: str) -> WorkerProcess:
        """A new worker. `name` is for its log.

        Raises:
            ActorsError: it could not be started.
        """
        number = next(self._numbers)
        directory = self._directory / f"worker-{number}"
        label = "".join(each if each.isalnum() else "-" for each in name)[:40]
        pid = 0

        def on_line(line: str) -> None:
            if self.on_line is not None:
                self.on_line(name, pid, line)

        path = self._log_dir / f"worker-{os.getpid()}-{number}-{label}.log"
        self._counters["workers:started"] += 1
        try:
            worker = await start_worker(
                self.forker,
                setup=self._setup,
                directory=directory,
                environment=self._environment_of(key, directory),
                memory=key.memory,
                threads=key.threads,
                log=WorkerLog(path, self._config.worker_log, on_line),
                serve=self._serve,
                tasks=self._tasks,
                counters=self._counters,
                timeout=self._config.worker_start_timeout,
            )
        except OSError as error:  # no descriptors, no room for the log
            raise ActorsError(f"no worker can be started: {error}") from error
        pid = worker.pid
        self._living.add(worker)
        worker.on_death = lambda: self._on_death(worker)
        return worker

    def _on_death(self, worker: WorkerProcess) -> None:
        self._living.discard(worker)
        self._counters["workers:ended"] += 1

    def _serve(self, send: Callable[[Any], None]) -> CoreServer:
        return CoreServer(self._core, send, self._tasks, self._counters)

    def _environment_of(self, key: WorkerKey, directory: Path) -> dict[str, str]:
        environment = {**self._environment, "TMPDIR": str(directory)}
        if key.threads:
            environment.setdefault("OMP_NUM_THREADS", str(key.threads))
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else []
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(
            names[index] if index < len(names) else str(index) for index in key.gpus
        )
        return environment

    async def close(self) -> None:
        """Ask all to end, then make them."""
        with anyio.CancelScope(shield=True):
            living = list(self._living)
            for worker in living:
                worker.kill(signal.SIGTERM)
            with anyio.move_on_after(self._config.stop_grace):
                for worker in living:
                    await worker.dead.wait()
            for worker in self._living:
                worker.kill(signal.SIGKILL)
            with anyio.move_on_after(self._config.stop_grace):
                for worker in living:
                    await worker.dead.wait()
            await self.forker.close()
