"""Which peers can run something, and which of them first. No input or output here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from lattica.actors.messages import NodeInfo, Requirements
from lattica.identity.keys import PeerId

EPSILON = 1e-6  # fractions of a CPU add up inexactly
UNKNOWN_RTT = 0.05  # seconds, for peers without a link
RTT_WEIGHT = 2.0  # a peer 100 ms away ranks like a near one that is 20 % busier


class Usage(msgspec.Struct):
    """What this peer's own leases take of a node; published figures lag behind it."""

    leases: int = 0
    taken: dict[str, float] = {}

    def add(self, needs: Mapping[str, float], sign: int) -> None:
        """Count a lease, or with `sign` -1 its end."""
        self.leases += sign
        for name, amount in needs.items():
            self.taken[name] = max(0.0, self.taken.get(name, 0.0) + sign * amount)


def needs(requirements: Requirements) -> dict[str, float]:
    """Amounts by resource name, as nodes list them; zeros left out."""
    amounts = {
        "CPU": requirements.cpus,
        "GPU": requirements.gpus,
        "memory": float(requirements.memory),
        **requirements.resources,
    }
    return {name: amount for name, amount in amounts.items() if amount > 0}


def could_run(node: NodeInfo, requirements: Requirements) -> bool:
    """Whether a node satisfies the requirements when nothing else runs there."""
    if requirements.peer is not None:
        if node.peer != requirements.peer:
            return False
    elif not requirements.resources and node.total.get("CPU", 0.0) <= 0:
        return False  # a driver that offers nothing is no place for work that asks for little
    if any(node.labels.get(name) != label for name, label in requirements.labels.items()):
        return False
    return all(
        node.total.get(name, 0.0) + EPSILON >= amount
        for name, amount in needs(requirements).items()
    )


def has_room(node: NodeInfo, requirements: Requirements, usage: Usage) -> bool:
    """Whether a node seems to have what is asked for free now."""
    return all(
        _free(node, name, usage) + EPSILON >= amount for name, amount in needs(requirements).items()
    )


def rank(
    nodes: Iterable[NodeInfo],
    requirements: Requirements,
    usage: Mapping[PeerId, Usage],
    rtt: Mapping[PeerId, float],
    turn: int = 0,
) -> list[NodeInfo]:
    """The nodes that could run it, best first: room, then low load and RTT (seconds).

    `turn` rotates among equals, so that a burst spreads.
    """
    fitting = sorted(
        (node for node in nodes if could_run(node, requirements)), key=lambda node: node.peer
    )
    if not fitting:
        return []
    turn %= len(fitting)
    rotated = fitting[turn:] + fitting[:turn]
    none = Usage()

    def score(node: NodeInfo) -> tuple[bool, float]:
        mine = usage.get(node.peer, none)
        distance = rtt.get(node.peer, UNKNOWN_RTT)
        busy = _utilization(node, requirements, mine)
        return not has_room(node, requirements, mine), busy + RTT_WEIGHT * distance

    return sorted(rotated, key=score)


def describe(requirements: Requirements) -> str:
    """The requirements for people: `CPU: 2, tpu: 1, label zone=a`."""
    parts = [f"{name}: {amount:g}" for name, amount in needs(requirements).items()]
    parts += [f"label {name}={label}" for name, label in requirements.labels.items()]
    if requirements.peer is not None:
        parts.append(f"peer {requirements.peer.short}")
    return ", ".join(parts) or "a peer that offers CPUs"


def describe_offers(nodes: Sequence[NodeInfo]) -> str:
    """What there is, for people."""
    if not nodes:
        return "no peer offers anything"
    lines = []
    for node in nodes:
        offer = ", ".join(f"{name}: {amount:g}" for name, amount in sorted(node.total.items()))
        labels = ", ".join(f"{name}={label}" for name, label in sorted(node.labels.items()))
        suffix = f" (labels {labels})" if labels else ""
        lines.append(f"{node.name or node.peer.short} offers {offer or 'nothing'}{suffix}")
    return "; ".join(lines)


def _free(node: NodeInfo, name: str, usage: Usage) -> float:
    total = node.total.get(name, 0.0)
    return min(node.available.get(name, total), total - usage.taken.get(name, 0.0))


def _utilization(node: NodeInfo, requirements: Requirements, usage: Usage) -> float:
    """The busiest of the resources in question, from 0 to 1 and beyond, after placing."""
    asked = needs(requirements)
    busiest = 0.0
    for name in {"CPU", *asked}:
        total = node.total.get(name, 0.0)
        if total > 0:
            used = total - _free(node, name, usage) + asked.get(name, 0.0)
            busiest = max(busiest, used / total)
    # Work that asks for nothing must spread too: count it as a tenth of a CPU.
    return busiest + 0.1 * usage.leases / max(1.0, node.total.get("CPU", 1.0)) + 0.01 * node.load
