"""What a host has, what is taken, and by whose lease."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Mapping

from lattica.actors.messages import ActorId, LeaseId, Requirements
from lattica.actors.worker_process import WorkerProcess
from lattica.identity.keys import PeerId

CPU, GPU, MEMORY = "CPU", "GPU", "memory"
_DIGITS = 6  # amounts are rounded to a millionth, so that halves add up again


def wanted(requirements: Requirements) -> dict[str, float]:
    """The amounts that requirements take, by resource."""
    amounts = {
        CPU: requirements.cpus,
        GPU: requirements.gpus,
        MEMORY: float(requirements.memory),
        **requirements.resources,
    }
    return {name: amount for name, amount in amounts.items() if amount}


class Ledger:
    """A host's resources and labels."""

    def __init__(self, total: Mapping[str, float], labels: Mapping[str, str]) -> None:
        self.total = dict(total)
        self.available = dict(total)
        self.labels = dict(labels)
        self._gpus = [0.0] * int(self.total.get(GPU, 0.0))  # share taken of each

    def refusal(self, requirements: Requirements) -> tuple[str, bool] | None:
        """Why not, and whether a later time may be better; None: it fits."""
        for name in (CPU, GPU, MEMORY):
            if name in requirements.resources:
                return f"{name} is asked for by a parameter of its own, not in resources", False
        for name, value in requirements.labels.items():
            if self.labels.get(name) != value:
                return f"label {name}={value} is wanted, it is {self.labels.get(name)!r}", False
        for name, amount in wanted(requirements).items():
            if not 0 <= amount < float("inf"):
                return f"{amount} of {name} is no amount", False
            total = self.total.get(name, 0.0)
            if amount > total:
                return f"{_show(amount)} {name} wanted, it has {_show(total)}", False
        for name, amount in wanted(requirements).items():
            free = self.available[name]
            if amount > free:
                return (
                    f"{_show(amount)} {name} wanted, "
                    f"{_show(max(0.0, free))} of {_show(self.total[name])} free",
                    True,
                )
        if len(self._fitting(requirements.gpus)) < _gpu_count(requirements.gpus):
            return f"{_show(requirements.gpus)} GPU wanted, none has so much free", True
        return None

    def take(self, requirements: Requirements) -> tuple[int, ...]:
        """Take what `refusal` found free; the indices of the GPUs to use."""
        for name, amount in wanted(requirements).items():
            self.available[name] = round(self.available[name] - amount, _DIGITS)
        return self._take_gpus(requirements.gpus)

    def lend(self, cpus: float) -> None:
        """Let others use CPUs that are taken, while whoever has them only waits.

        Without it a task that waits for tasks which wait for its CPU would wait for ever.
        """
        self.available[CPU] = round(self.available.get(CPU, 0.0) + cpus, _DIGITS)

    def reclaim(self, cpus: float) -> None:
        """Undo `lend`. For a while more may be taken than there is."""
        self.lend(-cpus)

    def give_back(self, requirements: Requirements, gpus: tuple[int, ...]) -> None:
        """Undo `take`."""
        for name, amount in wanted(requirements).items():
            self.available[name] = round(self.available[name] + amount, _DIGITS)
        share = min(1.0, requirements.gpus)
        for index in gpus:
            self._gpus[index] = round(self._gpus[index] - share, _DIGITS)

    def _take_gpus(self, amount: float) -> tuple[int, ...]:
        if amount <= 0:
            return ()
        chosen = self._fitting(amount)[: _gpu_count(amount)]
        for index in chosen:
            self._gpus[index] = round(self._gpus[index] + min(1.0, amount), _DIGITS)
        return tuple(chosen)

    def _fitting(self, amount: float) -> list[int]:
        """GPUs with room; the fullest first, so that whole ones stay whole."""
        share = min(1.0, amount)
        fitting = (index for index, taken in enumerate(self._gpus) if taken + share <= 1.0)
        return sorted(fitting, key=lambda index: -self._gpus[index])


class Lease:
    """Resources promised to one peer."""

    def __init__(
        self, peer: PeerId, requirements: Requirements, gpus: tuple[int, ...], now: float
    ) -> None:
        self.id: LeaseId = os.urandom(16)
        self.peer = peer
        self.requirements = requirements
        self.gpus = gpus
        self.renewed = now  # when its owner was last heard of; seconds on the host's clock
        self.uses = 0  # runs in progress
        self.is_ended = False
        self.is_lent = False  # its CPUs, while its worker only waits
        self.lock = asyncio.Lock()  # one run at a time
        self.worker: WorkerProcess | None = None  # of a task lease, between runs
        self.actor: ActorId | None = None


def _gpu_count(amount: float) -> int:
    """Below one, a share of one; above, whole ones."""
    return math.ceil(min(amount, 1.0)) if amount < 1 else math.floor(amount)


def _show(amount: float) -> str:
    return f"{amount:g}" if amount < 1e6 else f"{amount / 2**30:.2f} Gi"
