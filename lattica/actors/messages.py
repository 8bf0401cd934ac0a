"""What owners, hosts and workers say to each other about tasks, actors and objects.

Values are opaque here: only the process that runs user code, and the driver that asked
for a result, ever unpickle one.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from lattica.identity.keys import PeerId
from lattica.rpc.buffers import Buffer

TaskId = bytes  # 16 random bytes
ActorId = bytes  # 48: the owner, who always knows where the actor is, and 16 random bytes
LeaseId = bytes  # 16 random bytes


class ObjectId(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Names an object and the peer that owns it."""

    owner: PeerId
    key: bytes  # 16 random bytes, chosen by the owner


class Value(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="value"):
    """A pickled Python value: protocol 5, large buffers out of band."""

    pickle: Buffer
    buffers: tuple[Buffer, ...] = ()
    refs: tuple[ObjectId, ...] = ()  # every ObjectRef found inside, for borrowing

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return len(self.pickle) + sum(len(buffer) for buffer in self.buffers)


FailureKind = Literal[
    "task",  # user code raised
    "serialization",  # the result cannot be pickled
    "worker_died",
    "actor_died",
    "actor_unavailable",
    "cancelled",
    "no_placement",
    "object_lost",
    "refused",
]


class Failure(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="failure"
):
    """Why there is no value."""

    kind: FailureKind
    message: str
    peer: PeerId | None = None  # where it happened
    peer_name: str = ""
    type_name: str = ""  # qualified name of the user's exception class
    traceback: str = ""  # remote traceback as text
    exception: Value | None = None  # the pickled exception, where it pickles
    may_have_run: bool = True


Outcome = Value | Failure


class Requirements(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a task or actor needs of its host."""

    cpus: float = 1.0
    gpus: float = 0.0
    memory: int = 0  # bytes
    resources: dict[str, float] = {}
    labels: dict[str, str] = {}  # every one must match
    peer: PeerId | None = None  # this peer and no other


class TaskSpec(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One call of a remote function."""

    task: TaskId
    name: str  # qualified name, for logs and errors
    function: Buffer  # cloudpickle of the function
    function_hash: bytes  # BLAKE3 of `function`, so that workers load it once
    args: Value  # pickled (args, kwargs)
    arg_refs: tuple[ObjectId, ...]  # top-level refs, replaced by their values before the call
    returns: tuple[ObjectId, ...]  # where the results go; empty for a stream
    stream: ObjectId | None = None  # a generator's stream, else None
    requirements: Requirements = Requirements()
    max_retries: int = 0
    owner_name: str = ""


class Parameter(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One parameter of a method, for checks at the call site; never pickled."""

    name: str
    kind: int  # `inspect.Parameter.kind`
    optional: bool


class ActorSpec(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An actor to create."""

    actor: ActorId
    owner: PeerId
    class_name: str
    definition: Buffer  # cloudpickle of the class
    args: Value
    arg_refs: tuple[ObjectId, ...]
    methods: dict[str, str]  # public methods and their kind: "call", "async", "stream"
    signatures: dict[str, tuple[Parameter, ...]] = {}  # of methods, without self
    name: str = ""  # a named actor is found by this in the DHT
    requirements: Requirements = Requirements()
    max_restarts: int = 0  # -1: without end
    max_task_retries: int = 0
    max_concurrency: int = 1


class ActorInfo(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="actor"
):
    """All a handle needs."""

    actor: ActorId
    owner: PeerId
    host: PeerId
    class_name: str
    name: str
    methods: dict[str, str]
    signatures: dict[str, tuple[Parameter, ...]] = {}
    max_task_retries: int = 0


class ActorCall(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One call of an actor's method. Frames are small: large arguments go by reference."""

    actor: ActorId
    task: TaskId
    method: str
    args: Value
    arg_refs: tuple[ObjectId, ...]
    returns: tuple[ObjectId, ...]
    stream: ObjectId | None = None


class LeaseRequest(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """May I run this on you?"""

    requirements: Requirements
    purpose: Literal["task", "actor"]
    name: str


class LeaseReply(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Accepted with a lease, or declined with a reason."""

    lease: LeaseId | None
    reason: str = ""
    retry_after: float = 0.0  # seconds; 0: never


class ActorState(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a host says of an actor."""

    state: Literal["starting", "alive", "restarting", "dead"]
    pid: int = 0
    restarts: int = 0
    reason: str = ""


class NodeInfo(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A peer's capability record, as published in the DHT and listed by `lattica.nodes()`."""

    peer: PeerId
    name: str
    addresses: tuple[str, ...]
    total: dict[str, float]  # CPU, GPU, memory (bytes) and custom resources
    available: dict[str, float]
    labels: dict[str, str]
    scopes: tuple[str, ...] = ()
    load: float = 0.0
    actors: int = 0
    relays: bool = False  # it forwards packets for peers that cannot be reached directly
