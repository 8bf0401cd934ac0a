"""`python -m examples.demo [--keep]`: see `examples.demo`."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from rich.markup import escape

import lattica
from examples.demo import mesh, model
from examples.demo.machines import MachineError, Machines
from examples.demo.reference import Reference
from examples.demo.story import Story
from lattica.errors import LatticaError

MODEL = Path(__file__).resolve().parent.parent / "model"
IN_TIME = "all of it within 90 s"
LIMIT = 90.0

PROMISES = (
    mesh.PEERS,
    mesh.FAN_OUT,
    mesh.NAMED,
    mesh.FOUND,
    mesh.RESTARTED,
    mesh.STRANGER,
    mesh.DOCUMENT,
    model.WEIGHTS,
    model.SAME,
    model.FAILOVER,
    IN_TIME,
)


def main() -> int:
    """Run the demo; 0 only if every promise held."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the mesh up until Enter")
    parser.add_argument("--model", type=Path, default=MODEL, help="default: the bundled one")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    story = Story(PROMISES)
    folder = Path(tempfile.mkdtemp(prefix="lattica-demo-"))
    kept = False
    try:
        with Machines(folder) as machines:
            tell(story, machines, args.model, keep=args.keep)
        story.keep(IN_TIME, story.elapsed < LIMIT or args.keep, f"{story.elapsed:.0f} s")
        kept = story.summary()
    except KeyboardInterrupt:
        story.console.print("\nstopped; no process is left behind")
        shutil.rmtree(folder, ignore_errors=True)
        return 130
    except Exception as error:  # noqa: BLE001 - whatever it is, it broke a promise
        story.console.print(f"\n[bold red]{type(error).__name__}[/]: {escape(str(error))}")
        if not isinstance(error, LatticaError | MachineError):
            story.console.print_exception()
        story.summary()
    if kept:
        shutil.rmtree(folder, ignore_errors=True)
        return 0
    story.console.print(f"\nlogs are in {folder}")
    return 1


def tell(story: Story, machines: Machines, path: Path, *, keep: bool) -> None:
    """The chapters, in order."""
    questions = (*model.QUESTIONS, model.LONG_QUESTION)
    with contextlib.closing(Reference(path, questions)) as reference:
        with story.chapter("1. Four peers, one ticket, no server"):
            ticket, peers = mesh.start_peers(story, machines, path)
            gateway = machines.start(
                *("gateway", "gateway", "--ticket", ticket),
                *("--listen", "127.0.0.1:0", "--cpus", "0", "--port", "0"),
            )
            mesh.show_peers(story, peers)
        with story.chapter("2. Functions and actors"), lattica.init(ticket, name="driver"):
            mesh.fan_out(story)
            mesh.named_actor(story, ticket)
        with story.chapter("3. A stranger"):
            mesh.stranger(story, peers[0], machines.folder / "written-by-a-stranger")
        with story.chapter("4. What every peer knows"):
            mesh.document(story, peers)
        with story.chapter("5. One language model over three peers"):
            url = model.gateway_url(story, gateway)
            model.show_volunteers(story, peers)
            model.answers(story, url, path, reference)
        with story.chapter("6. A peer dies in mid-sentence"):
            model.kill_in_mid_sentence(story, url, peers, reference)
        if keep:
            leave_up(story, url, ticket)


def leave_up(story: Story, url: str, ticket: str) -> None:
    """Print lines that work while the mesh is up."""
    body = '{"model": "tiny", "messages": [{"role": "user", "content": "What is 34+57?"}]}'
    out = story.console
    out.print("\n[bold cyan]The mesh is up. Try:[/]\n")
    out.print(
        f"curl {url}/chat/completions -H 'content-type: application/json' -d '{body}'\n",
        markup=False,
    )
    program = (
        f'import lattica; lattica.init("{ticket}"); '
        "print(lattica.get(lattica.remote(lambda: 6 * 7).remote()))"
    )
    out.print(f"{sys.executable} -c '{program}'\n", markup=False)
    try:
        input("Enter ends it ")
    except EOFError:
        out.print("no terminal to read from: ending")


if __name__ == "__main__":
    sys.exit(main())
