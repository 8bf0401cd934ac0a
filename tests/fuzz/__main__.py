"""Coverage-guided fuzzing of the targets: `python -m tests.fuzz --seconds 120 [--only NAME]`.

Each target runs in a process of its own, which atheris (libFuzzer) guides by the branches
of `lattica` that an input reaches. The seconds are shared out; an error, or an input that takes
too much time or memory, fails the run, which shows the input.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import logging
import os
import sys
import tempfile
from pathlib import Path

TOO_LONG = 10  # seconds for one input
TOO_MUCH = 1024  # MiB of the process
MAX_INPUT = 4096  # bytes
NO_ATHERIS = "atheris is not installed here; the same targets run in tests/fuzz/test_fuzz.py"


def main() -> int:
    arguments = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    arguments.add_argument("--seconds", type=float, default=120.0, help="of all targets together")
    arguments.add_argument("--only", action="append", help="a target's name; may be repeated")
    arguments.add_argument("--corpus", type=Path, help="a folder to keep what was learned in")
    options = arguments.parse_args()
    if importlib.util.find_spec("atheris") is None:
        print(NO_ATHERIS)
        return 0
    import atheris

    # It tells of each module on the standard error.
    with (
        contextlib.redirect_stderr(io.StringIO()),
        atheris.instrument_imports(include=["lattica"]),
    ):
        from tests.fuzz.seeds import seeds
        from tests.fuzz.targets import TARGETS

    names = options.only or list(TARGETS)
    if unknown := set(names) - TARGETS.keys():
        arguments.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    failed = []
    with tempfile.TemporaryDirectory() as scratch:
        corpus = options.corpus or Path(scratch)
        for name in names:
            folder = corpus / name
            folder.mkdir(parents=True, exist_ok=True)
            for index, seed in enumerate(seeds()[name]):
                (folder / f"seed-{index}").write_bytes(seed)
            if not _fuzz(name, folder, max(1, int(options.seconds / len(names)))):
                failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return bool(failed)


def _fuzz(name: str, folder: Path, seconds: int) -> bool:
    """Fuzz one target in a process of its own, since libFuzzer ends it; whether it held."""
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        sys.stdout.flush()
        child = os.fork()
        if not child:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            _run(name, folder, seconds)
        _, status = os.waitpid(child, 0)  # bounded: by `seconds`, and `TOO_LONG` for each input
        log.seek(0)
        lines = log.read().splitlines()
    done = next((line for line in reversed(lines) if line.startswith("Done ")), "")
    print(f"{name:24} {'FAILED' if status else 'held'}  {done}", flush=True)
    if status:
        print("\n".join(lines[-60:]))
    return not status


def _run(name: str, folder: Path, seconds: int) -> None:
    import atheris

    from tests.fuzz.targets import TARGETS

    logging.getLogger("lattica").setLevel(logging.CRITICAL)  # each refused frame would be a line
    flags = [
        f"-max_total_time={seconds}",
        f"-timeout={TOO_LONG}",
        f"-rss_limit_mb={TOO_MUCH}",
        f"-max_len={MAX_INPUT}",
        f"-artifact_prefix={folder}/",
    ]
    atheris.Setup([sys.argv[0], *flags, str(folder)], TARGETS[name])
    atheris.Fuzz()  # ends the process


if __name__ == "__main__":
    sys.exit(main())
