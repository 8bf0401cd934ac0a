"""An OpenAI-compatible HTTP endpoint for the models of a mesh."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
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
from serving.listing import card_of, is_complete, state_of
from serving.openai import ChatRequest, Common, CompletionRequest, problem_of
from serving.ports import MeshPeer
from serving.replies import (
    no_model,
    respond,
    send_event,
    send_response,
    send_start,
    told,
    told_crash,
    told_http,
)
from serving.roster import Roster
from serving.shapes import ChatShape, Shape, TextShape
from serving.source import ModelSource
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

    def __init__(self, peer: MeshPeer, client: Client, roster: Roster) -> None:
        self._peer = peer
        self._client = client
        self._roster = roster
        self._models: dict[str, TextModel] = {}  # by manifest
        self._loading = anyio.Lock()

    @classmethod
    async def open(cls, peer: MeshPeer, client: Client | None = None) -> Gateway:
        """A gateway of the peer's mesh."""
        return cls(peer, client or await Client.open(peer), await Roster.open(peer))

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
                LatticaError: told,
                HTTPException: told_http,
                Exception: told_crash,
            },
        )

    # ------------------------------------------------------------------ models

    async def _health(self, _: Request) -> Response:
        models = await self._client.models()
        return JSONResponse(
            {"status": "ok", "models": {name: state_of(live) for name, live in models.items()}}
        )

    async def _list(self, _: Request) -> Response:
        models = await self._client.models()
        cards = [card_of(name, live) for name, live in sorted(models.items()) if is_complete(live)]
        return JSONResponse({"object": "list", "data": cards})

    async def _one(self, request: Request) -> Response:
        name = request.path_params["model"]
        models = await self._client.models()
        if name not in models:
            return respond(no_model(name, sorted(models)))
        return JSONResponse(card_of(name, models[name]))

    async def _text_model(self, name: str) -> TextModel:
        """Config and tokenizer of a model, fetched on its first use.

        Raises:
            UnknownModelError: nobody serves it.
        """
        claim = await self._roster.find_model(name, timeout=1.0)
        async with self._loading:
            found = self._models.get(claim.manifest)
            if found is None:
                source = ModelSource(self._peer, name, by_name=True)
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
        return self._answer(work, ChatShape(body.model))

    async def _complete(self, request: Request) -> Response:
        body = await self._read(request, CompletionRequest)
        model = await self._text_model(body.model)
        prompt = _tokens(body.prompt, model.tokenizer)
        work = Work(body, model, prompt, await self._limit(body.model, prompt, body.limit or 16))
        return self._answer(work, TextShape(body.model))

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

    def _answer(self, work: Work, shape: Shape) -> Answer:
        async def send_all(send: Send) -> None:
            try:
                if work.body.stream:
                    await self._stream(work, shape, send)
                else:
                    await self._whole(work, shape, send)
            except LatticaError as error:
                await send_response(respond(problem_of(error)), send)

        return Answer(send_all)

    async def _whole(self, work: Work, shape: Shape, send: Send) -> None:
        text, finish = "", ""
        async with self._client.generate(_request(work)) as events:
            async for piece in pieces(work, events):
                text, finish = text + piece.text, piece.finish
        answer = JSONResponse({**shape.whole(text, finish, work.usage()), "lattica": work.story()})
        await send_response(answer, send)

    async def _stream(self, work: Work, shape: Shape, send: Send) -> None:
        options = work.body.stream_options
        with_usage = options is not None and options.include_usage
        begun = False
        try:
            async with self._client.generate(_request(work)) as events:
                async for piece in pieces(work, events):
                    if not begun:
                        # Not earlier: an error before the first text is a plain HTTP error.
                        begun = True
                        await send_start(send)
                        await send_event(send, shape.first())
                    if piece.text:
                        await send_event(send, shape.chunk(piece.text))
                    if piece.finish:
                        last = {**shape.last(piece.finish), "lattica": work.story()}
                        await send_event(send, last)
        except LatticaError as error:
            if not begun:
                raise
            await send_event(send, problem_of(error).body())
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        if with_usage:
            await send_event(send, shape.usage(work.usage()))
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


async def pieces(work: Work, events: AsyncIterator[mesh.Generated]) -> AsyncIterator[Piece]:
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
