"""The rollout actors as the learner sees them: who is there, who died, who is back."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import lattica
from examples.grpo import Settings
from examples.rollouts.worker import Batch, RolloutWorker, Weights
from lattica.errors import ActorDiedError, ActorUnavailableError, LatticaError

START_TIMEOUT = 90.0  # seconds: three interpreters load torch on two slow cores
SAMPLE_TIMEOUT = 60.0
MAX_RESTARTS = 5


@dataclass
class Member:
    """One actor."""

    name: str  # of its peer
    actor: lattica.ActorHandle
    pid: int = 0
    fell: float = 0.0  # when it was lost, on the monotonic clock; 0: it works
    back: lattica.ObjectRef | None = None  # answers once it has been restarted


@dataclass
class Harvest:
    """What one round of sampling gave."""

    batches: list[Batch] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)  # names


@dataclass(frozen=True)
class Return:
    """A worker that was lost and works again."""

    name: str
    pid: int
    seconds: float


class Fleet:
    """Three workers, one on each peer."""

    def __init__(self, peers: Sequence[lattica.NodeInfo], settings: Settings) -> None:
        """Start a worker on each peer, all at the same time.

        Raises:
            LatticaError: one did not start in time.
        """
        self._settings = settings
        started = time.monotonic()
        self.members = [
            Member(
                peer.name,
                RolloutWorker.options(  # type: ignore[attr-defined]
                    peer=peer.peer, num_cpus=1, max_restarts=MAX_RESTARTS
                ).remote(settings),
            )
            for peer in peers
        ]
        names = [member.actor.whoami.remote() for member in self.members]
        for member, (name, pid) in zip(
            self.members, lattica.get(names, timeout=START_TIMEOUT), strict=True
        ):
            assert name == member.name
            member.pid = pid
        self.start_seconds = time.monotonic() - started

    def ask(self, weights: Weights, seeds: Sequence[int]) -> list[tuple[Member, lattica.ObjectRef]]:
        """Let everyone who is there sample an equal part of the step's problems."""
        share = self._settings.problems // len(self.members)
        return [
            (member, member.actor.sample.remote(weights, share, seed))
            for member, seed in zip(self.members, seeds, strict=True)
            if not member.fell
        ]

    def gather(self, asked: Sequence[tuple[Member, lattica.ObjectRef]]) -> Harvest:
        """Wait for the batches; whoever was lost meanwhile is left out until it is back."""
        harvest = Harvest()
        for member, ref in asked:
            try:
                harvest.batches.append(lattica.get(ref, timeout=SAMPLE_TIMEOUT))
            except (ActorDiedError, ActorUnavailableError):
                member.fell = time.monotonic()
                member.back = member.actor.whoami.remote()
                harvest.lost.append(member.name)
        return harvest

    def welcome(self, *, timeout: float = 0.0) -> list[Return]:
        """Take back those that were restarted; waits for them up to `timeout` seconds."""
        returns = []
        for member in self.members:
            if member.back is None or not lattica.wait([member.back], timeout=timeout)[0]:
                continue
            try:
                _, member.pid = lattica.get(member.back)
            except LatticaError:  # it fell again on the way
                member.back = member.actor.whoami.remote()
                continue
            returns.append(Return(member.name, member.pid, time.monotonic() - member.fell))
            member.fell, member.back = 0.0, None
        return returns

    def kill_one(self, index: int) -> tuple[str, int]:
        """SIGKILL to a worker's process, as a machine out of memory would; name and pid."""
        member = self.members[index % len(self.members)]
        os.kill(member.pid, signal.SIGKILL)
        return member.name, member.pid
