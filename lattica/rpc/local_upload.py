"""Items of a caller for a handler of the same peer: the same checks and errors as over a link."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from typing import Any

from lattica.errors import CallCancelledError
from lattica.rpc.failures import to_error, to_failure
from lattica.rpc.itemtypes import ItemType


class LocalUpload:
    """Items of a caller for a handler of the same peer. See `Upload` for `error`."""

    def __init__(self, source: Any, kind: ItemType, name: str) -> None:
        self.error: BaseException | None = None
        self._source = source
        self._kind = kind
        self._name = name

    async def items(self) -> AsyncGenerator[Any, None]:
        """What the handler reads."""
        source = self._source if hasattr(self._source, "__aiter__") else _each(self._source)
        iterator = aiter(source)
        while True:
            try:
                item = self._kind.check(await anext(iterator))
            except StopAsyncIteration:
                return
            except BaseException as error:
                task = asyncio.current_task()
                if isinstance(error, asyncio.CancelledError) and task and task.cancelling():
                    raise  # the handler's own
                if isinstance(error, asyncio.CancelledError):
                    error = CallCancelledError("the iterator of items was cancelled")
                self.error = error
                raise to_error(to_failure(0, error, with_traceback=True), self._name) from error
            yield item

    async def aclose(self) -> None:
        """The call is over."""
        if hasattr(self._source, "aclose"):
            await self._source.aclose()
        elif hasattr(self._source, "close") and hasattr(self._source, "__next__"):
            self._source.close()


async def _each(items: Iterable[Any]) -> AsyncGenerator[Any, None]:
    for item in items:
        yield item
