"""Whole programs, as users write them, in processes of their own over real sockets."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import lattica
from lattica.errors import ActorsError, NotInitializedError, TicketMangledError

LIMIT = 60  # seconds a program may take on a busy machine

# The program of the README and of issue 3, section 2, as it stands.
PROGRAM = """
import lattica

@lattica.remote
def square(x):
    return x * x

@lattica.remote
class Counter:
    def __init__(self, start=0):
        self.total = start
    def add(self, k=1):
        self.total += k
        return self.total

with lattica.init():  # a mesh of one; lattica.init("lattica:…ticket…") joins another
    print(lattica.get([square.remote(i) for i in range(8)]))
    counter = Counter.options(name="hits", num_cpus=0.5).remote(40)
    ref = counter.add.remote(2)
    ready, rest = lattica.wait([ref], timeout=10)
    print(lattica.get(ready[0]), lattica.get(lattica.get_actor("hits").add.remote()))
    print(lattica.get(square.remote(lattica.put(12))))
"""


def start(tmp_path: Path, name: str, source: str, *args: str) -> subprocess.Popen[str]:
    """Run a program as `python name.py`, from a directory of its own."""
    path = tmp_path / f"{name}.py"
    path.write_text(textwrap.dedent(source))
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(lattica.__file__).parent.parent),
        "PYTHONWARNINGS": "error",
    }
    return subprocess.Popen(
        [sys.executable, str(path), *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """What the program printed; it must have ended well and kept its peace."""
    try:
        out, err = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        pytest.fail(f"the program did not end\n{out}\n{err}")
    assert process.returncode == 0, err
    assert err == ""
    return out


@pytest.fixture
def session() -> Iterator[lattica.Session]:
    with lattica.init(name="here", num_cpus=2) as made:
        yield made


def test_the_program_of_the_readme_runs_as_it_stands(tmp_path: Path) -> None:
    assert finish(start(tmp_path, "program", PROGRAM)) == (
        "[0, 1, 4, 9, 16, 25, 36, 49]\n42 43\n144\n"
    )


def test_the_same_names_in_async_code_on_the_users_own_loop(tmp_path: Path) -> None:
    source = """
        import asyncio, lattica

        @lattica.remote
        def square(x):
            return x * x

        @lattica.remote
        class Counter:
            def __init__(self):
                self.total = 0
            async def add(self, k):
                self.total += k
                return self.total

        async def main():
            async with lattica.init() as session:
                print(await square.remote(3), await asyncio.gather(*map(square.remote, range(4))))
                counter = Counter.remote()
                print(await counter.add.remote(square.remote(2)))
                assert lattica.is_initialized()
            assert not lattica.is_initialized()

        asyncio.run(main())
    """
    assert finish(start(tmp_path, "program", source)) == "9 [0, 1, 4, 9]\n4\n"


def test_a_program_that_forgets_to_shut_down_still_ends(tmp_path: Path) -> None:
    source = """
        import lattica

        @lattica.remote
        def pid():
            import os
            return os.getpid()

        lattica.init()
        print(lattica.get(pid.remote()))
    """
    pid = int(finish(start(tmp_path, "program", source)))
    deadline = time.monotonic() + 10
    while _exists(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _exists(pid)


def test_ctrl_c_ends_a_wait_and_leaves_no_process(tmp_path: Path) -> None:
    source = """
        import os, time, lattica

        @lattica.remote
        def stay(path):
            with open(path, "w") as file:
                file.write(str(os.getpid()))
            time.sleep(600)

        with lattica.init():
            try:
                lattica.get(stay.remote(os.path.abspath("pid")))
            except KeyboardInterrupt:
                print("interrupted")
    """
    process = start(tmp_path, "program", source)
    pid_file = tmp_path / "pid"
    deadline = time.monotonic() + LIMIT
    while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert finish(process) == "interrupted\n"
    pid = int(pid_file.read_text())
    while _exists(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _exists(pid)


def test_a_second_process_joins_with_a_ticket_and_uses_the_first(
    tmp_path: Path, session: lattica.Session
) -> None:
    source = """
        import sys, lattica
        import helper

        @lattica.remote
        def where(x):
            return lattica.get_runtime_context().peer_name, helper.double(x)

        @lattica.remote
        class Store:
            def put(self, value):
                self.value = value
                return len(value)

        class OwnError(Exception):
            def __init__(self, code, *, detail):
                super().__init__(code)
                self.detail = detail

        @lattica.remote
        def fail():
            raise OwnError(1, detail="here")

        with lattica.init(sys.argv[1], name="guest"):
            print(sorted(node.name for node in lattica.nodes()))
            print(lattica.cluster_resources()["CPU"])
            print(lattica.get(where.remote(21)))
            store = Store.remote()
            print(lattica.get(store.put.remote(b"x" * 3_000_000)))
            try:
                lattica.get(fail.remote())
            except OwnError as error:
                print(type(error).__name__, error.detail, error.peer_name)
            print(lattica.get(lattica.get_actor("resident").hello.remote("guest")))
    """
    (tmp_path / "helper.py").write_text("def double(x):\n    return 2 * x\n")

    @lattica.remote
    class Resident:
        def hello(self, who: str) -> str:
            return f"hello {who}"

    resident = Resident.options(name="resident").remote()
    assert lattica.get(resident.hello.remote("me"), timeout=LIMIT) == "hello me"
    assert finish(start(tmp_path, "guest", source, session.invite())) == (
        "['guest', 'here']\n2.0\n('here', 42)\n3000000\nTaskError(OwnError) here here\n"
        "hello guest\n"
    )


def test_one_session_at_a_time(session: lattica.Session) -> None:
    with pytest.raises(ActorsError, match=r"lattica.shutdown\(\) first"):
        lattica.init()
    assert lattica.is_initialized()
    assert session.name == "here"
    assert "here" in repr(session)


def test_a_session_may_be_followed_by_another() -> None:
    for _ in range(2):
        lattica.init(num_cpus=1)
        assert lattica.get(lattica.put(3)) == 3
        lattica.shutdown()
        assert not lattica.is_initialized()
        with pytest.raises(NotInitializedError):
            lattica.put(3)


def test_a_mangled_ticket_is_told_and_leaves_nothing_behind() -> None:
    with pytest.raises(TicketMangledError):
        lattica.init("lattica:nonsense")
    assert not lattica.is_initialized()


def test_a_worker_is_part_of_a_mesh_already(session: lattica.Session) -> None:
    @lattica.remote
    def inits() -> bool:
        assert lattica.is_initialized()
        lattica.init()
        return True

    with pytest.raises(ActorsError, match="a worker is part of its host's mesh already"):
        lattica.get(inits.remote(), timeout=LIMIT)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
