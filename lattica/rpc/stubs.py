"""What a caller holds: stubs, their methods, and item streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any

from lattica.rpc.calls import OpenStream
from lattica.rpc.methods import MethodSpec

UnaryCall = Callable[[MethodSpec, Any], Coroutine[Any, Any, Any]]
StreamCall = Callable[[MethodSpec, Any], Awaitable[OpenStream | AsyncGenerator[Any, None]]]


class Stub:
    """A peer's service: attributes are its methods."""

    def __init__(
        self,
        title: str,
        specs: dict[str, MethodSpec],
        unary: UnaryCall,
        stream: StreamCall,
    ) -> None:
        self._title = title
        self._specs = specs
        self._unary = unary
        self._stream = stream

    def __getattr__(self, attribute: str) -> Any:
        spec = self._specs.get(attribute)
        if spec is None:
            known = ", ".join(sorted(self._specs))
            raise AttributeError(f"{self._title} has no method {attribute!r}; it has {known}")
        call: UnaryMethod | StreamMethod
        if spec.is_stream:
            call = StreamMethod(spec, self._stream)
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


class StreamMethod:
    """One method of a stub that returns items."""

    __slots__ = ("_call", "_spec")

    def __init__(self, spec: MethodSpec, call: StreamCall) -> None:
        self._spec = spec
        self._call = call

    def __call__(self, *args: Any, **kwargs: Any) -> ItemStream:
        """Raises BadArgumentsError at once."""
        return ItemStream(self._call, self._spec, self._spec.bind(args, kwargs))


class ItemStream:
    """Items of a call, an async iterator. The call starts with the first `__anext__`.

    Dropping it, `aclose()`, and cancelling a task that waits for an item cancel the handler.
    """

    def __init__(self, start: StreamCall, spec: MethodSpec, arguments: Any) -> None:
        self._source: OpenStream | AsyncGenerator[Any, None] | None = None
        self._start = start
        self._spec = spec
        self._arguments = arguments
        self._ended = False
        self._waiting = False
        self._loop = asyncio.get_running_loop()

    def __aiter__(self) -> ItemStream:
        return self

    async def __anext__(self) -> Any:
        if self._ended:
            raise StopAsyncIteration
        if self._waiting:
            raise RuntimeError("another task waits for this stream's next item")
        self._waiting = True
        try:
            if self._source is None:
                self._source = await self._start(self._spec, self._arguments)
                self._arguments = None
            if isinstance(self._source, OpenStream):
                return await self._source.next()
            return await self._source.__anext__()
        except BaseException:
            # As in an async generator, whatever ends one step ends the stream.
            self._ended = True
            if isinstance(self._source, OpenStream):
                self._source.close()
            raise
        finally:
            self._waiting = False

    async def aclose(self) -> None:
        """Want no more items; the handler is cancelled."""
        self._ended = True
        if isinstance(self._source, OpenStream):
            self._source.close()
        elif self._source is not None:
            await self._source.aclose()

    def __del__(self) -> None:
        source = self._source
        if isinstance(source, OpenStream) and source.is_open:
            try:
                # The collector may run in any thread.
                self._loop.call_soon_threadsafe(source.close)
            except RuntimeError:
                pass  # the loop is closed, and the link with it
