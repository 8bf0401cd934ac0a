"""Text that grows token by token."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import ModelDirError, RequestError
from serving.text import Detokenizer, StopFilter, Tokenizer


@pytest.fixture(scope="module")
def tokenizer(chat: Path) -> Tokenizer:
    """A byte-level tokenizer: every character above ASCII takes several tokens."""
    return Tokenizer(chat)


@pytest.mark.parametrize("text", ["plain", "naïve café", "日本語 текст", "👩‍👩‍👧 ok", " lead"])
def test_pieces_add_up_and_never_show_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.feed(token) for token in tokenizer.encode(text)]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + detokenizer.flush() == text


@given(raw=st.binary(max_size=40))
def test_any_bytes_add_up_to_what_the_tokenizer_decodes(tokenizer: Tokenizer, raw: bytes) -> None:
    # Byte tokens come in the order of the byte-level alphabet; any sequence may be sampled.
    tokens = [3 + byte for byte in raw]
    detokenizer = Detokenizer(tokenizer)
    grown = "".join(detokenizer.feed(token) for token in tokens) + detokenizer.flush()
    assert grown == tokenizer.decode(tokens)


def test_special_tokens_have_no_text(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer)
    assert detokenizer.feed(1) == detokenizer.feed(2) == detokenizer.flush() == ""


def test_the_chat_template_is_the_models(tokenizer: Tokenizer) -> None:
    prompt = tokenizer.chat([{"role": "user", "content": "hi"}])
    assert prompt[0] == 1
    assert tokenizer.decode(prompt) == "user:hi\nassistant:"
    with pytest.raises(RequestError, match="unknown role wizard"):
        tokenizer.chat([{"role": "wizard", "content": "hi"}])


def test_a_folder_without_a_tokenizer(llama: Path) -> None:
    with pytest.raises(ModelDirError, match="no usable tokenizer"):
        Tokenizer(llama)


def cut(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    """What is shown of pieces, and whether a stop string was met."""
    stop = StopFilter(stops)
    shown = "".join(stop.feed(piece) for piece in pieces)
    return shown + stop.flush(), stop.hit


def test_stop_strings_in_pieces() -> None:
    assert cut(["END"], ["a E", "N", "D b"]) == ("a ", True)
    assert cut(["END"], ["a E", "N", "T"]) == ("a ENT", False)
    assert cut(["\n\n"], ["a\n", "b\n", "\nc"]) == ("a\nb", True)
    assert cut(["xy", "b"], ["axb", "xy"]) == ("ax", True)
    assert cut([], ["a", "b"]) == ("ab", False)


@given(
    stops=st.lists(st.text("ab", min_size=1, max_size=3), max_size=3),
    pieces=st.lists(st.text("abc", max_size=4), max_size=8),
)
def test_a_stop_string_cuts_wherever_the_pieces_break(stops: list[str], pieces: list[str]) -> None:
    text = "".join(pieces)
    shown, hit = cut(stops, pieces)
    assert hit == any(stop in text for stop in stops)
    assert text.startswith(shown)
    assert not any(stop in shown for stop in stops)
    if not hit:
        assert shown == text
