"""Where handlers run that must not run on the event loop."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from typing import Any

from lattica.config import RpcConfig
from lattica.rpc.methods import MethodSpec
from lattica.rpc.processes import Processes
from lattica.rpc.thread_items import ThreadItems
from lattica.rpc.threads import Threads
from lattica.rpc.work import Pool, Work


class Executors:
    """The threads and processes of one `Rpc`; none is started before it is needed."""

    def __init__(self, config: RpcConfig) -> None:
        self._threads = Threads(config.max_threads)
        self._processes = Processes(config.max_processes or os.cpu_count() or 1, self._threads)

    def pool(self, spec: MethodSpec, function: Callable[..., Any]) -> Pool | None:
        """Where calls of a method run; None: on the event loop.

        Raises:
            TypeError: it runs in processes but cannot be sent there.
        """
        if spec.offer.run_in == "loop":
            return None
        if spec.offer.run_in == "thread":
            return self._threads
        try:
            pickle.dumps(function)
        except Exception as error:  # noqa: BLE001 - whatever pickling raises
            raise TypeError(
                f"{spec.name} cannot run in a process, since it cannot be pickled ({error}): make "
                "it a @staticmethod of a class at the top of a module"
            ) from None
        return self._processes

    def items(self, spec: MethodSpec, function: Callable[..., Any], arguments: Any) -> ThreadItems:
        """Start a plain generator, in a thread."""
        return ThreadItems(self._threads, lambda: spec.invoke(function, arguments))

    async def close(self) -> None:
        """End what can be ended; a thread that never returns is left behind."""
        await self._processes.close()
        self._threads.close()


def start(pool: Pool, spec: MethodSpec, function: Callable[..., Any], arguments: Any) -> Work:
    """Start a plain function."""
    args, kwargs = spec.unbind(arguments)
    return pool.run(function, args, kwargs)
