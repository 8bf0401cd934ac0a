"""Spans of any family, run one after the other, are the whole model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from serving.cache import SpanCache
from serving.errors import SpanError, UnsupportedModelError
from serving.loading import ModelFolder
from serving.partition import SpanModel, check_supported, find_layers
from serving.span import Span
from tests.serving.models import BASE, FAMILIES, build, reference

PROMPT = list(range(5, 25))


def decode(
    stages: list[SpanModel], spans: list[Span], chunks: list[list[int]], count: int
) -> list[int]:
    """Greedy tokens from stages run by hand."""
    caches: list[SpanCache] = [
        stage.new_cache(span) for stage, span in zip(stages, spans, strict=True)
    ]

    def lap(tokens: list[int]) -> torch.Tensor:
        value: list[int] | torch.Tensor = tokens
        for stage, cache in zip(stages, caches, strict=True):
            value = stage.run(cache, value)
        assert isinstance(value, torch.Tensor)
        return value

    logits = torch.empty(0)
    for chunk in chunks:
        logits = lap(chunk)
    answer = [int(logits.argmax())]
    while len(answer) < count:
        answer.append(int(lap([answer[-1]]).argmax()))
    return answer


@pytest.mark.parametrize("family", FAMILIES)
def test_three_spans_answer_like_unsharded_transformers(family: str, tmp_path: Path) -> None:
    folder = ModelFolder(build(family, tmp_path))
    spans = [Span(0, 2), Span(2, 5), Span(5, 6)]
    stages = [folder.load(span) for span in spans]
    # The prompt comes in two chunks, and is longer than the sliding windows.
    answer = decode(stages, spans, [PROMPT[:7], PROMPT[7:]], 12)
    assert answer == reference(tmp_path, PROMPT, 12)


def test_two_spans_and_a_single_one_answer_alike(llama: Path) -> None:
    folder = ModelFolder(llama)
    expected = reference(llama, PROMPT, 8)
    for spans in ([Span(0, 6)], [Span(0, 1), Span(1, 6)], [Span(0, 5), Span(5, 6)]):
        assert decode([folder.load(span) for span in spans], spans, [PROMPT], 8) == expected


def test_a_stage_may_run_a_part_of_what_it_holds(llama: Path) -> None:
    folder = ModelFolder(llama)
    stages = [folder.load(Span(0, 4)), folder.load(Span(1, 6)), folder.load(Span(2, 6))]
    used = [Span(0, 2), Span(2, 5), Span(5, 6)]
    assert decode(stages, used, [PROMPT], 8) == reference(llama, PROMPT, 8)


def test_memory_is_the_spans_share(llama: Path) -> None:
    folder = ModelFolder(llama)
    whole = folder.load(Span(0, 6))
    per_layer = sum(p.nbytes for p in find_layers(whole.model, 6)[1][0].parameters())
    embedding = whole.model.get_input_embeddings().weight.nbytes
    small = 64 * 4 * 4  # final norm, rotary frequencies
    first, middle, last = (folder.load(Span(*s)) for s in ((0, 2), (2, 4), (4, 6)))
    assert 2 * per_layer <= middle.nbytes <= 2 * per_layer + small
    assert 2 * per_layer + embedding <= first.nbytes <= 2 * per_layer + embedding + small
    assert 2 * per_layer + embedding <= last.nbytes <= 2 * per_layer + embedding + small
    for stage in (first, middle, last):
        assert not any(parameter.is_meta for parameter in stage.model.parameters())


def test_tied_embeddings_are_one_tensor_at_each_end(tmp_path: Path) -> None:
    folder = ModelFolder(build("llama-tied", tmp_path))
    table = 199 * 32 * 4
    first, middle, last = (folder.load(Span(*s)) for s in ((0, 2), (2, 4), (4, 6)))
    assert first.nbytes - middle.nbytes == table
    assert last.nbytes - middle.nbytes == table


def test_the_cache_is_the_spans_only(llama: Path) -> None:
    stage = ModelFolder(llama).load(Span(0, 3))
    cache = stage.new_cache(Span(0, 3))
    stage.run(cache, PROMPT)
    assert cache.seen == len(PROMPT)
    assert cache.nbytes == 3 * 2 * len(PROMPT) * 2 * 8 * 4  # layers, k+v, tokens, heads, dim, fp32


def test_activations_and_weights_take_the_dtype_asked_for(llama: Path) -> None:
    stage = ModelFolder(llama).load(Span(0, 2), "bfloat16")
    assert stage.dtype is torch.bfloat16
    assert stage.run(stage.new_cache(Span(0, 2)), PROMPT).dtype is torch.bfloat16


def test_a_span_that_is_not_held_is_refused(llama: Path) -> None:
    folder = ModelFolder(llama)
    stage = folder.load(Span(0, 2))
    with pytest.raises(SpanError, match="0:3"):
        stage.new_cache(Span(0, 3))
    with pytest.raises(SpanError, match="0:6"):
        folder.load(Span(3, 7))


def test_models_that_cannot_be_cut_say_why() -> None:
    with pytest.raises(UnsupportedModelError, match="encoder-decoder"):
        check_supported(transformers.T5Config())
    config = transformers.LlamaConfig(**BASE)
    config.num_kv_shared_layers = 2
    with pytest.raises(UnsupportedModelError, match="shares keys"):
        check_supported(config)
