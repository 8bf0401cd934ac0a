"""An OpenAI-compatible HTTP endpoint for the models of a mesh."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal, TypeVar

import anyio
import anyio.to_thread
import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Send

from lattica.errors import LatticaError
from serving import client as mesh
from serving.client import Client, NewToken, Replaced, Started
from serving.errors import ContextTooLongError, RequestError
from serving.http import Answer
from serving.messages import StageInfo
from serving.openai import ChatRequest, Common, CompletionRequest, Problem, problem_of
from serving.ports import MeshPeer
from serving.roster import Roster
from serving.routing import Live
from serving.source import ModelSource
from serving.span import missing
from serving.text import Detokenizer, StopFilter, Tokenizer

DEFAULT_ANSWER = 1024  # tokens, where the request names no limit
R = TypeVar("R", bound=Common)
log = logging.getLogger("serving.gateway")


class TextModel:
    """What the gateway needs of a model: everything but the weights."""

    def __init__(self, source: ModelSource, tokenizer: Tokenizer, eos: tuple[int, ...]) -> None:
        self.source = source
        self.tokenizer = tokenizer
        self.eos = eos


class Piece(msgspec.Struct, frozen=True):
    """Text that an answer grows by; `finish` on the last one."""

    text: str
    finish: Literal["", "stop", "length"] = ""


class Work:
    """One request, ready to run: its prompt, its limits, its counts."""

    def __init__(self, body: Common, model: TextModel, prompt: list[int], limit: int) -> None:
        self.body = body
        self.model = model
        self.prompt = prompt
        self.limit = limit
        self.produced = 0  # tokens
        self.stages: tuple[str, ...] = ()  # names of the ring's volunteers, at the end
        self.replaced: list[Replaced] = []

    def note(self, event: Started | Replaced) -> None:
        """Remember who answers."""
        self.stages = event.names
        if isinstance(event, Replaced):
            self.replaced.append(event)
            log.info(
                "%s (layers %s) was lost after %d tokens: %s; gap %.0f ms",
                event.lost_name, event.span, event.after, event.reason, event.gap_ms,
            )  # fmt: skip

    def story(self) -> dict[str, Any]:
        """How the answer came about; OpenAI's clients keep it as an extra field."""
        return {
            "stages": list(self.stages),
            "replaced": [
                {
                    "lost": event.lost_name,
                    "layers": str(event.span),
                    "after_tokens": event.after,
                    "gap_ms": round(event.gap_ms, 1),
                    "reason": event.reason,
                }
                for event in self.replaced
            ],
        }

    def usage(self) -> dict[str, int]:
        """OpenAI's usage object."""
        return {
            "prompt_tokens": len(self.prompt),
            "completion_tokens": self.produced,
            "total_tokens": len(self.prompt) + self.produced,
        }


class Gateway:
    """Answers HTTP requests by generating over the mesh."""

    def __init__(self, peer: MeshPeer, client: Client, roster: Roster, directory: Path) -> None:
        """`directory`: where configs and tokenizers of models are kept."""
        self._peer = peer
        self._client = client
        self._roster = roster
        self._directory = directory
        self._models: dict[str, TextModel] = {}  # by manifest
        self._loading = anyio.Lock()

    @classmethod
    async def open(
        cls, peer: MeshPeer, directory: Path, client: Client | None = None
    ) -> Gateway:
        """A gateway of the peer's mesh."""
        return cls(peer, client or await Client.open(peer), await Roster.open(peer), directory)

    def app(self) -> Starlette:
        """The ASGI application."""
        return Starlette(
            routes=[
                Route("/healthz", self._health),
                Route("/v1/models", self._list),
                Route("/v1/models/{model:path}", self._one),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/completions", self._complete, methods=["POST"]),
            ],
            exception_handlers={
                LatticaError: _told,
                HTTPException: _told_http,
                Exception: _told_crash,
            },
        )

    # ------------------------------------------------------------------ models

    async def _health(self, _: Request) -> Response:
        models = await self._client.models()
        return JSONResponse(
            {"status": "ok", "models": {name: _state(live) for name, live in models.items()}}
        )

    async def _list(self, _: Request) -> Response:
        models = await self._client.models()
        cards = [_card(name, live) for name, live in sorted(models.items()) if _complete(live)]
        return JSONResponse({"object": "list", "data": cards})

    async def _one(self, request: Request) -> Response:
        name = request.path_params["model"]
        models = await self._client.models()
        if name not in models:
            return _respond(_no_model(name, sorted(models)))
        return JSONResponse(_card(name, models[name]))

    async def _text_model(self, name: str) -> TextModel:
        """Config and tokenizer of a model, fetched on its first use.

        Raises:
            UnknownModelError: nobody serves it.
        """
        claim = await self._roster.find_model(name, timeout=1.0)
        async with self._loading:
            found = self._models.get(claim.manifest)
            if found is None:
                source = ModelSource(self._peer, name, self._directory, by_name=True)
                folder = await source.open(self._roster)
                tokenizer = await anyio.to_thread.run_sync(Tokenizer, folder.directory)
                found = TextModel(source, tokenizer, folder.eos)
                self._models[source.manifest] = found
        return found

    # ------------------------------------------------------------- completions

    async def _chat(self, request: Request) -> Response:
        body = await self._read(request, ChatRequest)
        model = await self._text_model(body.model)
        prompt = model.tokenizer.chat([message.plain() for message in body.messages])
        work = Work(body, model, prompt, await self._limit(body.model, prompt, body.limit))
        return self._answer(work, _ChatShape(body.model))

    async def _complete(self, request: Request) -> Response:
        body = await self._read(request, CompletionRequest)
        model = await self._text_model(body.model)
        prompt = _tokens(body.prompt, model.tokenizer)
        work = Work(body, model, prompt, await self._limit(body.model, prompt, body.limit or 16))
        return self._answer(work, _TextShape(body.model))

    async def _read(self, request: Request, kind: type[R]) -> R:
        limit = self._client.config.max_body
        raw = bytearray()
        try:
            async for chunk in request.stream():
                raw += chunk
                if len(raw) > limit:
                    raise RequestError(f"the body is larger than {limit} bytes")
        except ClientDisconnect:
            raise RequestError("the client left") from None
        try:
            body = msgspec.json.decode(bytes(raw), type=kind)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise RequestError(f"the body is not a request: {error}") from None
        body.check()
        return body

    async def _limit(self, model: str, prompt: list[int], wanted: int | None) -> int:
        claims = self._roster.claims().values()
        context = max((info.context for info in claims if info.model == model), default=0)
        if not prompt:
            raise RequestError("the prompt is empty")
        if not context:
            return wanted or DEFAULT_ANSWER
        room = context - len(prompt)
        if room < 1 or (wanted is not None and wanted > room):
            raise ContextTooLongError(
                f"the model's context is {context} tokens; the prompt has {len(prompt)} and "
                f"the answer may have {wanted or 1}. Shorten the prompt or lower max_tokens"
            )
        return wanted or min(room, DEFAULT_ANSWER)

    def _answer(self, work: Work, shape: _Shape) -> Answer:
        async def send_all(send: Send) -> None:
            try:
                if work.body.stream:
                    await self._stream(work, shape, send)
                else:
                    await self._whole(work, shape, send)
            except LatticaError as error:
                await _send_response(_respond(problem_of(error)), send)

        return Answer(send_all)

    async def _whole(self, work: Work, shape: _Shape, send: Send) -> None:
        text, finish = "", ""
        async with self._client.generate(_request(work)) as events:
            async for piece in pieces(work, events):
                text, finish = text + piece.text, piece.finish
        answer = JSONResponse(
            {**shape.whole(text, finish, work.usage()), "lattica": work.story()}
        )
        await _send_response(answer, send)

    async def _stream(self, work: Work, shape: _Shape, send: Send) -> None:
        options = work.body.stream_options
        with_usage = options is not None and options.include_usage
        begun = False
        try:
            async with self._client.generate(_request(work)) as events:
                async for piece in pieces(work, events):
                    if not begun:
                        # Not earlier: an error before the first text is a plain HTTP error.
                        begun = True
                        await _send_start(send)
                        await _send_event(send, shape.first())
                    if piece.text:
                        await _send_event(send, shape.chunk(piece.text))
                    if piece.finish:
                        last = {**shape.last(piece.finish), "lattica": work.story()}
                        await _send_event(send, last)
        except LatticaError as error:
            if not begun:
                raise
            await _send_event(send, problem_of(error).body())
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        if with_usage:
            await _send_event(send, shape.usage(work.usage()))
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


async def pieces(
    work: Work, events: AsyncIterator[mesh.Generated]
) -> AsyncIterator[Piece]:
    """Tokens as text, cut at stop strings. Ends early at a stop string."""
    detokenizer, stops = Detokenizer(work.model.tokenizer), StopFilter(work.body.stops())
    async for event in events:
        if not isinstance(event, NewToken):
            work.note(event)
            continue
        work.produced += 1
        ends = event.finish == "stop"  # the end token itself has no text
        text = "" if ends else detokenizer.feed(event.token)
        if event.finish:
            text += detokenizer.flush()
        shown = stops.feed(text)
        if stops.hit:
            yield Piece(shown, "stop")
            return
        if event.finish:
            yield Piece(shown + stops.flush(), event.finish)
            return
        yield Piece(shown)


class _Shape:
    """How an answer looks as JSON."""

    prefix = "cmpl"
    kind = "text_completion"
    chunk_kind = "text_completion"

    def __init__(self, model: str) -> None:
        self._head = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, text: str, finish: str, usage: dict[str, int]) -> dict[str, Any]:
        """The answer in one piece."""
        choice = {**self._full(text), "index": 0, "finish_reason": finish, "logprobs": None}
        return {**self._head, "object": self.kind, "choices": [choice], "usage": usage}

    def first(self) -> dict[str, Any]:
        """The stream's first chunk."""
        return self._piece(self._part("", first=True), None)

    def chunk(self, text: str) -> dict[str, Any]:
        """More text."""
        return self._piece(self._part(text), None)

    def last(self, finish: str) -> dict[str, Any]:
        """Why the answer ended."""
        return self._piece(self._part(""), finish)

    def usage(self, usage: dict[str, int]) -> dict[str, Any]:
        """The extra chunk with the counts."""
        return {**self._head, "object": self.chunk_kind, "choices": [], "usage": usage}

    def _piece(self, part: dict[str, Any], finish: str | None) -> dict[str, Any]:
        choice = {**part, "index": 0, "finish_reason": finish, "logprobs": None}
        return {**self._head, "object": self.chunk_kind, "choices": [choice]}

    def _full(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _part(self, text: str, *, first: bool = False) -> dict[str, Any]:
        del first
        return {"text": text}


class _TextShape(_Shape):
    """Plain completions."""


class _ChatShape(_Shape):
    """Chat completions."""

    prefix = "chatcmpl"
    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def _full(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def _part(self, text: str, *, first: bool = False) -> dict[str, Any]:
        if first:
            return {"delta": {"role": "assistant", "content": ""}}
        return {"delta": {"content": text} if text else {}}


def _request(work: Work) -> mesh.Request:
    return mesh.Request(
        model=work.body.model,
        prompt=tuple(work.prompt),
        max_tokens=work.limit,
        sampling=work.body.sampling(),
        eos=work.model.eos,
    )


def _tokens(prompt: str | list[int | str], tokenizer: Tokenizer) -> list[int]:
    if isinstance(prompt, str):
        return tokenizer.encode(prompt)
    if len(prompt) == 1 and isinstance(prompt[0], str):
        return tokenizer.encode(prompt[0])
    return [token for token in prompt if isinstance(token, int)]


def _complete(live: list[Live]) -> bool:
    return not _state(live)["missing"]


def _state(live: list[Live]) -> dict[str, Any]:
    infos: list[StageInfo] = [entry.info for entry in live]
    layers = max(info.layers for info in infos)
    spans = [info.span for info in infos if info.state == "serving" and info.span is not None]
    standbys = sum(info.state == "standby" for info in infos)
    gaps = missing(layers, spans)
    return {
        "layers": layers,
        "stages": [
            {"peer": info.name, "span": str(info.span), "sessions": info.sessions}
            for info in infos
            if info.state == "serving"
        ],
        "standbys": standbys,
        "missing": [] if standbys and len(gaps) <= standbys else [str(gap) for gap in gaps],
    }


def _card(name: str, live: list[Live]) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "mesh",
        "context_length": max(entry.info.context for entry in live),
        "stages": len(_state(live)["stages"]),
    }


def _no_model(name: str, known: list[str]) -> Problem:
    there = f"the mesh serves {', '.join(known)}" if known else "no model is served in the mesh"
    return Problem(
        404, f"nobody serves a model named {name!r}; {there}", "invalid_request_error",
        "model_not_found",
    )  # fmt: skip


def _respond(problem: Problem) -> JSONResponse:
    headers = {}
    if problem.retry_after is not None:
        headers["retry-after"] = str(max(1, round(problem.retry_after)))
    return JSONResponse(problem.body(), status_code=problem.status, headers=headers)


def _told(_: Request, error: Exception) -> Response:
    assert isinstance(error, LatticaError)
    return _respond(problem_of(error))


def _told_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = f"{request.method} {request.url.path}: {error.detail}"
    problem = Problem(error.status_code, text, "invalid_request_error")
    return JSONResponse(problem.body(), status_code=error.status_code, headers=error.headers)


def _told_crash(_: Request, error: Exception) -> Response:
    # Starlette logs the traceback; the client is told no more than the class.
    text = f"the gateway failed: {type(error).__name__}"
    return JSONResponse(Problem(500, text, "server_error").body(), status_code=500)


async def _send_response(response: Response, send: Send) -> None:
    await send(
        {
            "type": "http.response.start",
            "status": response.status_code,
            "headers": response.raw_headers,
        }
    )
    await send({"type": "http.response.body", "body": bytes(response.body)})


async def _send_start(send: Send) -> None:
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


async def _send_event(send: Send, value: Any) -> None:
    data = b"data: " + msgspec.json.encode(value) + b"\n\n"
    await send({"type": "http.response.body", "body": data, "more_body": True})
