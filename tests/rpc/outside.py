"""Handlers that run outside of the event loop; a child process imports them from here."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import msgspec

from lattica.identity.keys import PeerId
from lattica.rpc import Buffer, caller, method, trace_id


class Point(msgspec.Struct, frozen=True):
    x: int
    y: int = 0


class Threaded:
    """Plain functions and generators, in threads."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.ended = threading.Event()
        self.produced = 0

    @method(run_in="thread")
    def add(self, a: int, *, b: int = 1) -> int:
        assert threading.current_thread() is not threading.main_thread()
        return a + b

    @method(run_in="thread", max_concurrency=2, max_queue=10)
    def block(self) -> str:
        self.release.wait(30)
        return "released"

    @method(run_in="thread")
    def fail(self, text: str) -> None:
        raise ValueError(text)

    @method(run_in="thread")
    def leave(self) -> None:
        raise SystemExit(3)

    @method(run_in="thread")
    def wrong(self) -> int:
        return "not a number"  # type: ignore[return-value]

    @method(run_in="thread")
    def who(self) -> tuple[str, bytes]:
        return caller().name, trace_id.get()

    @method(run_in="thread")
    def count(self, n: int, fail_at: int = -1) -> Iterator[int]:
        try:
            for i in range(n):
                if i == fail_at:
                    raise ValueError("enough")
                self.produced += 1
                yield i
        finally:
            self.ended.set()


class Crunch:
    """Plain functions, in processes."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # such an object cannot be sent

    @staticmethod
    @method(run_in="process")
    def pid() -> int:
        return os.getpid()

    @staticmethod
    @method(run_in="process")
    def total(data: Buffer, points: list[Point], *, times: int = 1) -> Buffer:
        return Buffer(bytes(data) * times + bytes(point.x for point in points))

    @classmethod
    @method(run_in="process")
    def who(cls) -> tuple[str, PeerId, bytes, str]:
        return caller().name, caller().peer, trace_id.get(), cls.__name__

    @staticmethod
    @method(run_in="process")
    def fail(text: str) -> None:
        raise ValueError(text)

    @staticmethod
    @method(run_in="process")
    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    @staticmethod
    @method(run_in="process")
    def spin(path: str) -> None:
        """Compute for ever, deaf to everything; `path` will hold the process's id."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with open(path, "w") as file:
            file.write(str(os.getpid()))
        while True:
            pass

    @staticmethod
    @method(run_in="process")
    def unpicklable() -> int:
        return threading.Lock()  # type: ignore[return-value]
