"""Coroutines that keep the event loop to themselves are found."""

from __future__ import annotations

import types
from collections.abc import Callable, Coroutine, Generator
from time import perf_counter
from typing import Any


@types.coroutine
def watched(
    coroutine: Coroutine[Any, Any, Any], blocked: Callable[[float], None], limit: float
) -> Generator[Any, Any, Any]:
    """Run a coroutine, and time each of its steps from one wait to the next.

    `blocked(seconds)` is told of those that take more than `limit` seconds.
    """
    began = perf_counter()
    try:
        step = coroutine.send(None)
        while True:
            if perf_counter() - began > limit:
                blocked(perf_counter() - began)
            try:
                sent = yield step
            except GeneratorExit:
                began = perf_counter()
                coroutine.close()
                raise
            except BaseException as error:  # noqa: BLE001 - it is for the handler
                began = perf_counter()
                step = coroutine.throw(error)
            else:
                began = perf_counter()
                step = coroutine.send(sent)
    except StopIteration as end:
        return end.value
    finally:
        if perf_counter() - began > limit:
            blocked(perf_counter() - began)
