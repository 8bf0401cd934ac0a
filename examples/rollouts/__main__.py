"""Reinforcement learning over a mesh: three rollout workers on three peers, one learner.

Peers, workers and learner are processes of their own on this machine; weights travel as
content-addressed blocks; in each seed's run one worker is killed and comes back.
Exit status 0 only if held-out accuracy rose for every seed.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.markup import escape
from transformers.utils import logging

import lattica
from examples.demo.machines import MachineError, Machines
from examples.demo.story import Story
from examples.grpo import Settings, held_out_sums
from examples.rollouts.fleet import Fleet
from examples.rollouts.plot import draw
from examples.rollouts.training import Run, Trainer, TrainingError
from lattica.errors import LatticaError

PEERS = ("alpha", "beta", "gamma")
KILLED = "a killed worker came back and took the newest weights"
FIND_TIMEOUT = 30.0  # seconds until the learner sees all peers


def main() -> int:
    """Run it; 0 only if it learned with every seed."""
    options = _options()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # OpenMP threads that wait for each other spin: on a busy machine two are far slower than one.
    torch.set_num_threads(1)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    story = Story([*map(_promise, options.seeds), KILLED])
    folder = Path(tempfile.mkdtemp(prefix="lattica-rollouts-"))
    kept = False
    try:
        with Machines(folder) as machines:
            runs = learn(story, machines, options)
        draw(runs, options.out)
        _report(story, runs, options.out)
        kept = story.summary()
    except KeyboardInterrupt:
        story.console.print("\nstopped; no process is left behind")
        shutil.rmtree(folder, ignore_errors=True)
        return 130
    except (LatticaError, MachineError, TrainingError, OSError) as error:
        story.console.print(f"\n[bold red]{type(error).__name__}[/]: {escape(str(error))}")
    if kept:
        shutil.rmtree(folder, ignore_errors=True)
        return 0
    story.console.print(f"\nlogs are in {folder}")
    return 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.rollouts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=_positive, default=40, help="per seed; default: 40")
    parser.add_argument("--every", type=_positive, default=5, help="steps between measurements")
    parser.add_argument("--held-out", type=_positive, default=300, help="problems to measure on")
    parser.add_argument("--out", type=Path, default=Path("rollouts.png"), help="the plot")
    return parser.parse_args()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("from 1 on")
    return number


def learn(story: Story, machines: Machines, options: argparse.Namespace) -> list[Run]:
    """Start everything, run every seed."""
    settings = Settings(steps=options.steps)
    with story.chapter("Three peers and a learner"), story.busy("starting alpha, beta and gamma"):
        ticket = start_peers(machines)
    with lattica.init(ticket, name="learner"):
        with story.busy("starting a rollout worker on each peer"):
            fleet = Fleet(find_peers(), settings)
        for member in fleet.members:
            story.say(f"a worker on {member.name}, process {member.pid}")
        story.say(f"workers loaded torch and the model in {fleet.start_seconds:.1f} s")
        held_out = held_out_sums(options.held_out)
        runs = []
        for number, seed in enumerate(options.seeds):
            with story.chapter(f"Seed {seed}"):
                trainer = Trainer(
                    fleet, settings, seed, held_out, every=options.every, say=story.say
                )
                runs.append(trainer.train(kill=number + 1))
    return runs


def start_peers(machines: Machines) -> str:
    """Start the peers, the first one's ticket in the others' hands; returns the ticket."""
    share = ("--listen", "127.0.0.1:0", "--cpus", "1")
    first = machines.start(PEERS[0], "up", *share)
    ticket = str(first.wait_for("up")["ticket"])
    for other in [machines.start(name, "join", ticket, *share) for name in PEERS[1:]]:
        other.wait_for("up")
    return ticket


def find_peers() -> list[lattica.NodeInfo]:
    """The capability records of the peers, in order.

    Raises:
        MachineError: not all were seen in time.
    """
    deadline = time.monotonic() + FIND_TIMEOUT
    while True:
        seen = {node.name: node for node in lattica.nodes()}
        if all(name in seen for name in PEERS):
            return [seen[name] for name in PEERS]
        if time.monotonic() > deadline:
            raise MachineError(f"the learner sees only {', '.join(sorted(seen))}")
        time.sleep(0.2)


def _promise(seed: int) -> str:
    return f"held-out accuracy rose with seed {seed}"


def _report(story: Story, runs: list[Run], out: Path) -> None:
    with story.chapter("What was learned"):
        rows = [
            (
                str(run.seed),
                f"{run.before:.1%}",
                f"{run.after:.1%}",
                f"{run.seconds:.0f} s",
                f"{run.seconds / run.steps:.2f} s",
                f"{run.rollouts / run.seconds:,.0f}",
                f"{run.tokens / run.seconds:,.0f}",
                f"{run.weights_moved / run.steps / 1e6:.1f} MB",
            )
            for run in runs
        ]
        columns = ("seed", "before", "after", "time", "per step", "rollouts/s", "tokens/s")
        story.table((*columns, "weights/step"), rows)
        for run in runs:
            story.keep(_promise(run.seed), run.rose, f"{run.before:.1%} to {run.after:.1%}")
        killed = ", ".join(run.killed for run in runs)
        story.keep(KILLED, all(run.returned for run in runs), f"on {killed}")
        story.say(f"the curves are in {escape(str(out))}")


if __name__ == "__main__":
    sys.exit(main())
