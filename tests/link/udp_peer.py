"""A peer in a process of its own: prints its address, accepts links, ends when killed."""

from __future__ import annotations

import sys

import anyio

from lattica.identity.grants import Membership
from lattica.link.endpoint import Endpoint
from lattica.link.interface import Link
from lattica.path.interface import Path
from lattica.path.tcp import TcpPath
from lattica.path.udp import UdpPath
from tests.link.helpers import BOB, MESH, Recorder


class Echo(Recorder):
    """Sends back what arrives on bidirectional streams."""

    def stream_data(self, stream_id: int, data: bytes, end: bool) -> None:
        if not stream_id & 2:
            self.link.write(stream_id, data, end=end)


def echo(link: Link) -> Echo:
    return Echo(link)


async def main() -> None:
    over_tcp = sys.argv[1:] == ["tcp"]
    path: Path = TcpPath.bind("127.0.0.1:0") if over_tcp else UdpPath.bind("127.0.0.1:0")
    async with Endpoint(BOB, Membership(MESH.peer_id), path, name="bob") as endpoint:
        endpoint.set_acceptor(echo)
        print(endpoint.addresses[0], flush=True)
        await anyio.sleep_forever()


if __name__ == "__main__":
    sys.exit(anyio.run(main))
