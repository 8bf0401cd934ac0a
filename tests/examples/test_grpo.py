"""The learning core: sampling, advantages, the policy step and what travels."""

from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from examples.generation import answer_greedily, complete
from examples.grpo import (
    Learner,
    Rollout,
    Settings,
    answer_log_probs,
    draw_sums,
    group_advantages,
    held_out_sums,
    join,
    load_weights,
    sample_rollout,
    weights_to_bytes,
)
from examples.tasks import split_of
from examples.tokenizer import build_tokenizer

SETTINGS = Settings(problems=3, group=4, longest_answer=5)
END = 1


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(64)


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.3,
        eos_token_id=END,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def rollout_of(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int = 0, version: int = 0
) -> Rollout:
    problems = draw_sums(Random(seed), SETTINGS.problems)
    return sample_rollout(model, tokenizer, problems, SETTINGS, seed=seed, version=version)


def with_rewards(rollout: Rollout, right: np.ndarray) -> Rollout:
    return replace(rollout, rewards=right.astype(np.float32))


def test_greedy_answers_equal_those_of_stock_generate(model: LlamaForCausalLM) -> None:
    prompts = [[2, 9, 10, 3], [2, 20, 3], [2, 7, 8, 3]]
    ours = answer_greedily(model, prompts, end=END, longest=8)
    for prompt, answer in zip(prompts, ours, strict=True):
        stock = model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)
        expected = stock[0, len(prompt) :].tolist()
        assert answer == [token for token in expected if token != END]


def test_copies_of_a_prompt_stand_side_by_side(model: LlamaForCausalLM) -> None:
    prompts = torch.tensor([[2, 9, 3], [2, 11, 3]])
    once = complete(model, prompts, end=END, longest=4)
    thrice = complete(model, prompts, end=END, longest=4, copies=3)
    assert torch.equal(thrice.tokens, once.tokens.repeat_interleave(3, dim=0))


def test_after_the_end_an_answer_is_masked(model: LlamaForCausalLM) -> None:
    prompts = torch.tensor([[2, 9, 3]])
    wanted = complete(model, prompts, end=END, longest=4).tokens[0]
    end = int(wanted[1])
    first = int((wanted == end).nonzero()[0])
    stopped = complete(model, prompts, end=end, longest=4)
    assert stopped.tokens.shape[1] == first + 1
    assert stopped.mask[0].all()


def test_the_same_seed_samples_the_same_rollout(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    first, again = rollout_of(model, tokenizer), rollout_of(model, tokenizer)
    assert np.array_equal(first.answers, again.answers)
    assert not np.array_equal(first.answers, rollout_of(model, tokenizer, seed=1).answers)


def test_a_rollout_is_plain_numpy_of_the_stated_shapes(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    rollout = rollout_of(model, tokenizer, version=7)
    width = rollout.answers.shape[2]
    assert rollout.version == 7
    assert rollout.prompts.shape == (3, 18)
    assert rollout.answers.shape == rollout.log_probs.shape == rollout.mask.shape == (3, 4, width)
    assert rollout.rewards.shape == (3, 4)
    assert rollout.answers.dtype == np.int64
    assert rollout.log_probs.dtype == rollout.rewards.dtype == np.float32
    assert rollout.mask.dtype == np.bool_


def test_prompts_of_several_lengths_are_refused(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    problems = draw_sums(Random(0), 2)
    problems[0] = replace(problems[0], prompt="1+1")
    with pytest.raises(ValueError, match="one length"):
        sample_rollout(model, tokenizer, problems, SETTINGS, seed=0)


def test_log_probs_with_gradient_equal_those_of_sampling(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    rollout = rollout_of(model, tokenizer)
    again = answer_log_probs(
        model, torch.from_numpy(rollout.prompts), torch.from_numpy(rollout.answers), 1.0
    )
    assert again.requires_grad
    ours, sampled = again.detach().numpy()[rollout.mask], rollout.log_probs[rollout.mask]
    np.testing.assert_allclose(ours, sampled, rtol=1e-3, atol=1e-4)


def test_answers_of_one_token_have_log_probs_too(model: LlamaForCausalLM) -> None:
    prompts, answers = torch.tensor([[2, 9, 3]]), torch.tensor([[[5], [6]]])
    whole = model(input_ids=prompts).logits[0, -1].log_softmax(-1)
    ours = answer_log_probs(model, prompts, answers, 1.0)
    torch.testing.assert_close(ours[0, :, 0], whole[[5, 6]])


def test_advantages_are_centred_and_scaled_by_group() -> None:
    rewards = np.array([[1, 0, 0, 0], [1, 1, 0, 0]], dtype=np.float32)
    advantages = group_advantages(rewards)
    np.testing.assert_allclose(advantages.mean(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(advantages[1], [1, 1, -1, -1], rtol=1e-3)
    assert advantages[0, 0] > 1 > 0 > advantages[0, 1]


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_a_group_that_agrees_teaches_nothing(score: float) -> None:
    assert not group_advantages(np.full((2, 4), score, dtype=np.float32)).any()


def test_a_step_makes_rewarded_answers_likelier(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    right = np.array([[1, 0, 0, 0]] * 3)
    rollout = with_rewards(rollout_of(model, tokenizer), right)
    learner = Learner(model, replace(SETTINGS, learning_rate=1e-2))
    report = learner.step(rollout)
    after = answer_log_probs(
        model, torch.from_numpy(rollout.prompts), torch.from_numpy(rollout.answers), 1.0
    )
    gained = ((after.detach().numpy() - rollout.log_probs) * rollout.mask).sum(axis=2)
    assert gained[:, 0].mean() > gained[:, 1:].mean()
    assert report.reward == pytest.approx(0.25)
    assert report.useful == 1.0
    assert learner.version == 1


def test_a_step_without_disagreement_changes_no_weight(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    before = weights_to_bytes(model)
    learner = Learner(model, SETTINGS)
    report = learner.step(with_rewards(rollout_of(model, tokenizer), np.zeros((3, 4))))
    assert report.useful == 0.0
    assert weights_to_bytes(model) == before
    assert learner.version == 1


def test_joined_rollouts_keep_their_rows(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    first = rollout_of(model, tokenizer, seed=0, version=4)
    second = rollout_of(model, tokenizer, seed=1, version=3)
    short = replace(
        second,
        answers=second.answers[:, :, :2],
        log_probs=second.log_probs[:, :, :2],
        mask=second.mask[:, :, :2],
    )
    joined = join([first, short])
    assert joined.version == 3
    assert joined.answers.shape == (6, 4, first.answers.shape[2])
    assert np.array_equal(joined.answers[:3], first.answers)
    assert np.array_equal(joined.log_probs[3:, :, :2], short.log_probs)
    assert not joined.mask[3:, :, 2:].any()


def test_joining_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no rollout"):
        join([])


def test_weights_travel_as_bytes(model: LlamaForCausalLM) -> None:
    other = LlamaForCausalLM(model.config).eval()
    load_weights(other, weights_to_bytes(model))
    tokens = torch.tensor([[2, 9, 3]])
    assert torch.equal(other(input_ids=tokens).logits, model(input_ids=tokens).logits)


def test_weights_of_another_model_are_refused(model: LlamaForCausalLM) -> None:
    config = LlamaConfig(**{**model.config.to_dict(), "hidden_size": 8, "head_dim": 4})
    with pytest.raises(ValueError, match="wrong shape"):
        load_weights(model, weights_to_bytes(LlamaForCausalLM(config)))
    config = LlamaConfig(**{**model.config.to_dict(), "num_hidden_layers": 1})
    with pytest.raises(ValueError, match="another model"):
        load_weights(model, weights_to_bytes(LlamaForCausalLM(config)))


def test_problems_to_learn_from_and_to_measure_by_do_not_meet() -> None:
    assert {split_of(problem) for problem in draw_sums(Random(0), 50)} == {"train"}
    assert {split_of(problem) for problem in held_out_sums(50)} == {"held-out"}
    assert held_out_sums(5) == held_out_sums(5)
