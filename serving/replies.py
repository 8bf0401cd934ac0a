"""HTTP responses: errors in OpenAI's shape, server-sent events."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Send

from lattica.errors import LatticaError
from serving.openai import Problem, problem_of


def no_model(name: str, known: list[str]) -> Problem:
    """Nobody serves `name`; `known` are served."""
    there = f"the mesh serves {', '.join(known)}" if known else "no model is served in the mesh"
    return Problem(
        404, f"nobody serves a model named {name!r}; {there}", "invalid_request_error",
        "model_not_found",
    )  # fmt: skip


def respond(problem: Problem) -> JSONResponse:
    """An error as a response."""
    headers = {}
    if problem.retry_after is not None:
        headers["retry-after"] = str(max(1, round(problem.retry_after)))
    return JSONResponse(problem.body(), status_code=problem.status, headers=headers)


def told(_: Request, error: Exception) -> Response:
    """Starlette's handler for our errors."""
    assert isinstance(error, LatticaError)
    return respond(problem_of(error))


def told_http(request: Request, error: Exception) -> Response:
    """Starlette's handler for its own errors."""
    assert isinstance(error, HTTPException)
    text = f"{request.method} {request.url.path}: {error.detail}"
    problem = Problem(error.status_code, text, "invalid_request_error")
    return JSONResponse(problem.body(), status_code=error.status_code, headers=error.headers)


def told_crash(_: Request, error: Exception) -> Response:
    """Starlette's handler for bugs."""
    # Starlette logs the traceback; the client is told no more than the class.
    text = f"the gateway failed: {type(error).__name__}"
    return JSONResponse(Problem(500, text, "server_error").body(), status_code=500)


async def send_response(response: Response, send: Send) -> None:
    """Send a whole response from inside an `Answer`."""
    await send(
        {
            "type": "http.response.start",
            "status": response.status_code,
            "headers": response.raw_headers,
        }
    )
    await send({"type": "http.response.body", "body": bytes(response.body)})


async def send_start(send: Send) -> None:
    """Begin a stream of server-sent events."""
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [
                (b"content-type", b"text/event-stream; charset=utf-8"),
                (b"cache-control", b"no-cache"),
            ],
        }
    )


async def send_event(send: Send, value: Any) -> None:
    """Send one event."""
    data = b"data: " + msgspec.json.encode(value) + b"\n\n"
    await send({"type": "http.response.body", "body": data, "more_body": True})
