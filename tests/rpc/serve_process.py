"""A peer in a process of its own: prints its address, serves, ends when killed."""

from __future__ import annotations

import sys

import anyio

from tests.rpc.quic import SERVER, address, peer
from tests.rpc.services import Bench


async def main() -> None:
    async with peer(SERVER, "server") as rpc:
        rpc.register("bench", Bench())
        print(address(rpc)[0], flush=True)
        await anyio.sleep_forever()


if __name__ == "__main__":
    sys.exit(anyio.run(main))
