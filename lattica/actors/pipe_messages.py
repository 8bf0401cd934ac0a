"""What a host and its worker say to each other. The host trusts none of what it hears."""

from __future__ import annotations

import msgspec

from lattica.actors.messages import (
    ActorCall,
    ActorId,
    ActorInfo,
    ActorSpec,
    Failure,
    NodeInfo,
    ObjectId,
    Outcome,
    TaskSpec,
    Value,
)
from lattica.identity.keys import PeerId
from lattica.rpc.buffers import Buffer


class _Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True):
    """Tagged with its class's name."""


# ------------------------------------------------------------- host to worker


class Setup(_Message, frozen=True):
    """First of all: whose worker this is."""

    peer: PeerId
    peer_name: str
    max_frame: int  # bytes


class Run(_Message, frozen=True):
    """Call a function."""

    call: int
    name: str
    function_hash: bytes
    function: Buffer | None  # None: sent before
    args: Value
    arg_values: tuple[Value, ...]
    returns: int
    window: int  # items a stream may be ahead of its consumer; 0: not a stream


class Create(_Message, frozen=True):
    """Construct the actor that this worker will be."""

    call: int
    name: str
    definition: Buffer
    args: Value
    arg_values: tuple[Value, ...]
    max_concurrency: int


class Call(_Message, frozen=True):
    """Call a method of the actor."""

    call: int
    method: str
    args: Value
    arg_values: tuple[Value, ...]
    returns: int
    window: int  # as in `Run`


class Stop(_Message, frozen=True):
    """Interrupt a call."""

    call: int


class Credit(_Message, frozen=True):
    """The consumer of a stream took some items."""

    call: int
    items: int


class Outcomes(_Message, frozen=True):
    """Answer to `Get`."""

    request: int
    outcomes: tuple[Outcome, ...]


class Ids(_Message, frozen=True):
    """Answer to `Wait`, and to `NextItem` (none: past the end)."""

    request: int
    ids: tuple[ObjectId, ...]


class Info(_Message, frozen=True):
    """Answer to `FindActor` and `GetActorInfo`."""

    request: int
    info: ActorInfo


class Nodes(_Message, frozen=True):
    """Answer to `ListNodes`."""

    request: int
    nodes: tuple[NodeInfo, ...]


class BlocksId(_Message, frozen=True):
    """Answer to `PutBlocks`."""

    request: int
    manifest_id: str


class BlocksData(_Message, frozen=True):
    """Answer to `FetchBlocks`."""

    request: int
    data: Buffer


class Ok(_Message, frozen=True):
    """Answer to the others."""

    request: int


class Refused(_Message, frozen=True):
    """The core raised one of `lattica.errors`, by name; or `failure` says what to raise."""

    request: int
    error: str
    message: str
    failure: Failure | None = None


ToWorker = (
    Setup
    | Run
    | Create
    | Call
    | Stop
    | Credit
    | Outcomes
    | Ids
    | Info
    | Nodes
    | BlocksId
    | BlocksData
    | Ok
    | Refused
)

Answer = Outcomes | Ids | Info | Nodes | BlocksId | BlocksData | Ok | Refused

# ------------------------------------------------------------- worker to host


class Ready(_Message, frozen=True):
    """The worker is set up; for an actor, `Created` follows its construction."""


class Created(_Message, frozen=True):
    """The outcome of `Create`: None once constructed."""

    failure: Failure | None = None
    concurrent: bool = False  # whether calls overlap


class Done(_Message, frozen=True):
    """A call's outcomes, one per return."""

    call: int
    outcomes: tuple[Outcome, ...]


class Item(_Message, frozen=True):
    """One item of a stream, in order."""

    call: int
    outcome: Outcome


class End(_Message, frozen=True):
    """A stream's end, after its last item."""

    call: int


class Leaving(_Message, frozen=True):
    """User code asked to exit; no restart is wanted."""

    reason: str


class Submit(_Message, frozen=True):
    """`Core.submit`; no answer."""

    spec: TaskSpec


class CallActor(_Message, frozen=True):
    """`Core.call_actor`; no answer."""

    call: ActorCall


class Retain(_Message, frozen=True):
    """`Core.retain`; no answer."""

    object_id: ObjectId


class Release(_Message, frozen=True):
    """`Core.release`; no answer."""

    object_id: ObjectId


class DropActor(_Message, frozen=True):
    """`Core.drop_actor`; no answer."""

    actor: ActorId


class CreateActor(_Message, frozen=True):
    """`Core.create_actor`."""

    request: int
    spec: ActorSpec


class Put(_Message, frozen=True):
    """`Core.put`."""

    request: int
    object_id: ObjectId
    value: Value


class Get(_Message, frozen=True):
    """`Core.get`."""

    request: int
    ids: tuple[ObjectId, ...]
    timeout: float | None


class Wait(_Message, frozen=True):
    """`Core.wait`."""

    request: int
    ids: tuple[ObjectId, ...]
    num_returns: int
    timeout: float | None


class NextItem(_Message, frozen=True):
    """`Core.next_item`."""

    request: int
    stream: ObjectId
    index: int


class CancelObject(_Message, frozen=True):
    """`Core.cancel`."""

    request: int
    object_id: ObjectId
    force: bool


class KillActor(_Message, frozen=True):
    """`Core.kill`."""

    request: int
    actor: ActorId
    no_restart: bool


class FindActor(_Message, frozen=True):
    """`Core.find_actor`."""

    request: int
    name: str


class GetActorInfo(_Message, frozen=True):
    """`Core.actor_info`."""

    request: int
    actor: ActorId


class ListNodes(_Message, frozen=True):
    """`Core.nodes`."""

    request: int


class PutBlocks(_Message, frozen=True):
    """`Core.put_blocks`."""

    request: int
    data: Buffer


class FetchBlocks(_Message, frozen=True):
    """`Core.fetch_blocks`."""

    request: int
    manifest_id: str
    timeout: float | None


class RemoveBlocks(_Message, frozen=True):
    """`Core.remove_blocks`."""

    request: int
    manifest_id: str


class Abandon(_Message, frozen=True):
    """Nobody waits for a request's answer any more."""

    request: int


Request = (
    CreateActor
    | Put
    | Get
    | Wait
    | NextItem
    | CancelObject
    | KillActor
    | FindActor
    | GetActorInfo
    | ListNodes
    | PutBlocks
    | FetchBlocks
    | RemoveBlocks
)

Note = Submit | CallActor | Retain | Release | DropActor | Abandon

Event = Ready | Created | Done | Item | End | Leaving

ToHost = (
    Ready
    | Created
    | Done
    | Item
    | End
    | Leaving
    | Submit
    | CallActor
    | Retain
    | Release
    | DropActor
    | Abandon
    | CreateActor
    | Put
    | Get
    | Wait
    | NextItem
    | CancelObject
    | KillActor
    | FindActor
    | GetActorInfo
    | ListNodes
    | PutBlocks
    | FetchBlocks
    | RemoveBlocks
)
