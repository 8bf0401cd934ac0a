"""The items that a caller sends, as the handler reads them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from lattica.rpc import messages as m
from lattica.rpc.failures import to_error
from lattica.rpc.item_reader import ItemReader


async def incoming(reader: ItemReader, peer: str) -> AsyncGenerator[Any, None]:
    """Yields the items; `peer` names their sender in errors.

    Left or closed before its end, it stops the sender: that is no error.

    Raises:
        StreamTruncatedError: the stream was cut.
        BadArgumentsError: an item is not of the annotated type.
        LatticaError: what the sender's iterator raised, as `to_error` tells it.
    """
    try:
        while True:
            got = await reader.next()
            if type(got) is list:
                for item in got:
                    yield item
            elif isinstance(got, m.End):
                return
            elif isinstance(got, m.Failure):
                raise to_error(got, peer)
            else:
                assert isinstance(got, Exception)
                raise got
    finally:
        reader.abandon()
