"""The draw depends on logits, seed and position only."""

from __future__ import annotations

import torch

from serving.sampling import Sampling, sample

LOGITS = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))


def draws(sampling: Sampling, count: int = 2000) -> list[float]:
    """Frequencies of the four tokens over positions."""
    found = [sample(LOGITS, sampling, position) for position in range(count)]
    return [found.count(token) / count for token in range(4)]


def test_greedy_takes_the_likeliest() -> None:
    assert sample(LOGITS, Sampling(), 3) == 0
    assert sample(LOGITS, Sampling(temperature=5.0, top_k=1, seed=4), 3) == 0


def test_the_same_seed_and_position_draw_the_same_token() -> None:
    logits = torch.randn(500, generator=torch.Generator().manual_seed(1))
    sampling = Sampling(temperature=1.0, seed=11)
    first = [sample(logits, sampling, position) for position in range(50)]
    again = [sample(logits + 1e-6, sampling, position) for position in reversed(range(50))]
    assert first == again[::-1]
    other = [sample(logits, Sampling(temperature=1.0, seed=12), p) for p in range(50)]
    assert first != other


def test_frequencies_follow_the_probabilities() -> None:
    for found, wanted in zip(draws(Sampling(1.0, seed=3)), (0.5, 0.3, 0.15, 0.05), strict=True):
        assert abs(found - wanted) < 0.04


def test_temperature_sharpens() -> None:
    assert draws(Sampling(0.25, seed=3))[0] > 0.8


def test_top_p_and_top_k_cut_the_tail() -> None:
    assert draws(Sampling(1.0, top_p=0.7, seed=3))[2:] == [0.0, 0.0]
    assert draws(Sampling(1.0, top_k=2, seed=3))[2:] == [0.0, 0.0]
    assert draws(Sampling(1.0, top_p=0.01, seed=3))[0] == 1.0
    kept = draws(Sampling(1.0, top_k=3, top_p=0.9, seed=3))
    assert kept[3] == 0.0
    assert min(kept[:3]) > 0.0
