"""A stage: one span in memory, the caches of its sessions, and a thread that computes.

One pass runs at a time, in a thread, so the event loop keeps its heartbeats. Room is
given by reservation: a session is admitted only if the tokens it may come to still fit
the cache budget, so an admitted session never runs out of room half-way.
"""

from __future__ import annotations

from collections.abc import Callable

import anyio
import anyio.to_thread
import torch

from lattica.clock import Clock, SystemClock
from lattica.errors import BusyError
from serving.cache import SpanCache
from serving.config import ServingConfig
from serving.errors import (
    ContextTooLongError,
    PositionError,
    ServingError,
    SessionGoneError,
    SpanError,
)
from serving.messages import SessionId
from serving.partition import SpanModel
from serving.span import Span


class _Held:
    """What a stage keeps of one session."""

    def __init__(self, cache: SpanCache, reserved: int, now: float) -> None:
        self.cache = cache
        self.reserved = reserved
        self.touched = now


class Stage:
    """Runs one span for many sessions."""

    def __init__(
        self,
        model: SpanModel,
        *,
        context: int,
        config: ServingConfig | None = None,
        clock: Clock | None = None,
    ) -> None:
        """`context`: tokens that a session may have at most."""
        self.model = model
        self.context = context
        self._config = config or ServingConfig()
        self._clock = clock or SystemClock()
        self._held: dict[SessionId, _Held] = {}
        self._turn = anyio.CapacityLimiter(1)

    @property
    def span(self) -> Span:
        """The layers held."""
        return self.model.span

    @property
    def sessions(self) -> int:
        """Open sessions."""
        return len(self._held)

    @property
    def kv_free(self) -> int:
        """Tokens that new sessions may still reserve."""
        return self._config.kv_tokens - sum(held.reserved for held in self._held.values())

    def open(self, session: SessionId, span: Span, tokens: int) -> None:
        """Admit a session that runs `span` and grows to `tokens` at most.

        Raises:
            BusyError: no room now.
            ContextTooLongError: more than the model's context.
            SpanError: `span` is not held here.
            PositionError: the session is open already.
        """
        if session in self._held:
            raise PositionError("the session is open already")
        if not 0 < tokens <= self.context:
            raise ContextTooLongError(
                f"prompt and answer come to {tokens} tokens; the model has room for {self.context}"
            )
        if not self.span.covers(span):
            raise SpanError(f"layers {span} are not all in {self.span}")
        if tokens > self.kv_free or len(self._held) >= self._config.max_sessions:
            raise BusyError(
                f"no room for {tokens} more tokens ({self.kv_free} free, {self.sessions} "
                "sessions); try again later",
                retry_after=self._config.busy_retry,
            )
        self._held[session] = _Held(self.model.new_cache(span), tokens, self._clock.monotonic())

    def close(self, session: SessionId) -> None:
        """Free a session's cache. Closing twice is fine."""
        self._held.pop(session, None)

    def position(self, session: SessionId) -> int:
        """Tokens of the session that this stage has computed.

        Raises:
            SessionGoneError: not open here.
        """
        return self._find(session).cache.seen

    def expired(self) -> list[SessionId]:
        """Close the sessions without a step for `session_idle` seconds, and name them."""
        oldest = self._clock.monotonic() - self._config.session_idle
        gone = [session for session, held in self._held.items() if held.touched < oldest]
        for session in gone:
            self.close(session)
        return gone

    async def run(
        self, session: SessionId, position: int, given: list[int] | torch.Tensor
    ) -> torch.Tensor:
        """Compute the next tokens of a session; see `SpanModel.run`.

        Raises:
            SessionGoneError: not open here.
            PositionError: `position` is not where the cache ends, or past the reservation.
            ServingError: the pass failed.
        """
        held = self._find(session)
        held.touched = self._clock.monotonic()
        count = given.shape[1] if isinstance(given, torch.Tensor) else len(given)

        def work() -> torch.Tensor:
            # Checked here: an earlier pass of this session may have been in the queue.
            if position != held.cache.seen or position + count > held.reserved:
                raise PositionError(
                    f"step at {position} of {count} tokens, but {held.cache.seen} are cached "
                    f"and {held.reserved} were reserved"
                )
            return self.model.run(held.cache, given)

        return await self._compute(work)

    async def _compute(self, work: Callable[[], torch.Tensor]) -> torch.Tensor:
        try:
            return await anyio.to_thread.run_sync(work, limiter=self._turn)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise ServingError(f"the pass failed: {type(error).__name__}: {error}") from error

    def _find(self, session: SessionId) -> _Held:
        try:
            return self._held[session]
        except KeyError:
            raise SessionGoneError(
                "this stage holds no such session: it was closed, or idle for too long"
            ) from None


def to_wire(hidden: torch.Tensor) -> bytearray:
    """Activations as raw bytes in their own dtype."""
    flat = hidden.detach().contiguous().view(torch.uint8).reshape(-1)
    return bytearray(flat.numpy().data)


def from_wire(data: memoryview, tokens: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    """Activations [1, tokens, width] from raw bytes.

    Raises:
        PositionError: the bytes are not so many values.
    """
    if tokens < 1 or data.nbytes != tokens * width * dtype.itemsize:
        raise PositionError(
            f"{data.nbytes} bytes are not {tokens} activations of {width} {dtype} values"
        )
    # A copy: the buffer may be read-only and shared with the transport.
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(1, tokens, width)
