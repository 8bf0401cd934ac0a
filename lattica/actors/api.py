"""The functions of the flat API: what a program says to the mesh."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from lattica.actors import serialization
from lattica.actors.context import Context, current
from lattica.actors.failures import unwrap
from lattica.actors.handles import ActorHandle
from lattica.actors.messages import NodeInfo
from lattica.actors.refs import ObjectRef, ObjectRefGenerator
from lattica.identity.keys import PeerId
from lattica.rpc.buffers import Buffer


def get(refs: ObjectRef | Sequence[ObjectRef], *, timeout: float | None = None) -> Any:
    """Wait for the value of a ref, or the values of a list of refs. In async code: `await ref`.

    Args:
        timeout: seconds; None waits for as long as it takes.

    Raises:
        GetTimeoutError: not all values were ready in time.
        TaskError: and at the same time the user's exception class, if remote code raised.
        ActorDiedError, WorkerDiedError, ObjectLostError, NoPlacementError, ...: what else
            went wrong.
    """
    context = current()
    if isinstance(refs, ObjectRef):
        return unwrap(context.run(context.core.get, [refs.id], timeout)[0])
    listed = _refs(refs, "lattica.get()")
    if not listed:
        return []
    outcomes = context.run(context.core.get, [ref.id for ref in listed], timeout)
    return [unwrap(outcome) for outcome in outcomes]


def wait(
    refs: Sequence[ObjectRef],
    *,
    num_returns: int = 1,
    timeout: float | None = None,
    fetch_local: bool = True,
) -> tuple[list[ObjectRef], list[ObjectRef]]:
    """Wait until `num_returns` of the refs are ready; returns `(ready, rest)` in the given order.

    At most `num_returns` are called ready; fewer if `timeout` seconds pass first. A failed
    task's ref is ready too. `fetch_local` is there for Ray's sake and changes nothing.

    Raises:
        ValueError: no refs, duplicates, or `num_returns` out of range.
    """
    del fetch_local
    context = current()
    listed = _refs(refs, "lattica.wait()")
    if len(set(listed)) != len(listed):
        raise ValueError("lattica.wait() was given a ref twice")
    if not 1 <= num_returns <= len(listed):
        raise ValueError(f"num_returns={num_returns} does not fit a list of {len(listed)} refs")
    ids = [ref.id for ref in listed]
    done = set(context.run(context.core.wait, ids, num_returns, timeout))
    ready = [ref for ref in listed if ref.id in done][:num_returns]
    chosen = set(ready)
    return ready, [ref for ref in listed if ref not in chosen]


def put(value: Any) -> ObjectRef:
    """Keep a value in this process's peer; whoever is given the ref can fetch it.

    Raises:
        SerializationError: the value cannot be pickled.
        TypeError: the value is an ObjectRef.
    """
    context = current()
    if isinstance(value, ObjectRef):
        raise TypeError("lattica.put() takes a value, not an ObjectRef")
    packed = serialization.dumps(value, "the value given to lattica.put()")
    ref = ObjectRef(context.new_object_id(), context)
    if context.on_core_loop:
        context.start(context.core.put, ref.id, packed)
    else:
        context.run(context.core.put, ref.id, packed)
    return ref


def put_blocks(data: bytes | bytearray | memoryview) -> str:
    """Keep bytes as content-addressed blocks of this process's peer; returns their id.

    Whoever has the id can `fetch_blocks` them, from this peer or from one that did so before.
    The id is made of the bytes: the same bytes have the same id everywhere. They outlive this
    program in the peer's home, until `remove_blocks`.

    Raises:
        StoreError: they are too many, or the disk does not take them.
        TypeError: no bytes.
    """
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"lattica.put_blocks() takes bytes, not {_kind(data)}")
    context = current()
    return context.run(context.core.put_blocks, Buffer(data))


def fetch_blocks(manifest_id: str, *, timeout: float | None = None) -> bytes:
    """The bytes that `put_blocks` was given, fetched from the mesh's providers and verified.

    In a worker the host's peer fetches them; it keeps them and provides them from then on.

    Args:
        timeout: seconds; None waits for as long as it takes.

    Raises:
        BlockMissingError: nobody has them.
        BlockCorruptError: those who said they have them sent other bytes.
        GetTimeoutError: they were not here in time.
        StoreError: no such id, too many bytes, no room on the disk.
    """
    if not isinstance(manifest_id, str):
        raise TypeError(f"lattica.fetch_blocks() takes an id, not {_kind(manifest_id)}")
    context = current()
    return bytes(context.run(context.core.fetch_blocks, manifest_id, timeout).data)


def remove_blocks(manifest_id: str) -> None:
    """Let this process's peer forget blocks that were put or fetched there by such calls.

    Other peers keep theirs. An id that is not there is left alone.

    Raises:
        StoreError: no such id, or the blocks are the peer's own, such as a model it serves.
    """
    if not isinstance(manifest_id, str):
        raise TypeError(f"lattica.remove_blocks() takes an id, not {_kind(manifest_id)}")
    context = current()
    context.run(context.core.remove_blocks, manifest_id)


def kill(actor: ActorHandle, *, no_restart: bool = True) -> None:
    """End an actor's process at once; calls in flight fail.

    Args:
        no_restart: False lets `max_restarts` bring it back.
    """
    if not isinstance(actor, ActorHandle):
        raise TypeError(f"lattica.kill() takes an actor handle, not {_kind(actor)}")
    context = current()
    _settle(context, lambda: context.core.kill(actor._info.actor, no_restart=no_restart))


def cancel(ref: ObjectRef | ObjectRefGenerator, *, force: bool = False) -> None:
    """Cancel the task that will make a ref's value; `get` then raises TaskCancelledError.

    A task that already runs is interrupted if its method is async, and otherwise only
    with `force`, which kills its worker. A finished task is left alone.
    """
    if not isinstance(ref, (ObjectRef, ObjectRefGenerator)):
        raise TypeError(f"lattica.cancel() takes an ObjectRef, not {_kind(ref)}")
    context = current()
    _settle(context, lambda: context.core.cancel(ref.id, force=force))


def get_actor(name: str) -> ActorHandle:
    """The handle of a named actor, wherever in the mesh it lives.

    Raises:
        NoSuchActorError: no live actor has the name.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"an actor's name is a string of at least one character, not {name!r}")
    context = current()
    return ActorHandle(context.run(context.core.find_actor, name), context)


def nodes() -> list[NodeInfo]:
    """The live peers of the mesh, this one included, with what they offer."""
    context = current()
    return context.run(context.core.nodes)


def cluster_resources() -> dict[str, float]:
    """What all peers of the mesh offer together; memory in bytes."""
    return _sum(node.total for node in nodes())


def available_resources() -> dict[str, float]:
    """What of `cluster_resources()` is not in use, as last published by each peer."""
    return _sum(node.available for node in nodes())


class RuntimeContext(msgspec.Struct, frozen=True):
    """Where the calling code runs."""

    peer: PeerId  # the peer whose process, or whose worker, this is
    peer_name: str
    is_worker: bool


def get_runtime_context() -> RuntimeContext:
    """Which peer the calling code runs on, and whether as a driver or in a worker.

    Raises:
        NotInitializedError: `lattica.init()` has not been called.
    """
    context = current()
    return RuntimeContext(context.core.owner, context.name, context.kind == "worker")


def _refs(refs: Any, what: str) -> list[ObjectRef]:
    if isinstance(refs, ObjectRefGenerator):
        raise TypeError(f"{what} takes refs; iterate over the ObjectRefGenerator to get them")
    if not isinstance(refs, (list, tuple)):
        raise TypeError(f"{what} takes ObjectRefs, not {_kind(refs)}")
    for index, ref in enumerate(refs):
        if not isinstance(ref, ObjectRef):
            raise TypeError(f"{what} takes ObjectRefs; number {index + 1} is {_kind(ref)}")
    return list(refs)


def _settle(context: Context, call: Any) -> None:
    """Wait for a request to be carried out, unless this is the core's own loop."""
    if context.on_core_loop:
        context.start(call)
    else:
        context.run(call)


def _kind(value: Any) -> str:
    kind = type(value).__qualname__
    return f"an {kind}" if kind[0] in "AEIOUaeiou" else f"a {kind}"


def _sum(parts: Any) -> dict[str, float]:
    total: Counter[str] = Counter()
    for part in parts:
        for name, amount in part.items():
            total[name] += amount
    return dict(total)
