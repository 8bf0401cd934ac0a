"""A call whose items are being read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from lattica.errors import LatticaError
from lattica.rpc import messages as m
from lattica.rpc.pending import Pending
from lattica.rpc.uploads import Upload


class Owner(Protocol):
    """Whose call it is."""

    now: Callable[[], float]

    def close(self, pending: Pending, settled: bool) -> None:
        """It is over; not `settled`: the other end is to be told."""
        ...

    def error(self, outcome: m.Failure | LatticaError) -> LatticaError:
        """What the caller sees of an outcome."""
        ...


class OpenStream:
    """The consumer's end of an item stream."""

    def __init__(self, calls: Owner, pending: Pending, upload: Upload | None, began: float) -> None:
        """`upload`: the items that the caller sends; `began` is on the loop's clock."""
        assert pending.items is not None
        self._calls = calls
        self._pending = pending
        self._items = pending.items
        self._upload = upload
        self._began = began
        self.is_open = True

    async def next(self) -> list[Any] | None:
        """The next items, one or more; None: the generator ended well.

        Raises:
            RpcError: it did not.
        """
        if not self.is_open:
            return None
        got = await self._items.next()
        if type(got) is list:
            return got
        if not self._finish(settled=isinstance(got, m.End | m.Failure)):
            return None  # closed while this waited
        try:
            if self._upload is not None:
                await self._upload.close()
                if self._upload.error is not None:
                    raise self._upload.error
            if not isinstance(got, m.End):
                assert isinstance(got, m.Failure | LatticaError)
                raise self._calls.error(got)
        except BaseException as error:
            self._count(type(error).__name__)
            raise
        self._count()
        return None

    def close(self) -> None:
        """Want no more; the handler is cancelled."""
        if self._finish(settled=False):
            self._count(asyncio.CancelledError.__name__)

    async def aclose(self) -> None:
        """The same, and wait until the caller's own iterator of items has cleaned up."""
        self.close()
        if self._upload is not None:
            await self._upload.close()

    def _finish(self, *, settled: bool) -> bool:
        """Let go of all that the stream holds; False if that was done before."""
        if not self.is_open:
            return False
        self.is_open = False
        self._calls.close(self._pending, settled)
        self._items.abandon()
        if self._upload is not None:
            self._upload.stop()
        return True

    def _count(self, kind: str = "") -> None:
        meter = self._pending.meter
        if kind:
            meter.failed(kind)
        meter.took(self._calls.now() - self._began)
