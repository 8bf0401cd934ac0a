"""What the ring's answers must equal: unsharded `transformers`, in a process of its own.

`python -m examples.demo.reference MODEL` reads a JSON list of questions and prints a JSON
object of answers. A process of its own, since importing torch would hold up the demo's peer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

MAX_TOKENS = 200
TIMEOUT = 60.0


class Expected(msgspec.Struct, frozen=True):
    """The greedy answer to one question."""

    text: str
    tokens: list[int]


class Reference:
    """Starts at once, is asked later."""

    def __init__(self, model: Path, questions: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "examples.demo.reference", str(model)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(list(questions)).encode())
        self._process.stdin.close()
        self._process.stdin = None
        self._answers: dict[str, Expected] | None = None

    def answer(self, question: str) -> Expected:
        """The answer to one of the questions given at the start."""
        if self._answers is None:
            output, _ = self._process.communicate(timeout=TIMEOUT)
            self._answers = msgspec.json.decode(output, type=dict[str, Expected])
        return self._answers[question]

    def close(self) -> None:
        """End the process, finished or not."""
        self._process.kill()
        self._process.wait()


def main() -> None:
    """Answer the questions on standard input."""
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # they would write between our lines
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = sys.argv[1]
    tokenizer: Any = AutoTokenizer.from_pretrained(path)
    model: Any = AutoModelForCausalLM.from_pretrained(path)
    model.eval()
    answers = {}
    for question in json.load(sys.stdin):
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        output = model.generate(**prompt, do_sample=False, max_new_tokens=MAX_TOKENS)
        tokens = output[0, prompt["input_ids"].shape[1] :].tolist()
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        answers[question] = Expected(text, list(tokenizer.encode(text, add_special_tokens=False)))
    sys.stdout.buffer.write(msgspec.json.encode(answers))


if __name__ == "__main__":
    main()
