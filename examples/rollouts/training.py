"""The learner: takes rollouts of whoever is there, steps, publishes the weights as blocks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from transformers import AutoModelForCausalLM, AutoTokenizer

import lattica
from examples.grpo import Learner, Settings, join, weights_to_bytes
from examples.measure_model import BUNDLED_MODEL, accuracy
from examples.rollouts.fleet import Fleet
from examples.rollouts.worker import Batch, Weights
from examples.tasks import Problem

KILL_AT = 3  # the step in which a worker dies
BACK_TIMEOUT = 60.0  # seconds that a restarted worker may take at a run's end

Say = Callable[[str], None]


class TrainingError(Exception):
    """No worker is left, or one did not come back."""


@dataclass
class Run:
    """What one seed's run showed. Shares are between 0 and 1."""

    seed: int
    curve: list[tuple[int, float]] = field(default_factory=list)  # step, held-out accuracy
    steps: int = 0
    rollouts: int = 0  # answers sampled
    tokens: int = 0
    weights_moved: int = 0  # bytes, to all workers
    seconds: float = 0.0
    killed: str = ""  # the peer whose worker was killed
    returned: bool = False  # it came back and sampled under the newest weights

    @property
    def before(self) -> float:
        """Held-out accuracy of the bundled model."""
        return self.curve[0][1]

    @property
    def after(self) -> float:
        """Held-out accuracy at the end."""
        return self.curve[-1][1]

    @property
    def rose(self) -> bool:
        """Whether it is better now."""
        return self.after > self.before

    def count(self, batches: Sequence[Batch]) -> None:
        """Add a step's batches."""
        self.steps += 1
        self.rollouts += sum(batch.rollout.rewards.size for batch in batches)
        self.tokens += sum(batch.tokens for batch in batches)
        self.weights_moved += sum(batch.fetched for batch in batches)


class Trainer:
    """One seed's run: a fresh copy of the bundled model."""

    def __init__(
        self,
        fleet: Fleet,
        settings: Settings,
        seed: int,
        held_out: Sequence[Problem],
        *,
        every: int,
        say: Say,
    ) -> None:
        """`held_out` is measured every so many steps."""
        self._fleet = fleet
        self._settings = settings
        self._held_out = held_out
        self._every = every
        self._say = say
        self._rng = Random(seed)
        self._model = AutoModelForCausalLM.from_pretrained(BUNDLED_MODEL)
        self._tokenizer = AutoTokenizer.from_pretrained(BUNDLED_MODEL)
        self._learner = Learner(self._model, settings)
        self._weights: Weights | None = None
        self.run = Run(seed)

    def train(self, *, kill: int) -> Run:
        """All steps; in one of them worker `kill` loses its process.

        Raises:
            TrainingError: nobody is left to sample, or the killed one did not come back.
        """
        started = time.monotonic()
        for step in range(self._settings.steps):
            self._step(step, kill if step == min(KILL_AT, self._settings.steps - 1) else None)
        self._await_return()
        self._measure(self._settings.steps)
        if self._weights is not None:
            lattica.remove_blocks(self._weights.blocks)
        self.run.seconds = time.monotonic() - started
        return self.run

    def _step(self, step: int, kill: int | None) -> None:
        started = time.monotonic()
        weights = self._publish()
        self._welcome()
        asked = self._fleet.ask(weights, self._seeds())
        if kill is not None:
            name, pid = self._fleet.kill_one(kill)
            self.run.killed = name
            self._say(f"step {step + 1}: kill -9 to process {pid}, the worker on {name}")
        if step % self._every == 0:
            self._measure(step)  # while they sample
        harvest = self._fleet.gather(asked)
        for name in harvest.lost:
            self._say(
                f"step {step + 1}: the worker on {name} is lost; on with the rollouts of "
                f"the other {len(harvest.batches)}"
            )
        if not harvest.batches:
            raise TrainingError("no worker is left to sample")
        report = self._learner.step(join([batch.rollout for batch in harvest.batches]))
        self.run.count(harvest.batches)
        spent = time.monotonic() - started
        moved = sum(batch.fetched for batch in harvest.batches)
        tokens = sum(batch.tokens for batch in harvest.batches)
        if (step + 1) % self._every == 0:
            self._say(
                f"step {step + 1:>2}: reward {report.reward:.2f}, {tokens / spent:,.0f} tokens/s, "
                f"{moved / 1e6:.1f} MB of weights fetched, {spent:.2f} s"
            )

    def _publish(self) -> Weights:
        """Put the learner's weights into the mesh; only their id goes to the workers."""
        before = self._weights
        blocks = lattica.put_blocks(weights_to_bytes(self._model))
        self._weights = Weights(self._learner.version, blocks)
        if before is not None and before.blocks != blocks:
            lattica.remove_blocks(before.blocks)
        return self._weights

    def _seeds(self) -> list[int]:
        return [self._rng.getrandbits(32) for _ in self._fleet.members]

    def _measure(self, step: int) -> None:
        self.run.curve.append((step, accuracy(self._model, self._tokenizer, self._held_out)))
        self._say(f"step {step:>2}: held-out accuracy {self.run.after:.1%}")

    def _welcome(self, timeout: float = 0.0) -> None:
        for back in self._fleet.welcome(timeout=timeout):
            self.run.returned |= back.name == self.run.killed
            self._say(
                f"the worker on {back.name} is back as process {back.pid} after "
                f"{back.seconds:.1f} s, and takes the newest weights"
            )

    def _await_return(self) -> None:
        """A run too short for the restart waits for it, and sees the worker sample again."""
        if not self.run.killed:
            return
        weights = self._publish()
        everyone = len(self._fleet.members)
        for _ in range(2):  # its loss may show only when it is asked again
            self._welcome(timeout=BACK_TIMEOUT)
            harvest = self._fleet.gather(self._fleet.ask(weights, self._seeds()))
            if self.run.returned and len(harvest.batches) == everyone:
                break
        else:
            raise TrainingError(f"the worker on {self.run.killed} did not come back")
        self._say(
            f"all {len(harvest.batches)} workers sampled under version {weights.version} at the end"
        )
