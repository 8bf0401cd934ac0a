"""Items that a caller sends: pumped by a task of their own while the call goes on."""

from __future__ import annotations

import asyncio
from typing import Any

from lattica.errors import CallCancelledError, LinkLostError
from lattica.rpc import messages as m
from lattica.rpc.channel import Channel
from lattica.rpc.codec import Encoder
from lattica.rpc.failures import to_failure
from lattica.rpc.item_writer import ItemWriter, Stopped
from lattica.rpc.itemtypes import ItemType
from lattica.rpc.meter import Meter

CLEAN_UP = 1.0  # seconds that the caller's iterator has to clean up before the call returns


class Upload:
    """Sends what `source` yields, until it ends, the other end stops it, or the call is over.

    Attributes:
        error: what `source` raised, or what is wrong with its items. The handler is told,
            and the caller gets this very error once the handler has ended.
    """

    def __init__(
        self,
        channel: Channel,
        encoder: Encoder,
        call: int,
        kind: ItemType,
        source: Any,
        meter: Meter,
    ) -> None:
        self.error: BaseException | None = None
        self._channel = channel
        self._encoder = encoder
        self._call = call
        self._kind = kind
        self._source = source
        self._meter = meter
        self._task: asyncio.Task[None] | None = None
        self._over = False

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Begin; `tasks` owns the task."""
        self._task = tasks.create_task(self._run())

    def stop(self) -> None:
        """The call is over: send no more."""
        self._over = True
        if self._task is not None:
            self._task.cancel()

    async def close(self) -> None:
        """Stop, and let the caller's iterator clean up."""
        self.stop()
        if self._task is not None and not self._task.done():
            await asyncio.wait((self._task,), timeout=CLEAN_UP)

    async def _run(self) -> None:
        writer: ItemWriter | None = None
        try:
            writer = await self._open()
            await produce(self._source, writer)
            await writer.finish(m.End())
        except Stopped:
            pass  # the handler wants no more: its outcome is the call's
        except BaseException as error:  # noqa: BLE001 - whatever user code raises is told
            await self._broken(writer, error)
        finally:
            if writer is not None:
                writer.abandon()

    async def _open(self) -> ItemWriter:
        await self._channel.sending.place_for_items()
        if self._channel.error is None:
            header = m.Items(self._call, False)
            try:
                return ItemWriter(self._channel, header, self._encoder, self._kind, self._meter)
            except LinkLostError:
                pass  # the call's own outcome tells
        raise Stopped

    async def _broken(self, writer: ItemWriter | None, error: BaseException) -> None:
        if self._over:
            return
        if isinstance(error, asyncio.CancelledError):
            error = CallCancelledError("the iterator of items was cancelled")
        self.error = error
        if writer is None:
            return
        # Its traceback tells of paths and code: for members only.
        members = bool(self._channel.link.remote.scopes)
        try:
            await writer.finish(m.Broken(to_failure(self._call, error, with_traceback=members)))
        except (Stopped, asyncio.CancelledError):
            pass  # the call is over meanwhile


async def produce(source: Any, writer: ItemWriter) -> None:
    """Send all that `source`, an async iterable or an iterable, yields.

    Raises:
        Stopped: the receiver wants no more.
    """
    try:
        if hasattr(source, "__aiter__"):
            async for value in source:
                if writer.put(value):
                    await writer.drain()
        else:
            for value in source:
                if writer.put(value):
                    await writer.drain()
    finally:
        # Ended in the middle, a generator cleans up now, not when it is collected.
        if hasattr(source, "aclose"):
            await source.aclose()
        elif hasattr(source, "close") and hasattr(source, "__next__"):
            source.close()
