"""Text to tokens and back, one token at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from serving.errors import ModelDirError, RequestError

_UNFINISHED = "\ufffd"  # what a tokenizer shows for bytes that do not end a character yet


class Tokenizer:
    """A model's tokenizer and chat template."""

    def __init__(self, directory: Path) -> None:
        """Read tokenizer files. Slow: call it in a thread.

        Raises:
            ModelDirError: there is no usable tokenizer.
        """
        load: Any = AutoTokenizer.from_pretrained
        try:
            self._inner: Any = load(directory, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
            raise ModelDirError(f"{directory} has no usable tokenizer: {error}") from None

    def chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """The prompt of a conversation, ready for the assistant's turn.

        Raises:
            RequestError: the model has no chat template, or the template refuses these roles.
        """
        if self._inner.chat_template is None:
            raise RequestError("this model has no chat template; use /v1/completions")
        try:
            text = self._inner.apply_chat_template(
                list(messages), add_generation_prompt=True, tokenize=False
            )
        except Exception as error:  # noqa: BLE001 - templates are programs: they raise anything
            raise RequestError(f"the model's chat template refuses this: {error}") from None
        # The template writes the special tokens itself.
        return [int(token) for token in self._inner.encode(text, add_special_tokens=False)]

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text."""
        return [int(token) for token in self._inner.encode(text)]

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens, special ones left out."""
        text: str = self._inner.decode(
            list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


class Detokenizer:
    """Text as it grows. Nothing is shown before its last byte is known."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._start = 0  # the window that is decoded anew: some tokenizers join neighbours
        self._shown = 0  # tokens whose text is out

    def feed(self, token: int) -> str:
        """The text that `token` completes; empty inside of a multi-byte character."""
        self._tokens.append(token)
        text = self._grown()
        if text.endswith(_UNFINISHED):
            return ""
        self._start, self._shown = self._shown, len(self._tokens)
        return text

    def flush(self) -> str:
        """What is left at the end, unfinished bytes included."""
        text = self._grown()
        self._start = self._shown = len(self._tokens)
        return text

    def _grown(self) -> str:
        before = self._tokenizer.decode(self._tokens[self._start : self._shown])
        now = self._tokenizer.decode(self._tokens[self._start :])
        return now[len(before) :]


class StopFilter:
    """Cuts text at the first stop string, which may come in pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.hit = False

    def feed(self, text: str) -> str:
        """The text that is safe to show. `hit` is set once a stop string is complete."""
        if self.hit:
            return ""
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.hit = True
            shown, self._held = self._held[: min(found)], ""
            return shown
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def flush(self) -> str:
        """What was held back, at the end."""
        shown, self._held = self._held, ""
        return shown

    def _overlap(self, stop: str) -> int:
        """How much of the end may be the beginning of `stop`."""
        for size in range(min(len(stop) - 1, len(self._held)), 0, -1):
            if stop.startswith(self._held[-size:]):
                return size
        return 0
