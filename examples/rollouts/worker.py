"""The rollout actor: takes the newest weights from the mesh, samples, scores, returns."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from random import Random

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

import lattica
from examples.grpo import Rollout, Settings, draw_sums, load_weights, sample_rollout
from examples.measure_model import BUNDLED_MODEL

FETCH_TIMEOUT = 30.0  # seconds for weights of a few megabytes


@dataclass(frozen=True)
class Weights:
    """A version of the policy: the id of its blocks, not its bytes."""

    version: int
    blocks: str


@dataclass(frozen=True)
class Batch:
    """What one call gives: a rollout, and what it took."""

    rollout: Rollout
    fetched: int  # bytes of weights; 0 if the worker had that version
    fetch_seconds: float
    sample_seconds: float

    @property
    def tokens(self) -> int:
        """Sampled tokens that count."""
        return int(self.rollout.mask.sum())


@lattica.remote
class RolloutWorker:
    """Samples groups of answers to sums. One thread: its machine has other work too."""

    def __init__(self, settings: Settings) -> None:
        torch.set_num_threads(1)
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        self._settings = settings
        self._model = AutoModelForCausalLM.from_pretrained(BUNDLED_MODEL)
        self._tokenizer = AutoTokenizer.from_pretrained(BUNDLED_MODEL)
        self._held = ""  # the blocks whose weights are in the model

    def whoami(self) -> tuple[str, int]:
        """The peer's name and this process's id."""
        return lattica.get_runtime_context().peer_name, os.getpid()

    def sample(self, weights: Weights, problems: int, seed: int) -> Batch:
        """Groups of scored answers to as many problems, sampled under `weights`."""
        started = time.monotonic()
        fetched = self._take(weights)
        ready = time.monotonic()
        rollout = sample_rollout(
            self._model,
            self._tokenizer,
            draw_sums(Random(seed), problems),
            self._settings,
            seed=seed,
            version=weights.version,
        )
        return Batch(rollout, fetched, ready - started, time.monotonic() - ready)

    def _take(self, weights: Weights) -> int:
        if weights.blocks == self._held:
            return 0
        data = lattica.fetch_blocks(weights.blocks, timeout=FETCH_TIMEOUT)
        load_weights(self._model, data)
        if self._held:
            lattica.remove_blocks(self._held)  # nobody asks for the version before any more
        self._held = weights.blocks
        return len(data)
