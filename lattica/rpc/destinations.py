"""Results whose buffers go where the caller says: into arrays that exist already."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from lattica.errors import BadArgumentsError
from lattica.rpc.buffers import Buffer
from lattica.rpc.stubs import UnaryMethod

F = TypeVar("F", bound=Callable[..., Any])


def into(method: F, *destinations: Any) -> F:
    """`method` of a stub, whose result's buffers are written into `destinations` as they arrive.

    `await into(stub.weights, array)("layer 0")`. A destination is writable and lies in one piece:
    a bytearray, a NumPy array, a CPU tensor. There is one for each `Buffer` of the result, in the
    order in which they stand in it; a buffer may be shorter than its destination. The `Buffer`s
    returned are views of the destinations. If the call fails, what arrived before is in them;
    once it has its outcome nothing more is written.

    Raises:
        TypeError: `method` is not a stub's method that returns one value.
        BadArgumentsError: a destination cannot be written.
        BadResultError: from the call: the buffers do not fit the destinations.
    """
    if not isinstance(method, UnaryMethod):
        raise TypeError("into() takes a method of a stub that returns one value, as stub.weights")
    views = tuple(map(_writable, destinations))
    if not views:
        raise TypeError("into() takes a destination for each buffer of the result")
    return cast(F, method.with_destinations(views))


def _writable(destination: Any) -> memoryview:
    try:
        view = Buffer(destination).data
    except (TypeError, ValueError) as error:
        raise BadArgumentsError(f"a destination cannot be used: {error}") from None
    if view.readonly:
        name = type(destination).__name__
        raise BadArgumentsError(
            f"a destination of type {name} is read-only: pass a bytearray or a writable array"
        )
    return view
