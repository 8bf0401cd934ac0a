"""Run by test_crash as a process that gets killed: `write DIRECTORY` or `fetch DIRECTORY`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from lattica.config import KIB, StoreConfig
from lattica.link.memory import MemoryLinks, MemoryNetwork
from lattica.rpc import Rpc
from lattica.store import Blocks, Documents
from tests.store.mesh import NOW, home, identity, membership

CONFIG = StoreConfig(block=16 * KIB, snapshot_every=16)
SIZE = 3_200_000


def data() -> bytes:
    """What is fetched: every block another one."""
    return b"".join(n.to_bytes(8, "big") for n in range(SIZE // 8))


async def write(base: Path) -> None:
    """Write without end; print each number once it is acknowledged."""
    shown = membership(identity(1), expires=NOW * 10_000)
    links = MemoryLinks(MemoryNetwork(), identity(1), shown)
    async with (
        Rpc(links) as rpc,
        Documents(rpc, None, identity(1), shown, home(base, 1), CONFIG) as documents,
    ):
        document = await documents.open("roster")
        number = len(document.map("m"))
        while True:
            with document.transaction():
                document.map("m")[f"{number:06}"] = number
                document.map("n")[f"{number:06}"] = number
            await document.flush()
            print(number, flush=True)
            number += 1


async def fetch(base: Path) -> None:
    """Fetch a lot; print as it arrives."""
    network = MemoryNetwork()
    shown = [membership(identity(n), expires=NOW * 10_000) for n in (1, 2)]
    links = [MemoryLinks(network, identity(n), shown[n - 1]) for n in (1, 2)]
    async with (
        Rpc(links[0]) as first,
        Rpc(links[1]) as second,
        Blocks(home(base, 1), first, None, CONFIG) as one,
        Blocks(home(base, 2), second, None, CONFIG) as two,
    ):
        name = await one.add_bytes(data())
        print(name, flush=True)
        await two.fetch(
            name,
            base / "out",
            providers=[identity(1).peer_id],
            progress=lambda done, *_: print(done, flush=True),
        )


if __name__ == "__main__":
    asyncio.run({"write": write, "fetch": fetch}[sys.argv[1]](Path(sys.argv[2])))
