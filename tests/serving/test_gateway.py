"""The gateway as the real `openai` client sees it, over loopback HTTP."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import httpx
import openai
import pytest
import torch
import transformers

from serving.client import Client
from serving.config import ServingConfig
from serving.errors import GatewayPortError
from serving.gateway import Gateway
from serving.http import bind, serving
from serving.span import Span
from serving.volunteer import Volunteer
from tests.serving.mesh import FakePeer, Mesh

pytestmark = pytest.mark.anyio

MESSAGES = [{"role": "user", "content": "Grüße, 世界"}]
CONFIG = ServingConfig(hop_timeout=2.0, probe_timeout=1.0, max_body=20_000)


class House:
    """Two volunteers, a gateway, and clients of both kinds."""

    def __init__(self, mesh: Mesh, chat: Path, tmp_path: Path) -> None:
        self.mesh = mesh
        self.chat = chat
        self.tmp_path = tmp_path
        self.peers: list[FakePeer] = []
        self.volunteers: list[Volunteer] = []
        self.url = ""
        self.openai: openai.AsyncOpenAI
        self.http: httpx.AsyncClient

    async def volunteer(self, layers: object, config: ServingConfig = CONFIG) -> None:
        """One more volunteer."""
        peer = await self.mesh.peer(f"v{len(self.peers)}")
        volunteer = Volunteer(
            peer,
            self.chat,
            layers=layers,  # type: ignore[arg-type]
            config=config,
        )
        self.peers.append(peer)
        self.volunteers.append(await self.mesh.enter(volunteer))

    async def open(self) -> None:
        """Start the gateway."""
        peer = await self.mesh.peer("gateway")
        client = await Client.open(peer, CONFIG)
        gateway = await Gateway.open(peer, client)
        self.url = await self.mesh.enter(serving(gateway.app(), bind("127.0.0.1", 0)))
        self.openai = await self.mesh.enter(
            openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)
        )
        self.http = await self.mesh.enter(httpx.AsyncClient(base_url=self.url, trust_env=False))

    async def idle(self) -> None:
        """Wait until no session is open anywhere."""
        with anyio.fail_after(5):
            for volunteer in self.volunteers:
                await volunteer.idle()


@asynccontextmanager
async def open_house(chat: Path, tmp_path: Path, latency: float = 0.0) -> AsyncIterator[House]:
    """An empty house."""
    async with Mesh(tmp_path, latency).running() as mesh:
        yield House(mesh, chat, tmp_path)


@pytest.fixture
async def house(chat: Path, tmp_path: Path) -> AsyncIterator[House]:
    """Two volunteers and a gateway."""
    async with open_house(chat, tmp_path) as house:
        await house.volunteer(Span(0, 3))
        await house.volunteer(Span(3, 6))
        await house.open()
        yield house


def expected(chat: Path, count: int) -> str:
    """What unsharded transformers answers to MESSAGES."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(chat)
    model = transformers.AutoModelForCausalLM.from_pretrained(chat, dtype=torch.float32)
    text = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False)
    ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
    answer = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False
    )
    return tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True)


async def test_an_answer_equals_unsharded_transformers(house: House) -> None:
    answer = await house.openai.chat.completions.create(
        model="tiny-chat", messages=MESSAGES, temperature=0, max_tokens=24
    )
    choice = answer.choices[0]
    assert choice.message.content == expected(house.chat, 24)
    assert choice.message.role == "assistant"
    assert choice.finish_reason in ("length", "stop")
    assert answer.usage is not None
    prompt_tokens = 1 + len("user:Grüße, 世界\nassistant:".encode())
    assert answer.usage.prompt_tokens == prompt_tokens
    assert answer.usage.total_tokens == prompt_tokens + answer.usage.completion_tokens
    await house.idle()


async def test_a_stream_adds_up_to_the_answer(house: House) -> None:
    stream = await house.openai.chat.completions.create(
        model="tiny-chat",
        messages=MESSAGES,
        temperature=0,
        max_completion_tokens=24,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == expected(house.chat, 24)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len({chunk.id for chunk in chunks}) == 1
    finishes = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert finishes[-1] in ("length", "stop")
    assert not any(finishes[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens <= 24


async def test_seeds_repeat_and_differ(house: House) -> None:
    async def ask(seed: int) -> str | None:
        answer = await house.openai.chat.completions.create(
            model="tiny-chat", messages=MESSAGES, seed=seed, temperature=1.5, max_tokens=12
        )
        return answer.choices[0].message.content

    assert await ask(1) == await ask(1) != await ask(2)


async def test_stop_strings_cut_the_answer(house: House) -> None:
    whole = expected(house.chat, 24)
    stop = whole[3:5]
    for stream in (False, True):
        answer = await house.http.post(
            "/v1/chat/completions",
            json={
                "model": "tiny-chat", "messages": MESSAGES, "temperature": 0,
                "max_tokens": 24, "stop": [stop], "stream": stream,
            },
        )  # fmt: skip
        if not stream:
            choice = answer.json()["choices"][0]
            assert choice["message"]["content"] == whole[: whole.find(stop)]
            assert choice["finish_reason"] == "stop"
        else:
            assert answer.text.endswith("data: [DONE]\n\n")
    await house.idle()


async def test_plain_completions(house: House) -> None:
    answer = await house.openai.completions.create(
        model="tiny-chat", prompt="abc", temperature=0, max_tokens=5
    )
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 3
    stream = await house.openai.completions.create(
        model="tiny-chat", prompt=[100, 101], temperature=0, max_tokens=5, stream=True
    )
    chunks = [chunk async for chunk in stream]
    assert {chunk.object for chunk in chunks} == {"text_completion"}
    with pytest.raises(openai.BadRequestError, match="token 999 is not in the vocabulary"):
        await house.openai.completions.create(model="tiny-chat", prompt=[5, 999])
    with pytest.raises(openai.BadRequestError, match="one prompt per request"):
        await house.openai.completions.create(model="tiny-chat", prompt=["a", "b"])


async def test_models_and_health(house: House) -> None:
    models = await house.openai.models.list()
    assert [model.id for model in models.data] == ["tiny-chat"]
    assert (await house.openai.models.retrieve("tiny-chat")).owned_by == "mesh"
    with pytest.raises(openai.NotFoundError, match="the mesh serves tiny-chat"):
        await house.openai.models.retrieve("other")
    health = (await house.http.get("/healthz")).json()
    assert health["models"]["tiny-chat"]["missing"] == []
    house.peers[0].die()
    health = (await house.http.get("/healthz")).json()
    assert health["models"]["tiny-chat"]["missing"] == ["0:3"]
    assert (await house.openai.models.list()).data == []


async def test_errors_have_openais_shape_and_status(house: House) -> None:
    create = house.openai.chat.completions.create
    with pytest.raises(openai.NotFoundError) as unknown:
        await create(model="other", messages=MESSAGES)
    assert unknown.value.code == "model_not_found"
    assert "tiny-chat" in str(unknown.value)
    with pytest.raises(openai.BadRequestError) as too_long:
        await create(model="tiny-chat", messages=MESSAGES, max_tokens=1000)
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="unknown role wizard"):
        await create(model="tiny-chat", messages=[{"role": "wizard", "content": "x"}])
    with pytest.raises(openai.BadRequestError, match="n must be 1"):
        await create(model="tiny-chat", messages=MESSAGES, n=2)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        await create(model="tiny-chat", messages=MESSAGES, temperature=3)
    part = {"type": "image_url", "image_url": {"url": "x"}}
    with pytest.raises(openai.BadRequestError, match="image_url"):
        await create(model="tiny-chat", messages=[{"role": "user", "content": [part]}])


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"model": "tiny-chat"}', b"\xff" * 10, b"[" * 5000]
)
async def test_a_bad_body_is_told_as_one(house: House, body: bytes) -> None:
    answer = await house.http.post("/v1/chat/completions", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_other_bad_requests(house: House) -> None:
    assert (await house.http.post("/v1/completions", content=b"x" * 30_000)).status_code == 400
    assert (await house.http.get("/v1/nothing")).json()["error"]["message"]
    assert (await house.http.get("/v1/chat/completions")).status_code == 405


async def test_no_cover_is_503_and_names_the_layers(house: House) -> None:
    house.peers[1].die()
    with pytest.raises(openai.InternalServerError, match="layers 3:6") as caught:
        await house.openai.chat.completions.create(model="tiny-chat", messages=MESSAGES)
    assert caught.value.status_code == 503
    assert caught.value.code == "no_cover"


async def test_a_full_mesh_is_429_with_retry_after(chat: Path, tmp_path: Path) -> None:
    async with open_house(chat, tmp_path) as house:
        await house.volunteer("auto", ServingConfig(kv_tokens=40))
        await house.open()
        with pytest.raises(openai.RateLimitError) as caught:
            await house.openai.chat.completions.create(
                model="tiny-chat", messages=MESSAGES, max_tokens=50
            )
        assert caught.value.response.headers["retry-after"] == "1"


async def test_a_stage_dies_while_the_client_reads(chat: Path, tmp_path: Path) -> None:
    async with open_house(chat, tmp_path, latency=0.003) as house:
        await house.volunteer(Span(0, 3))
        await house.volunteer(Span(3, 6))
        await house.volunteer("standby")
        await house.open()
        stream = await house.openai.chat.completions.create(
            model="tiny-chat", messages=MESSAGES, temperature=0, max_tokens=60, stream=True
        )
        text, story = "", {}
        async for chunk in stream:
            story = (chunk.model_extra or {}).get("lattica", story)
            text += chunk.choices[0].delta.content or ""
            if len(text) >= 4 and house.peers[0].alive:
                house.peers[0].die()
        assert text == expected(chat, 60)
        assert story["stages"] == ["v2", "v1"]
        assert [lost["lost"] for lost in story["replaced"]] == ["v0"]
        assert story["replaced"][0]["gap_ms"] > 0


async def test_without_a_replacement_the_stream_ends_in_an_error(house: House) -> None:
    stream = await house.openai.chat.completions.create(
        model="tiny-chat", messages=MESSAGES, temperature=1, seed=3, max_tokens=150, stream=True
    )

    async def read() -> None:
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                house.peers[0].die()

    with pytest.raises(openai.APIError, match="layers 0:3"):
        await read()


async def test_a_client_that_leaves_frees_the_caches(house: House) -> None:
    stream = await house.openai.chat.completions.create(
        model="tiny-chat", messages=MESSAGES, temperature=1, seed=3, max_tokens=180, stream=True
    )
    async for _ in stream:
        break
    await stream.close()
    await house.idle()
    assert all(v.info.kv_free == CONFIG.kv_tokens for v in house.volunteers)


async def test_a_port_in_use_names_the_cure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(GatewayPortError, match=f"port {port} .* in use .*--port"):
            bind("127.0.0.1", port)
    with pytest.raises(GatewayPortError):
        bind("127.0.0.1", 99_999)
