"""The script that makes the model: seeded, and true to what it says it trains on."""

from pathlib import Path
from random import Random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from examples import train_model
from examples.grpo import weights_to_bytes
from examples.tokenizer import END, PAD, build_tokenizer, dialogue_encoder, token_id
from examples.train_model import (
    IGNORED,
    Stage,
    add_gradient,
    answer_loss,
    build_model,
    draw_rows,
    make_batch,
    train,
)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(64)


def test_targets_are_answers_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    encode, pad = dialogue_encoder(tokenizer), token_id(tokenizer, PAD)
    rows = draw_rows({"sum2": 8, "sort_digits": 8}, Random(0), encode)
    inputs, targets = make_batch(rows, pad)
    assert inputs.shape == targets.shape
    for given, wanted in zip(inputs, targets, strict=True):
        prompt, answer = tokenizer.decode(given[given != pad]).split("<|assistant|>")
        assert tokenizer.decode(wanted[wanted != IGNORED]) == answer + END
        assert prompt.startswith("<|user|>")


def test_a_model_is_made_of_its_seed(tokenizer: PreTrainedTokenizerFast) -> None:
    first = weights_to_bytes(build_model(tokenizer, 0))
    assert first == weights_to_bytes(build_model(tokenizer, 0))
    assert first != weights_to_bytes(build_model(tokenizer, 1))


def test_the_loss_is_a_sum_over_answer_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    encode, pad = dialogue_encoder(tokenizer), token_id(tokenizer, PAD)
    batch = make_batch(draw_rows({"sum2": 4}, Random(0), encode), pad)
    model = build_model(tokenizer, 0)
    logits = model(input_ids=batch[0]).logits
    plain = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch[1].flatten(), ignore_index=IGNORED, reduction="sum"
    )
    torch.testing.assert_close(answer_loss(model, batch), plain)


def test_halves_add_up_to_the_gradient_of_the_whole(tokenizer: PreTrainedTokenizerFast) -> None:
    encode, pad = dialogue_encoder(tokenizer), token_id(tokenizer, PAD)
    rows = draw_rows({"sum2": 3, "sort_words": 4}, Random(0), encode)
    model = build_model(tokenizer, 0)
    loss = add_gradient(model, rows, pad)
    halves = model.model.embed_tokens.weight.grad.clone()
    model.zero_grad()
    batch = make_batch(rows, pad)
    whole = answer_loss(model, batch) / (batch[1] != IGNORED).sum()
    whole.backward()
    assert loss == pytest.approx(whole.item(), rel=1e-4)
    torch.testing.assert_close(model.model.embed_tokens.weight.grad, halves)


def test_a_short_training_can_be_repeated_and_loaded(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(2, 1, 1e-3, 1, {"sums": {"sum2": 4}})
    monkeypatch.setattr(train_model, "PROBE_PROBLEMS", 2)
    monkeypatch.setattr(train_model, "report", lambda *_: "")
    made = []
    for _ in range(2):
        model = build_model(tokenizer, 0)
        train(model, tokenizer, tmp_path, seed=0, stage=stage)
        made.append(weights_to_bytes(model))
    assert made[0] == made[1]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert weights_to_bytes(loaded) == made[0]
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == tokenizer.chat_template
