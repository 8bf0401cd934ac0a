"""`python -m examples.todo HOME`: one to-do list on several machines, also while offline.

Type an item to add it, `done ITEM` to tick it off. The first machine says how others join.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import anyio

from lattica import Peer, PeerOptions
from lattica.store import Document


async def show(todo: Document) -> None:
    """Print the list, now and whenever anybody changes it."""
    changes = todo.watch()
    while True:
        for item, done in sorted(todo.map("items").items()):
            print("[x]" if done else "[ ]", item)
        print("--", flush=True)
        await anext(changes)


async def main(options: PeerOptions) -> None:
    """Take in what is typed until the input ends."""
    async with Peer.open(options) as peer, anyio.create_task_group() as tasks:
        todo = await peer.document("todo")
        tasks.start_soon(show, todo)
        if peer.can_invite:
            print("others join with: --ticket", peer.invite().encode(), flush=True)
        async for line in anyio.wrap_file(sys.stdin):
            done, item = line.startswith("done "), line.removeprefix("done ").strip()
            if item:
                todo.map("items")[item] = done
        await todo.flush()  # on this machine's disk; others get it when they meet it
        tasks.cancel_scope.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("home", type=Path, help="a folder that keeps the list")
    parser.add_argument("--ticket", help="what the first machine printed; needed once")
    parser.add_argument("--listen", default="", help="0.0.0.0:0 lets other machines in")
    args = parser.parse_args()
    anyio.run(main, PeerOptions(home=args.home, ticket=args.ticket, listen=args.listen, cpus=0))
