"""Chapters five and six: a model over three peers, and one of them killed in mid-sentence."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import msgspec

from examples.demo.machines import Machine
from examples.demo.reference import MAX_TOKENS, Reference
from examples.demo.story import Story

MODEL_NAME = "tiny"
QUESTIONS = ("What is 34+57?", "Sort: pear fig apple", "Count from 12 to 30.")
LONG_QUESTION = "Count from 3 to 40."
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


def ask(
    url: str,
    question: str,
    *,
    on_piece: Callable[[str], None],
    after: int = 0,
    then: Callable[[], None] | None = None,
) -> Answer:
    """Stream an answer with the real `openai` client; call `then()` after some pieces."""
    import openai

    started = last = time.monotonic()
    pieces, gap, text = 0, 0.0, ""
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
        chunks = client.chat.completions.create(
            model=MODEL_NAME,
            messages=[{"role": "user", "content": question}],
            temperature=0,
            max_tokens=MAX_TOKENS,
            stream=True,
        )
        for chunk in chunks:
            piece = (chunk.choices[0].delta.content or "") if chunk.choices else ""
            if not piece:
                continue
            now = time.monotonic()
            gap, last = max(gap, now - last) if pieces else 0.0, now
            pieces, text = pieces + 1, text + piece
            on_piece(piece)
            if then is not None and pieces == after:
                then()
    return Answer(text, pieces, time.monotonic() - started, gap)


def stages(url: str) -> list[tuple[str, str]]:
    """The live stages as the gateway sees them, in layer order: peer and span."""
    with urllib.request.urlopen(url.removesuffix("/v1") + "/healthz", timeout=20) as answer:
        models = json.load(answer)["models"]
    found = models.get(MODEL_NAME, {"stages": []})["stages"]
    spans = [(stage["peer"], stage["span"]) for stage in found]
    return sorted(spans, key=lambda stage: int(stage[1].split(":")[0]))


def route(url: str) -> str:
    """The stages for people: `alpha 0:3 > beta 3:6 > gamma 6:8`."""
    return " > ".join(f"{peer} {span}" for peer, span in stages(url))


def gateway_url(story: Story, gateway: Machine) -> str:
    """Where the gateway answers."""
    with story.busy("waiting for the gateway"):
        return str(gateway.wait_for("gateway", READY_TIMEOUT)["url"])


def show_volunteers(story: Story, machines: list[Machine]) -> None:
    """Who holds which layers, and where its weights came from."""
    with story.busy("waiting for the volunteers to take their layers"):
        got = {machine: machine.wait_for("fetched", READY_TIMEOUT) for machine in machines}
    names = {machine.wait_for("up")["peer"]: machine.name for machine in machines}
    rows = []
    fetched = 0
    for machine, event in got.items():
        sources: dict[str, int] = event["bytes_by_provider"]
        fetched += bool(sources)
        origin = [
            f"{_size(count)} from {names.get(peer, peer[:8])}"
            for peer, count in sorted(sources.items(), key=lambda source: -source[1])
        ]
        state = machine.latest("serving", "standby")
        layers = f"{state['span']} of {state['layers']}" if state.get("span") else "stands by"
        rows.append([machine.name, layers, ", ".join(origin) or "on its own disk"])
    story.table(["volunteer", "layers", "weights"], rows)
    story.keep(WEIGHTS, fetched >= 2, f"{fetched} volunteers fetched verified blocks")


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.0f} kB"


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
        rate = f"{answer.pieces / answer.seconds:.0f} tokens/s " if answer.pieces > 20 else ""
        story.say(f"[dim]{rate}over {route(url)}[/]")
    story.keep(SAME, same == len(QUESTIONS), f"{same} of {len(QUESTIONS)} answers, {total} tokens")


def kill_in_mid_sentence(
    story: Story,
    url: str,
    machines: list[Machine],
    reference: Reference,
) -> None:
    """`kill -9` on the middle stage while it answers."""
    by_name = {machine.name: machine for machine in machines}
    middle = by_name[stages(url)[1][0]]

    def kill() -> None:
        middle.kill()
        story.raw(f" [kill -9 {middle.name}] ")

    story.console.print(f"  [bold]{LONG_QUESTION}[/] ", end="")
    answer = ask(url, LONG_QUESTION, on_piece=story.raw, after=KILL_AFTER, then=kill)
    story.console.print()
    same = answer.text == reference.answer(LONG_QUESTION).text
    after = route(url)
    story.say(f"[dim]layers now: {after}[/]")
    story.keep(
        FAILOVER,
        same and answer.pieces > KILL_AFTER and middle.name not in after,
        f"{middle.name} killed after {KILL_AFTER} of {answer.pieces} tokens; "
        f"gap {answer.longest_gap * 1000:.0f} ms",
    )
