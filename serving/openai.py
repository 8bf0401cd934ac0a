"""The shapes of OpenAI's API that the gateway speaks: requests, answers, errors."""

from __future__ import annotations

import secrets
from typing import Annotated, Any

import msgspec

from lattica.errors import BusyError, DeadlineError, LatticaError, StoreError
from serving.errors import (
    ContextTooLongError,
    NoCoverError,
    RequestError,
    UnknownModelError,
)
from serving.sampling import Sampling

Probability = Annotated[float, msgspec.Meta(gt=0.0, le=1.0)]
Temperature = Annotated[float, msgspec.Meta(ge=0.0, le=2.0)]
Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]


class Part(msgspec.Struct):
    """A part of a message's content."""

    type: str
    text: str = ""


class Message(msgspec.Struct):
    """One turn of a conversation."""

    role: str
    content: str | list[Part] | None = None

    def plain(self) -> dict[str, str]:
        """As chat templates take it.

        Raises:
            RequestError: the content is not text.
        """
        if isinstance(self.content, list):
            other = [part.type for part in self.content if part.type != "text"]
            if other:
                raise RequestError(f"content of type {other[0]!r} is not supported, only text")
            return {"role": self.role, "content": "".join(p.text for p in self.content)}
        return {"role": self.role, "content": self.content or ""}


class StreamOptions(msgspec.Struct):
    """How to stream."""

    include_usage: bool = False


class Common(msgspec.Struct, kw_only=True):
    """What chat and plain completions share. Unknown fields are ignored, as OpenAI's own
    clients send more than a server needs; those that would change the answer are refused.
    """

    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, msgspec.Meta(ge=0)] | None = None  # not OpenAI's, but widely sent
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    logit_bias: dict[str, float] | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None

    def sampling(self) -> Sampling:
        """How to choose tokens; without a seed a random one is drawn."""
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=self.top_p or 1.0,
            top_k=self.top_k or 0,
            seed=secrets.randbits(62) if self.seed is None else self.seed,
        )

    def stops(self) -> list[str]:
        """The stop strings."""
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else self.stop

    def check(self) -> None:
        """Refuse what would silently change the answer.

        Raises:
            RequestError: names the parameter.
        """
        if self.n not in (None, 1):
            raise RequestError("n must be 1")
        if self.logit_bias or self.frequency_penalty or self.presence_penalty:
            raise RequestError("penalties and logit_bias are not supported")
        if len(self.stops()) > 16:
            raise RequestError("at most 16 stop strings")


class ChatRequest(Common, kw_only=True):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], msgspec.Meta(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    tools: list[Any] | None = None
    response_format: dict[str, Any] | None = None

    def check(self) -> None:
        """See `Common.check`."""
        super().check()
        if self.logprobs:
            raise RequestError("logprobs are not supported")
        if self.tools:
            raise RequestError("tools are not supported")
        if self.response_format and self.response_format.get("type") != "text":
            raise RequestError("response_format must be text")

    @property
    def limit(self) -> int | None:
        """Tokens of the answer at most."""
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(Common, kw_only=True):
    """The body of POST /v1/completions."""

    prompt: str | list[int | str]  # text, one text, or token ids
    echo: bool | None = None
    logprobs: int | None = None
    suffix: str | None = None

    def check(self) -> None:
        """See `Common.check`."""
        super().check()
        if self.echo or self.logprobs or self.suffix:
            raise RequestError("echo, logprobs and suffix are not supported")
        texts = [item for item in self.prompt if isinstance(item, str)]
        if isinstance(self.prompt, list) and texts and len(self.prompt) > 1:
            raise RequestError("one prompt per request")

    @property
    def limit(self) -> int | None:
        """Tokens of the answer at most."""
        return self.max_tokens


class Problem(msgspec.Struct, frozen=True):
    """An error as HTTP tells it."""

    status: int
    message: str
    type: str
    code: str | None = None
    retry_after: float | None = None

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        return {
            "error": {"message": self.message, "type": self.type, "param": None, "code": self.code}
        }


def problem_of(error: LatticaError) -> Problem:
    """How an error of ours is told over HTTP."""
    text = str(error)
    if isinstance(error, RequestError):
        return Problem(400, text, "invalid_request_error")
    if isinstance(error, ContextTooLongError):
        return Problem(400, text, "invalid_request_error", "context_length_exceeded")
    if isinstance(error, UnknownModelError):
        return Problem(404, text, "invalid_request_error", "model_not_found")
    if isinstance(error, BusyError):
        return Problem(429, text, "server_error", "busy", error.retry_after)
    if isinstance(error, NoCoverError | StoreError):  # its layers, or its files
        return Problem(503, text, "server_error", "no_cover", 5.0)
    if isinstance(error, DeadlineError):
        return Problem(504, text, "server_error", "timeout")
    return Problem(502, text, "server_error", "stage_lost")
