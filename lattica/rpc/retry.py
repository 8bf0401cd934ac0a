"""Calls made again where their caller asked for it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec

from lattica.errors import (
    BusyError,
    CallLostError,
    HandlerDiedError,
    LatticaError,
    LinkLostError,
    LinkRefusedError,
    UnreachableError,
)

T = TypeVar("T")
Spread = Callable[[float, float], float]  # a random number between two


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """How often a call is made, and how long is waited in between. Times in seconds.

    A call is made again where it has not run: the peer is busy, or there is no link to it.
    One that may have run is made again only if its method is declared `idempotent`. The
    waits are drawn between 0 and a bound that doubles each time ("full jitter"), on top
    of what a busy peer asks for; all attempts together keep to the call's deadline.
    """

    attempts: int = 3  # in all, the first one included
    first_wait: float = 0.05  # the bound before the second attempt
    longest_wait: float = 5.0  # no bound is above it
    longest_busy: float = 60.0  # a peer that is busy for longer is not waited for

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError("attempts is at least 1: the first one counts")

    def wait(self, attempt: int, error: LatticaError, spread: Spread) -> float:
        """Seconds between the `attempt`th try, which ended in `error`, and the next."""
        bound = min(self.longest_wait, self.first_wait * 2.0 ** min(attempt - 1, 60))
        least = error.retry_after if isinstance(error, BusyError) else 0.0
        return least + spread(0.0, bound)


def may_be_retried(error: LatticaError, *, idempotent: bool) -> bool:
    """Whether another attempt makes sense, and can do no harm."""
    if isinstance(error, CallLostError):
        return idempotent or not error.may_have_run
    if isinstance(error, HandlerDiedError):
        return idempotent
    # These come before anything was sent.
    return isinstance(error, BusyError | UnreachableError | LinkLostError | LinkRefusedError)


async def retried(
    attempt: Callable[[float], Awaitable[T]],
    policy: Retry,
    *,
    idempotent: bool,
    deadline: float,
    spread: Spread = random.uniform,
) -> T:
    """Call `attempt(timeout)` until it returns, as the policy says; or raise its last error.

    `deadline` is on the loop's clock. The error's notes tell how many attempts were made,
    why there was no other, and how those before ended.
    """
    now = asyncio.get_running_loop().time
    before: list[str] = []
    while True:
        try:
            return await attempt(deadline - now())
        except LatticaError as error:
            made = len(before) + 1
            wait = policy.wait(made, error, spread)
            reason = _against(error, made, wait, deadline - now(), policy, idempotent)
            if reason:
                earlier = f"; before it: {', '.join(before)}" if before else ""
                error.add_note(f"attempt {made} of {policy.attempts}, the last: {reason}{earlier}")
                raise
            before.append(type(error).__name__)
        await asyncio.sleep(wait)


def _against(
    error: LatticaError,
    made: int,
    wait: float,
    left: float,
    policy: Retry,
    idempotent: bool,
) -> str:
    """What speaks against another attempt; empty: nothing."""
    if not may_be_retried(error, idempotent=idempotent):
        if may_be_retried(error, idempotent=True):
            return "it may have run, and the method is not declared idempotent"
        return "this error is not retried"
    if made >= policy.attempts:
        return "no more were asked for"
    if isinstance(error, BusyError) and error.retry_after > policy.longest_busy:
        return f"the peer is busy for {error.retry_after:.0f} s"
    if wait >= left:
        return "the deadline leaves no time for another"
    return ""
