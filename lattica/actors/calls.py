"""What tasks and actor calls have in common on the caller's side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from lattica.actors import serialization
from lattica.actors.context import Context
from lattica.actors.messages import ObjectId, Value
from lattica.actors.options import NumReturns
from lattica.actors.refs import ObjectRef, ObjectRefGenerator

# Larger arguments (bytes) become an object, so that call frames stay small. Those of actor
# calls stay below what RPC puts into the call itself: only such calls keep their order.
SPILL = 64 * 1024
SPILL_ORDERED = 12 * 1024


class PackedCall(NamedTuple):
    """Pickled arguments, ready for a spec."""

    args: Value
    refs: tuple[ObjectId, ...]
    spilled: ObjectRef | None = None  # keeps large arguments alive until the spec is submitted


def pack_call(
    context: Context,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    what: str,
    names: Sequence[str],
    *,
    spill: int = SPILL,
) -> PackedCall:
    """Pickle the arguments of a call; more than `spill` bytes of them become an object.

    Raises:
        SerializationError: naming the argument that cannot be pickled.
    """
    value, refs = serialization.dump_call(args, kwargs, what, names)
    if value.nbytes <= spill:
        return PackedCall(value, refs)
    large = ObjectRef(context.new_object_id(), context)
    context.start(context.core.put, large.id, value)
    return PackedCall(serialization.spill_call(len(refs)), (*refs, large.id), large)


class Returned(NamedTuple):
    """Where the results of a call will be, and what the caller is given."""

    ids: tuple[ObjectId, ...]
    stream: ObjectId | None
    refs: Any


def returned(context: Context, num_returns: NumReturns) -> Returned:
    """New ids for the results of a call."""
    if num_returns == "streaming":
        stream = context.new_object_id()
        return Returned((), stream, ObjectRefGenerator(stream, context))
    count = 1 if num_returns is None else num_returns
    ids = tuple(context.new_object_id() for _ in range(count))
    refs = [ObjectRef(each, context) for each in ids]
    if count == 0:
        return Returned((), None, None)
    return Returned(ids, None, refs[0] if count == 1 else refs)
