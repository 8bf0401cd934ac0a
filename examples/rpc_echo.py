"""`python -m examples.rpc_echo`: the RPC layer by itself, between two peers in one process.

Serves a class, calls it through a typed stub: values, raw bytes, items both ways, and what
goes wrong. Over a network the two halves run on two machines; nothing else changes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator

import anyio
import msgspec

from lattica.errors import BadArgumentsError, DeadlineError, RemoteError
from lattica.identity.grants import MEMBER, Membership, issue
from lattica.identity.keys import Identity
from lattica.link.endpoint import Endpoint
from lattica.path.udp import UdpPath
from lattica.rpc import Buffer, Rpc, caller, method


class Greeting(msgspec.Struct, frozen=True):
    """Any msgspec type is an argument or a result."""

    text: str
    to: str


class Echo:
    """A service: a class with annotated async methods."""

    @method()
    async def greet(self, name: str, *, shout: bool = False) -> Greeting:
        """A value. `caller()` tells who asks, as its key has proven."""
        text = f"hello {name}"
        return Greeting(text.upper() if shout else text, caller().name)

    @method()
    async def reverse(self, data: Buffer) -> Buffer:
        """Raw bytes: they travel beside the message, and large ones on a stream of their own."""
        return Buffer(bytes(data)[::-1])

    @method()
    async def count(self, upto: int) -> AsyncIterator[int]:
        """Items to the caller, never more than it has room for."""
        for number in range(upto):
            yield number

    @method(max_concurrency=4)
    async def total(self, numbers: AsyncIterator[int]) -> int:
        """Items from the caller, while the call runs."""
        return sum([number async for number in numbers])

    @method()
    async def divide(self, a: float, b: float) -> float:
        """May raise: the caller gets a `RemoteError`."""
        return a / b

    @method()
    async def sleep(self, seconds: float) -> None:
        """Takes long. A caller that gives up cancels it."""
        await anyio.sleep(seconds)


@contextlib.asynccontextmanager
async def peer(mesh: Identity, name: str) -> AsyncIterator[tuple[Endpoint, Rpc]]:
    """A member of the mesh whose authority is `mesh`, on a socket of its own."""
    identity = Identity.generate()
    grant = issue(
        mesh,
        mesh=mesh.peer_id,
        subject=identity.peer_id,
        scopes=MEMBER,
        expires=time.time() + 3600,
    )
    membership = Membership(mesh.peer_id, (grant,))
    path = UdpPath.bind("127.0.0.1:0")
    async with (
        Endpoint(identity, membership, path, name=name) as links,
        Rpc(links, name=name) as rpc,
    ):
        yield links, rpc


async def main() -> None:
    """Serve, call, and print what comes."""
    mesh = Identity.generate()
    async with peer(mesh, "server") as (server, served), peer(mesh, "client") as (client, rpc):
        served.register("echo", Echo())

        client.learn(server.local, server.addresses)
        echo = rpc.client(server.local, Echo, "echo", timeout=5.0)  # connects when first called

        print(await echo.greet("world", shout=True))
        print(bytes(await echo.reverse(Buffer(b"stressed"))))
        print([number async for number in echo.count(5)])

        async def numbers() -> AsyncIterator[int]:
            for number in range(101):
                yield number

        print(await echo.total(numbers()))

        try:
            await echo.divide(1, 0)
        except RemoteError as error:
            print(f"{error.type_name}: {error.remote_message}")
        try:
            await echo.greet(42)  # type: ignore[arg-type] # refused here, before it is sent
        except BadArgumentsError as error:
            print(f"refused: {error}")
        hasty = rpc.client(server.local, Echo, "echo", timeout=0.1)
        try:
            await hasty.sleep(60)
        except DeadlineError as error:
            print(f"too late: {error}")


if __name__ == "__main__":
    anyio.run(main)
