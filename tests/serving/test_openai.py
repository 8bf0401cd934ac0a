"""Requests as OpenAI's clients send them, errors as they read them, and what is listed."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from lattica.errors import (
    BlockMissingError,
    BusyError,
    DeadlineError,
    LatticaError,
)
from lattica.identity.keys import PeerId
from serving.errors import (
    ContextTooLongError,
    NoCoverError,
    RequestError,
    StageLostError,
    UnknownModelError,
)
from serving.listing import card_of, is_complete, state_of
from serving.messages import StageInfo
from serving.openai import ChatRequest, CompletionRequest, problem_of
from serving.replies import respond
from serving.routing import Live
from serving.sampling import Sampling
from serving.span import Span

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


def chat(**fields: Any) -> ChatRequest:
    """A chat request through JSON, checked."""
    body = msgspec.json.decode(msgspec.json.encode({**CHAT, **fields}), type=ChatRequest)
    body.check()
    return body


def test_defaults_are_openais() -> None:
    sampling = chat().sampling()
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (1.0, 1.0, 0)
    assert chat().sampling().seed != chat().sampling().seed
    assert chat(temperature=0, seed=4, top_p=0.5, top_k=3).sampling() == Sampling(0.0, 0.5, 3, 4)
    assert chat(max_tokens=3).limit == 3
    assert chat(max_tokens=3, max_completion_tokens=5).limit == 5
    assert chat(stop="a").stops() == ["a"]
    assert chat(stop=["a", "b"]).stops() == ["a", "b"]


def test_fields_that_change_nothing_are_ignored() -> None:
    chat(user="me", metadata={"a": "b"}, store=False, parallel_tool_calls=True, tools=[])
    chat(frequency_penalty=0, presence_penalty=0.0, logprobs=False, n=1, logit_bias={})
    chat(response_format={"type": "text"})


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2},
        {"logprobs": True},
        {"tools": [{"type": "function"}]},
        {"response_format": {"type": "json_object"}},
        {"frequency_penalty": 0.5},
        {"logit_bias": {"5": 1.0}},
        {"stop": ["a"] * 17},
    ],
)
def test_fields_that_would_change_the_answer_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        chat(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": []},
        {"messages": [{"content": "x"}]},
        {"temperature": -0.1},
        {"temperature": 2.1},
        {"top_p": 0},
        {"max_tokens": 0},
        {"stream": "yes"},
        {"seed": 1.5},
        {"model": None},
    ],
)
def test_values_out_of_range_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        chat(**fields)


def test_content_in_parts_is_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = chat(messages=[{"role": "user", "content": parts}, {"role": "assistant"}])
    assert [message.plain() for message in body.messages] == [
        {"role": "user", "content": "ab"},
        {"role": "assistant", "content": ""},
    ]


@pytest.mark.parametrize("fields", [{"echo": True}, {"logprobs": 2}, {"prompt": ["a", "b"]}])
def test_plain_completions_refuse_what_they_cannot(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        msgspec.convert({"model": "m", "prompt": "x", **fields}, CompletionRequest).check()


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (RequestError("x"), 400, None),
        (ContextTooLongError("x"), 400, "context_length_exceeded"),
        (UnknownModelError("x"), 404, "model_not_found"),
        (BusyError("x", retry_after=2.4), 429, "busy"),
        (NoCoverError("x"), 503, "no_cover"),
        (BlockMissingError("x"), 503, "no_cover"),
        (DeadlineError("x"), 504, "timeout"),
        (StageLostError("x"), 502, "stage_lost"),
        (LatticaError("x"), 502, "stage_lost"),
    ],
)
def test_every_error_has_a_status(error: LatticaError, status: int, code: str | None) -> None:
    problem = problem_of(error)
    assert (problem.status, problem.code) == (status, code)
    answer = respond(problem)
    assert answer.status_code == status
    assert msgspec.json.decode(answer.body)["error"]["message"] == "x"
    assert ("retry-after" in answer.headers) == (code in ("busy", "no_cover"))


def live(number: int, span: Span | None, state: Any = "serving") -> Live:
    """A volunteer of a model with six layers."""
    info = StageInfo(
        model="m", manifest="x", layers=6, state=state, span=span, name=f"v{number}", context=64
    )
    return Live(PeerId(bytes([number]) * 32), info, 0.01)


def test_a_model_is_complete_when_standbys_can_fill_it() -> None:
    half = [live(1, Span(0, 3))]
    assert state_of(half)["missing"] == ["3:6"]
    assert not is_complete(half)
    assert is_complete([*half, live(2, None, "standby")])
    assert not is_complete([*half, live(2, Span(3, 6), "loading")])
    whole = [*half, live(2, Span(3, 6))]
    assert is_complete(whole)
    assert card_of("m", whole) == {
        "id": "m", "object": "model", "created": 0, "owned_by": "mesh",
        "context_length": 64, "stages": 2,
    }  # fmt: skip
    assert not is_complete([live(1, Span(1, 2)), live(2, None, "standby")])  # two gaps
