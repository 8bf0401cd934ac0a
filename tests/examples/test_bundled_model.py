"""The committed model folder: ordinary, small, and able to do what its card says."""

from pathlib import Path
from random import Random

import pytest
import torch
from safetensors import safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from examples.grpo import Settings, draw_sums, sample_rollout
from examples.measure_model import BUNDLED_MODEL, accuracy, answers, held_out_problems
from examples.tasks import SKILLS, draw
from examples.tokenizer import ASSISTANT, CHARACTERS, END, USER, dialogue_encoder, encode_prompt

SIZE_LIMIT = 4_000_000
SAMPLE = 60


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(BUNDLED_MODEL)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(BUNDLED_MODEL)


def test_the_weights_fit_the_size_limit() -> None:
    assert (BUNDLED_MODEL / "model.safetensors").stat().st_size <= SIZE_LIMIT


def test_there_are_layers_enough_to_share_out(model: PreTrainedModel) -> None:
    assert model.config.num_hidden_layers >= 8


def test_the_weights_are_float32_and_stored_once(model: PreTrainedModel) -> None:
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert model.config.tie_word_embeddings
    with safe_open(BUNDLED_MODEL / "model.safetensors", "pt") as stored:
        assert "lm_head.weight" not in stored.keys()  # noqa: SIM118


def test_the_folder_is_an_ordinary_one() -> None:
    names = {path.name for path in Path(BUNDLED_MODEL).iterdir()}
    assert names >= {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "README.md",
    }


def test_the_tokenizer_is_a_fast_one(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.is_fast
    assert tokenizer.eos_token == END


def test_every_printable_character_survives_a_round_trip(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    for text in (CHARACTERS, "  two  spaces , and a comma ", "What is 34 + 57?\n"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_are_one_token_each_and_can_be_left_out(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    tokens = tokenizer.encode(f"{USER}hi{ASSISTANT}91{END}")
    assert len(tokens) == 7
    assert tokenizer.decode(tokens, skip_special_tokens=True) == "hi91"


def test_a_foreign_character_is_unknown_and_not_an_error(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    assert tokenizer.encode("é") == [tokenizer.unk_token_id]


def test_the_chat_template_renders_a_conversation(tokenizer: PreTrainedTokenizerBase) -> None:
    messages = [
        {"role": "system", "content": "ignored"},
        {"role": "user", "content": " 34+57= "},
        {"role": "assistant", "content": "91"},
        {"role": "user", "content": "Sort: 2 1"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == f"{USER}34+57={ASSISTANT}91{END}{USER}Sort: 2 1{ASSISTANT}"


@pytest.mark.parametrize("skill", SKILLS)
def test_training_saw_the_tokens_that_the_chat_template_gives(
    skill: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    problem = draw(skill, Random(0))
    tokens, prompt = dialogue_encoder(tokenizer)(problem.prompt, problem.answer)
    assert tokens[:prompt] == encode_prompt(tokenizer, problem.prompt)
    assert tokenizer.decode(tokens[prompt:]) == problem.answer + END


@pytest.mark.parametrize(
    ("skill", "least", "most"),
    [
        ("sum2", 0.92, 1.0),
        ("sum3", 0.2, 0.7),
        ("count", 0.9, 1.0),
        ("count_on", 0.9, 1.0),
        ("sort_digits", 0.9, 1.0),
        ("sort_words", 0.9, 1.0),
    ],
)
def test_a_small_sample_agrees_with_the_model_card(
    skill: str,
    least: float,
    most: float,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    problems = held_out_problems(skill, SAMPLE, seed=2)
    assert least <= accuracy(model, tokenizer, problems) <= most


def test_some_answers_are_long_enough_to_be_interrupted(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    text = answers(model, tokenizer, ["Count from 3 to 40."])[0]
    assert text == " ".join(str(number) for number in range(3, 41))
    assert len(tokenizer.encode(text)) > 60


def test_stock_generate_gives_the_same_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    prompts = ["34+57=", "Sort: pear fig apple", "Count on from 7."]
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    batch = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**batch)
    stock = tokenizer.batch_decode(
        output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
    )
    assert stock == answers(model, tokenizer, prompts)


def test_sampled_three_digit_sums_are_right_and_wrong_by_turns(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    problems = draw_sums(Random(0), 32)
    rollout = sample_rollout(model, tokenizer, problems, Settings(group=16), seed=0)
    share = rollout.rewards.mean(axis=1)
    assert 0.1 < share.mean() < 0.7
    assert ((share > 0) & (share < 1)).mean() > 0.4
