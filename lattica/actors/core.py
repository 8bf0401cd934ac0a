"""The seam between the Python face of actors and what carries it out.

The face (`remote`, `get`, handles) pickles and unpickles; a `Core` moves opaque values.
In a driver the core is the process's own peer; in a worker it is a pipe to its host,
so remote functions can call remote functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from lattica.actors.messages import (
    ActorCall,
    ActorId,
    ActorInfo,
    ActorSpec,
    NodeInfo,
    ObjectId,
    Outcome,
    TaskSpec,
    Value,
)
from lattica.identity.keys import PeerId
from lattica.rpc.buffers import Buffer


class Core(Protocol):
    """Owns objects, submits work. Every method runs on the core's event loop."""

    @property
    def owner(self) -> PeerId:
        """The peer that owns what is made here."""
        ...

    def submit(self, spec: TaskSpec) -> None:
        """Start a task; its outcome arrives at its return ids. Never blocks, keeps order."""
        ...

    async def create_actor(self, spec: ActorSpec) -> None:
        """Place and start an actor; returns once it is constructed.

        Calls may be made as soon as this coroutine has taken its first step.

        Raises:
            NoPlacementError, NameTakenError, ActorDiedError, TaskError.
        """
        ...

    def call_actor(self, call: ActorCall) -> None:
        """Start a method call; calls of one caller to one actor run in the order made."""
        ...

    async def put(self, object_id: ObjectId, value: Value) -> None:
        """Keep a value under an id made here."""
        ...

    async def get(self, ids: Sequence[ObjectId], timeout: float | None) -> list[Outcome]:
        """Wait for all outcomes, in order.

        Raises:
            GetTimeoutError: not all were ready within `timeout` seconds.
        """
        ...

    async def wait(
        self, ids: Sequence[ObjectId], num_returns: int, timeout: float | None
    ) -> list[ObjectId]:
        """Those that are ready once `num_returns` are, or `timeout` seconds have passed."""
        ...

    async def next_item(self, stream: ObjectId, index: int) -> ObjectId | None:
        """The id of a stream's item, once it exists; None past the end.

        An error that ends the stream is an item whose outcome is a failure.
        """
        ...

    async def cancel(self, object_id: ObjectId, *, force: bool) -> None:
        """Cancel the task that will make an object; `force` kills its worker."""
        ...

    async def kill(self, actor: ActorId, *, no_restart: bool) -> None:
        """End an actor's process."""
        ...

    def drop_actor(self, actor: ActorId) -> None:
        """The only handle of an unnamed actor is gone: end it once its calls are done."""
        ...

    async def find_actor(self, name: str) -> ActorInfo:
        """Resolve a name.

        Raises:
            NoSuchActorError: no live actor has it.
        """
        ...

    async def actor_info(self, actor: ActorId) -> ActorInfo:
        """What a handle made from `create_actor` needs to be passed on."""
        ...

    def retain(self, object_id: ObjectId) -> None:
        """One more local reference."""
        ...

    def release(self, object_id: ObjectId) -> None:
        """One local reference less; the value is freed when the last holder's is gone."""
        ...

    async def nodes(self) -> list[NodeInfo]:
        """The live peers of the mesh, this one included."""
        ...

    async def put_blocks(self, data: Buffer) -> str:
        """Keep bytes as content-addressed blocks of this peer; the id of their manifest.

        Raises:
            StoreError: the disk does not take them.
        """
        ...

    async def fetch_blocks(self, manifest_id: str, timeout: float | None) -> Buffer:
        """The bytes behind an id, from this peer's blocks or another provider's, verified.

        Raises:
            BlockMissingError, BlockCorruptError, StoreError: see `Blocks.fetch_bytes`.
            GetTimeoutError: they were not here within `timeout` seconds.
        """
        ...

    async def remove_blocks(self, manifest_id: str) -> None:
        """Stop providing what `put_blocks` or `fetch_blocks` brought to this peer.

        Raises:
            StoreError: the blocks are the peer's own.
        """
        ...
