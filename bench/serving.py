"""Tokens per second over a ring of three peers, beside unsharded transformers."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path

from bench.processes import Other, other
from bench.rows import Row, medians, row
from bench.targets import DEFAULT_ENGINE
from lattica.peer import Peer, PeerOptions
from serving.client import Client, NewToken, Request

MODEL = Path(__file__).resolve().parent.parent / "examples" / "model"
NAME = "tiny"
SPANS = ("0:3", "3:6", "6:8")
TOKENS = 64
PROMPT = (1,) * 8


async def rows(*, rounds: int = 5, model: Path = MODEL) -> list[Row]:
    """The table's third part."""
    started = time.perf_counter()
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        reference = await stack.enter_async_context(other("bench.unsharded", str(model)))
        ticket = ""
        for index, span in enumerate(SPANS):
            source = [str(model), "--model-name", NAME] if index == 0 else [NAME]
            join = ["--ticket", ticket] if ticket else []
            volunteer = await stack.enter_async_context(
                other(
                    *("lattica", "serve", *source, *join, "--layers", span, "--cpus", "0"),
                    *("--home", str(folder / str(index)), "--listen", "127.0.0.1:0", "--json"),
                )
            )
            ticket = ticket or str((await _event(volunteer, "up"))["ticket"])
            await _event(volunteer, "fetched")
        peer = await stack.enter_async_context(Peer.open(PeerOptions(ticket=ticket, cpus=0)))
        client = await Client.open(peer)
        await _over_the_ring(client)  # dials the stages

        async def unsharded() -> float:
            await reference.say(str(TOKENS))
            return float(await reference.line())

        value, theirs = await medians([lambda: _over_the_ring(client), unsharded], rounds=rounds)
    sys.stderr.write(f"serving: {time.perf_counter() - started:.0f} s\n")
    return [
        row(
            f"tokens/s, one session, ring of {len(SPANS)}",
            *(DEFAULT_ENGINE, value, "tokens/s"),
            reference=theirs,
            against="transformers, unsharded",
        )
    ]


async def _event(process: Other, name: str) -> dict[str, object]:
    while True:
        event: dict[str, object] = json.loads(await process.line())
        if event.get("event") == name:
            return event


async def _over_the_ring(client: Client) -> float:
    request = Request(model=NAME, prompt=PROMPT, max_tokens=TOKENS)
    start = time.perf_counter()
    count = 0
    async with client.generate(request) as events:
        async for event in events:
            count += isinstance(event, NewToken)
    return count / (time.perf_counter() - start)
