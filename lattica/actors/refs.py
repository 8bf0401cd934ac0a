"""References to values that exist, or will, somewhere in the mesh."""

from __future__ import annotations

import concurrent.futures
from collections.abc import AsyncIterator, Generator, Iterator
from typing import Any

from lattica.actors.context import Context, current
from lattica.actors.failures import unwrap
from lattica.actors.messages import ObjectId
from lattica.errors import SerializationError


class ObjectRef:
    """Names a value and the peer that owns it; keeps the value alive while it exists.

    May be awaited, passed to remote calls, and stored inside other values.
    """

    __slots__ = ("__weakref__", "_context", "_id")

    def __init__(self, object_id: ObjectId, context: Context | None = None) -> None:
        self._id = object_id
        self._context = context or current()
        self._context.post(self._context.core.retain, object_id)

    @property
    def id(self) -> ObjectId:
        """The object's id: its owner and a key."""
        return self._id

    def hex(self) -> str:
        """The key in hexadecimal."""
        return self._id.key.hex()

    def future(self) -> concurrent.futures.Future[Any]:
        """A `concurrent.futures.Future` of the value."""
        return self._context.start(self._fetch)

    async def _fetch(self) -> Any:
        [outcome] = await self._context.core.get([self._id], None)
        return unwrap(outcome)

    async def _get(self) -> Any:
        context = self._context
        [outcome] = await context.run_async(context.core.get, [self._id], None)
        # Unpickled here, on the awaiting loop: user code never runs on Lattica's own.
        return unwrap(outcome)

    def __await__(self) -> Generator[Any, None, Any]:
        return self._get().__await__()

    def __hash__(self) -> int:
        return hash(self._id.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectRef) and self._id == other._id

    def __repr__(self) -> str:
        return f"ObjectRef({self._id.key.hex()[:12]} of {self._id.owner.short})"

    def __copy__(self) -> ObjectRef:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> ObjectRef:
        return self

    def __iter__(self) -> Iterator[Any]:
        raise TypeError("an ObjectRef is not a sequence; lattica.get(ref) gives its value")

    def __reduce__(self) -> tuple[Any, ...]:
        # Lattica's own pickler takes refs before this is asked (serialization.py).
        raise SerializationError(
            "an ObjectRef is pickled by Lattica only: pass it to a remote call or lattica.put()"
        )

    def __del__(self) -> None:
        context = getattr(self, "_context", None)
        if context is not None:
            context.post(context.core.release, self._id)


class ObjectRefGenerator:
    """The refs of a streaming task's items, each as soon as its item exists."""

    def __init__(self, stream: ObjectId, context: Context | None = None) -> None:
        self._context = context or current()
        self._stream = stream
        self._index = 0
        self._done = False
        self._context.post(self._context.core.retain, stream)

    @property
    def id(self) -> ObjectId:
        """The stream's id."""
        return self._stream

    def __iter__(self) -> Iterator[ObjectRef]:
        return self

    def __next__(self) -> ObjectRef:
        if self._done:
            raise StopIteration
        core = self._context.core
        item = self._take(self._context.run(core.next_item, self._stream, self._index))
        if item is None:
            raise StopIteration
        return item

    def __aiter__(self) -> AsyncIterator[ObjectRef]:
        return self

    async def __anext__(self) -> ObjectRef:
        if self._done:
            raise StopAsyncIteration
        context = self._context
        item = self._take(
            await context.run_async(context.core.next_item, self._stream, self._index)
        )
        if item is None:
            raise StopAsyncIteration
        return item

    def _take(self, item: ObjectId | None) -> ObjectRef | None:
        if item is None:
            self._done = True
            return None
        self._index += 1
        return ObjectRef(item, self._context)

    def __repr__(self) -> str:
        return f"ObjectRefGenerator({self._stream.key.hex()[:12]}, at item {self._index})"

    def __reduce__(self) -> tuple[Any, ...]:
        raise SerializationError(
            "an ObjectRefGenerator cannot leave its process; pass the refs that it yields"
        )

    def __del__(self) -> None:
        context = getattr(self, "_context", None)
        if context is not None:
            context.post(context.core.release, self._stream)
