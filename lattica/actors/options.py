"""What `@lattica.remote(...)` and `.options(...)` accept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from lattica.actors.messages import Requirements
from lattica.errors import IdentityError
from lattica.identity.keys import PeerId

NumReturns = int | Literal["streaming"] | None


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Options of a task or actor, by Ray's names; None means not given."""

    num_cpus: float | None = None  # a task takes 1, an actor 0
    num_gpus: float = 0.0
    memory: int = 0  # bytes
    resources: Mapping[str, float] = {}
    labels: Mapping[str, str] = {}
    peer: PeerId | None = None
    name: str = ""
    num_returns: NumReturns = None
    max_retries: int = 0  # of tasks, after system failures; -1: without end
    max_restarts: int = 0  # of actors; -1: without end
    max_task_retries: int = 0
    max_concurrency: int | None = None

    def requirements(self, *, cpus: float) -> Requirements:
        """What a host must offer; `cpus` is the default number."""
        return Requirements(
            cpus=cpus if self.num_cpus is None else float(self.num_cpus),
            gpus=float(self.num_gpus),
            memory=int(self.memory),
            resources={name: float(amount) for name, amount in self.resources.items()},
            labels=dict(self.labels),
            peer=self.peer,
        )


TASK = frozenset(
    {"num_cpus", "num_gpus", "memory", "resources", "labels", "peer", "name", "num_returns"}
    | {"max_retries"}
)
ACTOR = frozenset(
    {"num_cpus", "num_gpus", "memory", "resources", "labels", "peer", "name"}
    | {"max_restarts", "max_task_retries", "max_concurrency"}
)
METHOD = frozenset({"num_returns", "name"})


def parse(base: Options, given: Mapping[str, Any], allowed: frozenset[str], what: str) -> Options:
    """`base` with the options `given`.

    Raises:
        TypeError: an option that `what` does not have, or a value of the wrong type.
        ValueError: a value out of range.
    """
    for option in given:
        if option not in allowed:
            raise TypeError(f"{what} has no option {option!r}; it has {', '.join(sorted(allowed))}")
    checked = {option: _check(option, value) for option, value in given.items()}
    return msgspec.structs.replace(base, **checked)


def _check(option: str, value: Any) -> Any:
    match option:
        case "num_cpus" | "num_gpus":
            return None if value is None and option == "num_cpus" else _amount(option, value)
        case "memory":
            return int(_amount(option, value))
        case "resources":
            amounts = _mapping(option, value)
            for name in amounts:
                if name in ("CPU", "GPU", "memory"):
                    raise ValueError(
                        f"resources names {name!r}; use num_cpus, num_gpus or memory instead"
                    )
            return {name: _amount(f"resources[{name!r}]", part) for name, part in amounts.items()}
        case "labels":
            labels = _mapping(option, value)
            for name, label in labels.items():
                if not isinstance(label, str):
                    raise TypeError(f"labels[{name!r}] is a string, not {label!r}")
            return labels
        case "peer":
            return _peer(value)
        case "name":
            if value is not None and not isinstance(value, str):
                raise TypeError(f"name is a string, not {value!r}")
            return value or ""
        case "num_returns":
            if value in (None, "streaming"):
                return value
            return _count(option, value, least=0)
        case "max_concurrency":
            return _count(option, value, least=1)
    return _count(option, value, least=-1)


def _amount(option: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{option} is a number, not {value!r}")
    if value < 0 or not math.isfinite(value):
        raise ValueError(f"{option} is a finite number from 0 on, not {value!r}")
    return float(value)


def _count(option: str, value: Any, *, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{option} is a whole number, not {value!r}")
    if value < least:
        raise ValueError(f"{option} is a whole number from {least} on, not {value}")
    return value


def _mapping(option: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise TypeError(f"{option} is a dict with names as keys, not {value!r}")
    return dict(value)


def _peer(value: Any) -> PeerId | None:
    if value is None or isinstance(value, PeerId):
        return value
    if isinstance(value, str):
        try:
            return PeerId.parse(value)
        except IdentityError as error:
            raise ValueError(f"peer: {error}") from None
    raise TypeError(f"peer is a PeerId or its text, not {value!r}")
