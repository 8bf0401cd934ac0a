"""A session's place in its ring: steps come in, the span runs, the result goes on.

Each stage acknowledges a step as soon as it has taken it over; the acknowledgement is off
the lap's critical path. The last stage samples: the token goes to the first stage for the
next lap and, beside it, to the client.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable
from typing import Protocol

import anyio
import torch
from anyio.streams.memory import MemoryObjectReceiveStream

from lattica.errors import LatticaError
from lattica.identity.keys import PeerId
from lattica.rpc.buffers import Buffer
from serving.config import ServingConfig
from serving.errors import PositionError, ServingError
from serving.messages import Event, Failed, Finish, Hop, Opened, Opening, SessionId, Token
from serving.sampling import sample
from serving.stage import Stage, from_wire, to_wire


class NextStage(Protocol):
    """What a ring calls on other stages; `serving.service.StageService` has it."""

    def step(
        self, session: SessionId, position: int, tokens: int, last: bool, data: Buffer
    ) -> Awaitable[None]:
        """Take over activations of `tokens` tokens from `position` on."""
        ...

    def advance(self, session: SessionId, position: int, token: int) -> Awaitable[None]:
        """Take over the token at `position`."""
        ...


class Reach(Protocol):
    """How a ring reaches another stage."""

    def __call__(self, peer: PeerId) -> NextStage:
        """A stub of `peer`'s stage service, with the hop's deadline."""
        ...


class _HopError(ServingError):
    """The next stage did not take a step over."""


class _Step:
    """Work for the span: tokens for the first stage, activations for the others."""

    __slots__ = ("given", "last", "position", "tokens")

    def __init__(
        self, position: int, given: list[int] | torch.Tensor, tokens: int, last: bool
    ) -> None:
        self.position = position
        self.given = given
        self.tokens = tokens
        self.last = last  # sample after it


class Ring:
    """One session at one stage. Owned by the volunteer's task group, which runs `work`."""

    def __init__(
        self,
        opening: Opening,
        stage: Stage,
        *,
        me: PeerId,
        client: PeerId,
        reach: Reach,
        config: ServingConfig,
    ) -> None:
        self.opening = opening
        self.client = client
        self.scope = anyio.CancelScope()
        self._stage = stage
        self._me = me
        self._reach = reach
        self._config = config
        self._expected = 0  # where the next step must continue
        # Bounded by the session's reservation: `_enqueue` refuses positions past it.
        self._inbox_in, self._inbox = anyio.create_memory_object_stream[_Step](math.inf)
        self._events_in, self.events = anyio.create_memory_object_stream[Event](math.inf)
        self._events_in.send_nowait(Opened(stage.kv_free))

    @property
    def session(self) -> SessionId:
        """The session's id."""
        return self.opening.session

    @property
    def hop(self) -> Hop:
        """This stage's place."""
        return self.opening.route[self.opening.index]

    @property
    def is_first(self) -> bool:
        """Whether this stage embeds."""
        return self.opening.index == 0

    @property
    def is_last(self) -> bool:
        """Whether this stage samples."""
        return self.opening.index == len(self.opening.route) - 1

    @property
    def previous(self) -> PeerId:
        """The peer whose steps are accepted here."""
        return self.opening.route[self.opening.index - 1].peer

    @property
    def progress(self) -> int:
        """Tokens computed here."""
        return self._stage.position(self.session)

    def prompt(self, tokens: list[int]) -> None:
        """Start the session at its first stage.

        Raises:
            PositionError: not the first stage, started already, or too long.
            RequestError: a token is not in the vocabulary.
        """
        if not self.is_first or self._expected != 0:
            raise PositionError("a prompt starts a session, once, at its first stage")
        self._stage.model.check_tokens(tokens)
        size = self._config.prefill_chunk
        self._check(0, len(tokens))
        for start in range(0, len(tokens), size):
            chunk = tokens[start : start + size]
            self._enqueue(start, chunk, len(chunk), start + size >= len(tokens))

    def advance(self, position: int, token: int) -> None:
        """Go on with the token that the last stage chose.

        Raises:
            PositionError: not the first stage, or not where the session is.
        """
        if not self.is_first or self._expected == 0:
            raise PositionError("only a started first stage takes tokens")
        self._stage.model.check_tokens([token])
        self._enqueue(position, [token], 1, True)

    def step(self, position: int, tokens: int, last: bool, data: memoryview) -> None:
        """Take over the previous stage's activations.

        Raises:
            PositionError: not where the session is, or not so many bytes.
        """
        if self.is_first:
            raise PositionError("the first stage takes tokens, not activations")
        self._check(position, tokens)
        model = self._stage.model
        given = from_wire(data, tokens, model.hidden_size, model.dtype)
        self._enqueue(position, given, tokens, last)

    def _check(self, position: int, tokens: int) -> None:
        if position != self._expected or tokens < 1 or position + tokens > self.opening.limit:
            raise PositionError(
                f"a step of {tokens} tokens at {position} does not continue a session at "
                f"{self._expected} with a limit of {self.opening.limit}"
            )

    def _enqueue(
        self, position: int, given: list[int] | torch.Tensor, tokens: int, last: bool
    ) -> None:
        self._check(position, tokens)
        self._expected = position + tokens
        self._inbox_in.send_nowait(_Step(position, given, tokens, last))

    async def work(self) -> None:
        """Run steps until the session ends; a failure is an event for the client."""
        with self.scope:
            try:
                await self._work(self._inbox)
            except _HopError as error:
                self.fail(self.following, str(error))
            except (anyio.ClosedResourceError, anyio.BrokenResourceError):
                pass  # the session was closed while its last step was being computed
            except LatticaError as error:
                self.fail(self._me, f"{type(error).__name__}: {error}")
        self.end()

    @property
    def following(self) -> PeerId:
        """The stage that this one hands on to; after the last comes the first."""
        route = self.opening.route
        return route[(self.opening.index + 1) % len(route)].peer

    def fail(self, peer: PeerId, reason: str) -> None:
        """Tell the client which stage broke the ring, and end."""
        try:
            self._events_in.send_nowait(Failed(peer, reason))
        except (anyio.ClosedResourceError, anyio.BrokenResourceError):
            return  # the client has left already
        self._events_in.close()

    def end(self) -> None:
        """Take no more steps and free the cache; events already sent can still be read."""
        self.scope.cancel()
        self._events_in.close()
        self._inbox_in.close()
        self._inbox.close()
        self._stage.close(self.session)

    def close(self) -> None:
        """End the session: nobody listens any more. Closing twice is fine."""
        self.end()
        self.events.close()

    async def _work(self, inbox: MemoryObjectReceiveStream[_Step]) -> None:
        async for step in inbox:
            result = await self._stage.run(self.session, step.position, step.given)
            if not self.is_last:
                data = Buffer(to_wire(result))
                await self._hand_on(
                    self._reach(self.following).step(
                        self.session, step.position, step.tokens, step.last, data
                    )
                )
            elif step.last and await self._sampled(result, step.position + step.tokens):
                return

    async def _sampled(self, logits: torch.Tensor, position: int) -> bool:
        """Choose the token at `position` and send it both ways; whether it was the last."""
        token = sample(logits, self.opening.sampling, position)
        finish: Finish = ""
        if token in self.opening.eos:
            finish = "stop"
        elif position + 1 >= self.opening.limit:
            finish = "length"
        self._events_in.send_nowait(Token(position, token, finish))
        if finish:
            return True
        if self.is_first:
            self.advance(position, token)
        else:
            await self._hand_on(self._reach(self.following).advance(self.session, position, token))
        return False

    async def _hand_on(self, call: Awaitable[None]) -> None:
        try:
            await call
        except LatticaError as error:
            raise _HopError(f"{type(error).__name__}: {error}") from error
