"""A peer in a process of its own: prints its address, serves, ends when killed.

Arguments, both optional: the address to bind, and `other` to be the other peer.
"""

from __future__ import annotations

import sys

import anyio

from lattica.path.udp import UdpPath
from tests.rpc.quic import OTHER, SERVER, address, peer
from tests.rpc.services import Bench
from tests.rpc.upload_services import Intake


async def main() -> None:
    bind = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:0"
    identity = OTHER if sys.argv[2:] == ["other"] else SERVER
    async with peer(identity, "server", path=UdpPath.bind(bind)) as rpc:
        rpc.register("bench", Bench())
        rpc.register("intake", Intake())
        print(address(rpc)[0], flush=True)
        await anyio.sleep_forever()


if __name__ == "__main__":
    sys.exit(anyio.run(main))
