"""How answers look as OpenAI's JSON."""

from __future__ import annotations

import secrets
import time
from typing import Any


class Shape:
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


class TextShape(Shape):
    """Plain completions."""


class ChatShape(Shape):
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
