"""What a caller holds: stubs, their methods, and item streams."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any

from lattica.rpc.methods import MethodSpec
from lattica.rpc.open_stream import OpenStream

UnaryCall = Callable[[MethodSpec, Any], Coroutine[Any, Any, Any]]
StreamCall = Callable[[MethodSpec, Any, Any], Awaitable[OpenStream | AsyncGenerator[Any, None]]]
UploadCall = Callable[[MethodSpec, Any, Any], Coroutine[Any, Any, Any]]


class Stub:
    """A peer's service: attributes are its methods."""

    def __init__(
        self,
        title: str,
        specs: dict[str, MethodSpec],
        unary: UnaryCall,
        stream: StreamCall,
        upload: UploadCall,
    ) -> None:
        self._title = title
        self._specs = specs
        self._unary = unary
        self._stream = stream
        self._upload = upload

    def __getattr__(self, attribute: str) -> Any:
        spec = self._specs.get(attribute)
        if spec is None:
            known = ", ".join(sorted(self._specs))
            raise AttributeError(f"{self._title} has no method {attribute!r}; it has {known}")
        call: UnaryMethod | StreamMethod | UploadMethod
        if spec.is_stream:
            call = StreamMethod(spec, self._stream)
        elif spec.upload is not None:
            call = UploadMethod(spec, self._upload)
        else:
            call = UnaryMethod(spec, self._unary)
        self.__dict__[attribute] = call  # found without this detour from now on
        return call

    def __repr__(self) -> str:
        return f"Stub({self._title})"


class UnaryMethod:
    """One method of a stub that returns one value."""

    __slots__ = ("_call", "_spec")

    def __init__(self, spec: MethodSpec, call: UnaryCall) -> None:
        self._spec = spec
        self._call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        """Raises BadArgumentsError at once, before anything is awaited or sent."""
        spec = self._spec
        return self._call(spec, spec.bind(args, kwargs))

    def with_destinations(self, views: tuple[memoryview, ...]) -> UnaryMethod:
        """See `lattica.rpc.into`."""
        return UnaryMethod(self._spec.with_destinations(views), self._call)


class UploadMethod:
    """One method of a stub that takes items, from any iterable, and returns one value."""

    __slots__ = ("_call", "_spec")

    def __init__(self, spec: MethodSpec, call: UploadCall) -> None:
        self._spec = spec
        self._call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        """Raises BadArgumentsError at once; wrong items are told when they are due."""
        spec = self._spec
        return self._call(spec, *spec.bind_upload(args, kwargs))


class StreamMethod:
    """One method of a stub that returns items, and may take some."""

    __slots__ = ("_call", "_spec")

    def __init__(self, spec: MethodSpec, call: StreamCall) -> None:
        self._spec = spec
        self._call = call

    def __call__(self, *args: Any, **kwargs: Any) -> ItemStream:
        """Raises BadArgumentsError at once."""
        spec = self._spec
        if spec.upload is None:
            return ItemStream(self._call, spec, spec.bind(args, kwargs), None)
        return ItemStream(self._call, spec, *spec.bind_upload(args, kwargs))


class ItemStream:
    """Items of a call, an async iterator. The call starts with the first `__anext__`.

    Dropping it, `aclose()`, and cancelling a task that waits for an item cancel the handler.
    """

    def __init__(self, start: StreamCall, spec: MethodSpec, arguments: Any, source: Any) -> None:
        self._opened: list[OpenStream] = []
        self._items = _items(start, spec, arguments, source, self._opened)

    def __aiter__(self) -> AsyncGenerator[Any, None]:
        # The generator itself: a coroutine of ours around each step would double its cost.
        return self._items

    def __anext__(self) -> Awaitable[Any]:
        if self._items.ag_running:  # type: ignore[attr-defined]
            raise RuntimeError("another task waits for this stream's next item")
        return self._items.__anext__()

    async def aclose(self) -> None:
        """Want no more items; the handler is cancelled."""
        if self._items.ag_running:  # type: ignore[attr-defined]
            for stream in self._opened:
                stream.close()  # the task that waits sees the end
        else:
            await self._items.aclose()


async def _items(
    start: StreamCall, spec: MethodSpec, arguments: Any, source: Any, opened: list[OpenStream]
) -> AsyncGenerator[Any, None]:
    stream = await start(spec, arguments, source)
    del arguments, source  # they may be large
    try:
        if isinstance(stream, OpenStream):
            opened.append(stream)
            while (items := await stream.next()) is not None:
                for item in items:
                    yield item
        else:
            async for item in stream:
                yield item
    finally:
        await stream.aclose()
