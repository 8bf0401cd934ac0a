"""A stage alone: admission, positions, expiry, and the event loop that stays free."""

from __future__ import annotations

import threading
from pathlib import Path

import anyio
import pytest
import torch

from lattica.clock import ManualClock
from lattica.errors import BusyError
from serving.config import ServingConfig
from serving.errors import (
    ContextTooLongError,
    PositionError,
    ServingError,
    SessionGoneError,
    SpanError,
)
from serving.loading import ModelFolder
from serving.partition import SpanModel
from serving.span import Span
from serving.stage import Stage, from_wire, to_wire

pytestmark = pytest.mark.anyio

ONE, TWO, THREE = b"1" * 16, b"2" * 16, b"3" * 16
FIRST = Span(0, 2)


@pytest.fixture(scope="module")
def model(llama: Path) -> SpanModel:
    """The first two layers."""
    return ModelFolder(llama).load(FIRST)


def stage(model: SpanModel, **options: object) -> tuple[Stage, ManualClock]:
    """A stage and its clock."""
    clock = ManualClock()
    config = ServingConfig(**options)  # type: ignore[arg-type]
    return Stage(model, context=256, config=config, clock=clock), clock


async def test_sessions_reserve_their_room_and_give_it_back(model: SpanModel) -> None:
    one, _ = stage(model, kv_tokens=100)
    one.open(ONE, FIRST, 60)
    assert one.kv_free == 40
    with pytest.raises(BusyError, match="no room for 41 more tokens"):
        one.open(TWO, FIRST, 41)
    one.open(TWO, FIRST, 40)
    one.close(ONE)
    one.close(ONE)
    assert (one.kv_free, one.sessions) == (60, 1)


async def test_the_number_of_sessions_is_bounded(model: SpanModel) -> None:
    one, _ = stage(model, max_sessions=1)
    one.open(ONE, FIRST, 5)
    with pytest.raises(BusyError):
        one.open(TWO, FIRST, 5)
    with pytest.raises(PositionError, match="open already"):
        one.open(ONE, FIRST, 5)


async def test_what_can_never_fit_is_told_apart_from_busy(model: SpanModel) -> None:
    one, _ = stage(model)
    with pytest.raises(ContextTooLongError, match="room for 256"):
        one.open(ONE, FIRST, 257)
    with pytest.raises(SpanError):
        one.open(ONE, Span(1, 3), 5)
    assert one.sessions == 0


async def test_steps_must_continue_where_the_cache_ends(model: SpanModel) -> None:
    one, _ = stage(model)
    one.open(ONE, FIRST, 6)
    await one.run(ONE, 0, [5, 6, 7])
    for position in (0, 2, 4):
        with pytest.raises(PositionError, match="but 3 are cached"):
            await one.run(ONE, position, [8])
    with pytest.raises(PositionError, match="6 were reserved"):
        await one.run(ONE, 3, [8, 9, 10, 11])
    await one.run(ONE, 3, [8, 9, 10])
    assert one.position(ONE) == 6
    with pytest.raises(SessionGoneError):
        await one.run(TWO, 0, [1])


async def test_a_pass_that_fails_is_an_error_of_ours(model: SpanModel) -> None:
    one, _ = stage(model)
    one.open(ONE, FIRST, 6)
    with pytest.raises(ServingError, match="IndexError"):
        await one.run(ONE, 0, [10_000])


async def test_idle_sessions_expire(model: SpanModel) -> None:
    one, clock = stage(model, session_idle=10.0)
    one.open(ONE, FIRST, 6)
    one.open(TWO, FIRST, 6)
    clock.advance(7)
    await one.run(TWO, 0, [5])
    clock.advance(7)
    assert one.expired() == [ONE]
    assert one.sessions == 1
    with pytest.raises(SessionGoneError):
        one.position(ONE)


async def test_the_loop_is_free_while_a_pass_runs(model: SpanModel) -> None:
    one, _ = stage(model)
    one.open(ONE, FIRST, 6)
    one.open(TWO, FIRST, 6)
    let_go, running, most = threading.Event(), 0, 0
    original = model.run

    def slow(*args: object) -> torch.Tensor:
        nonlocal running, most
        running += 1
        most = max(most, running)
        assert let_go.wait(5)
        running -= 1
        return original(*args)  # type: ignore[arg-type]

    model.run = slow  # type: ignore[method-assign,assignment]
    try:
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(one.run, ONE, 0, [5])
                tasks.start_soon(one.run, TWO, 0, [5])
                await anyio.wait_all_tasks_blocked()  # the loop turns while the pass waits
                let_go.set()
    finally:
        model.run = original  # type: ignore[method-assign]
    assert most == 1  # one pass at a time


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_activations_keep_every_bit_on_the_wire(dtype: torch.dtype) -> None:
    hidden = torch.randn(1, 3, 8).to(dtype)
    data = to_wire(hidden)
    assert len(data) == 24 * dtype.itemsize
    assert torch.equal(from_wire(memoryview(bytes(data)), 3, 8, dtype), hidden)
    for tokens in (0, 2, 4, -1):
        with pytest.raises(PositionError):
            from_wire(memoryview(data), tokens, 8, dtype)
