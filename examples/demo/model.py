"""Chapters five and six: a model over three peers, and one of them killed in mid-sentence."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from examples.demo.machines import Machine
from examples.demo.reference import MAX_TOKENS, Reference
from examples.demo.story import Story

QUESTIONS = ("What is 34+57?", "Count from 5 to 40.")
LONG_QUESTION = "Count from 7 to 48."
KILL_AFTER = 12  # tokens
READY_TIMEOUT = 60.0  # seconds

WEIGHTS = "volunteers without weights fetched them from the one that has"
SAME = "the ring's answers equal unsharded transformers, token for token"
FAILOVER = "killed in mid-sentence, the text is still the same"


class Answer(msgspec.Struct, frozen=True):
    """A streamed answer and when its pieces came."""

    text: str
    pieces: int
    seconds: float
    longest_gap: float  # seconds between two pieces
    route: str  # which peer held which layers at the start


def ask(
    url: str,
    question: str,
    *,
    on_piece: Callable[[str], None],
    after: int = 0,
    then: Callable[[str], None] | None = None,
) -> Answer:
    """Stream an answer with the real `openai` client; call `then(route)` after some pieces."""
    import openai

    started = last = time.monotonic()
    pieces, gap, text = 0, 0.0, ""
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
        response = client.chat.completions.with_raw_response.create(
            model="tiny",
            messages=[{"role": "user", "content": question}],
            temperature=0,
            max_tokens=MAX_TOKENS,
            stream=True,
        )
        route = response.headers.get("x-lattica-route", "")
        for chunk in response.parse():
            piece = (chunk.choices[0].delta.content or "") if chunk.choices else ""
            if not piece:
                continue
            now = time.monotonic()
            gap, last = max(gap, now - last) if pieces else 0.0, now
            pieces, text = pieces + 1, text + piece
            on_piece(piece)
            if then is not None and pieces == after:
                then(route)
    return Answer(text, pieces, time.monotonic() - started, gap, route)


def wait_until_covered(story: Story, gateway: Machine) -> str:
    """The gateway's URL, once three stages cover every layer and one stands by."""
    with story.busy("waiting for the volunteers to take their layers"):
        up = gateway.wait_for("gateway", READY_TIMEOUT)
    return str(up["url"])


def show_volunteers(story: Story, machines: list[Machine]) -> None:
    """Who holds which layers, and where its weights came from."""
    rows = []
    fetched = 0
    for machine in machines:
        event = machine.wait_for("serving", READY_TIMEOUT)
        sources: dict[str, Any] = event.get("fetched", {})
        fetched += bool(sources)
        rows.append(
            [
                machine.name,
                event["span"] or "stands by",
                ", ".join(f"{size / 1e6:.1f} MB from {name}" for name, size in sources.items())
                or "has them on disk",
            ]
        )
    story.table(["volunteer", "layers", "weights"], rows)
    story.keep(WEIGHTS, fetched >= 2, f"{fetched} volunteers fetched verified blocks")


def tokenizer(model: Path) -> Callable[[str], list[int]]:
    """Text to tokens, without torch."""
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(str(model / "tokenizer.json"))
    return lambda text: list(loaded.encode(text, add_special_tokens=False).ids)


def answers(story: Story, url: str, model: Path, reference: Reference) -> None:
    """The same questions to the ring and to unsharded transformers."""
    same, total = 0, 0
    tokens = tokenizer(model)
    for question in QUESTIONS:
        story.console.print(f"  [bold]{question}[/] ", end="")
        answer = ask(url, question, on_piece=story.raw)
        story.console.print()
        expected = reference.answer(question)
        total += answer.pieces
        same += answer.text == expected.text and tokens(answer.text) == expected.tokens
        story.say(f"[dim]{answer.pieces / answer.seconds:.0f} tokens/s over {answer.route}[/]")
    story.keep(SAME, same == len(QUESTIONS), f"{same} of {len(QUESTIONS)} answers, {total} tokens")


def kill_in_mid_sentence(
    story: Story,
    url: str,
    machines: list[Machine],
    reference: Reference,
) -> Machine:
    """`kill -9` on the middle stage while it answers; returns the machine that was killed."""
    by_name = {machine.name: machine for machine in machines}
    killed: list[Machine] = []

    def kill(route: str) -> None:
        middle = by_name[route.split(", ")[1].split(" ")[0]]
        middle.kill()
        killed.append(middle)
        story.raw(f" [kill -9 {middle.name}] ")

    story.console.print(f"  [bold]{LONG_QUESTION}[/] ", end="")
    answer = ask(url, LONG_QUESTION, on_piece=story.raw, after=KILL_AFTER, then=kill)
    story.console.print()
    after = ask(url, QUESTIONS[0], on_piece=lambda _: None)
    story.say(f"[dim]layers now: {after.route}[/]")
    held = (
        bool(killed)
        and answer.text == reference.answer(LONG_QUESTION).text
        and killed[0].name not in after.route
    )
    story.keep(
        FAILOVER,
        held,
        f"{killed[0].name if killed else 'nobody'} killed after {KILL_AFTER} of "
        f"{answer.pieces} tokens; gap {answer.longest_gap * 1000:.0f} ms",
    )
    return killed[0]
