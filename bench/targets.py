"""What each measure is to reach, for each engine."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

ENGINES = ("aioquic", "qh3")
DEFAULT_ENGINE = ENGINES[0]


class Target(msgspec.Struct, frozen=True):
    """A bound for a row's ratio, or for its value where it has no ratio."""

    limit: float
    at_least: bool

    def met(self, figure: float) -> bool:
        """Whether `figure` keeps the bound."""
        return figure >= self.limit if self.at_least else figure <= self.limit

    def share(self, figure: float) -> float:
        """How far `figure` is, 1.0 being just there and more being better."""
        if self.at_least:
            return figure / self.limit
        return self.limit / figure if figure else float("inf")

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.limit:g}"


def _at_least(aioquic: float, qh3: float | None = None) -> tuple[Target, Target]:
    return Target(aioquic, True), Target(aioquic if qh3 is None else qh3, True)


def _at_most(aioquic: float, qh3: float | None = None) -> tuple[Target, Target]:
    return Target(aioquic, False), Target(aioquic if qh3 is None else qh3, False)


# In the order in which they are shown. A measure of several figures has a row for each.
TARGETS: dict[str, tuple[Target, Target]] = {
    "echo128_c64": _at_least(10, 20),
    "echo128_c64_floor": _at_least(0.25, 0.5),
    "echo128_c1_p50": _at_most(0.6, 0.35),
    "echo128_c1024": _at_least(1.0),
    "upload256k_c8": _at_least(1.2, 2.5),
    "echo256k_c8": _at_least(1.0, 2.0),
    "bulk_quic": _at_least(0.5, 1.3),
    "bulk_quic_1452": _at_least(0.08, 0.5),
    "bulk_tcp": _at_least(0.4, 0.8),
    "items128": _at_least(5, 8),
    "mixed_p50": _at_most(4.0),  # milliseconds
    "mixed_bulk": _at_least(0.7),  # share of its own rate that bulk keeps
    "wan_clean": _at_least(0.9),
    "wan_loss1": _at_least(0.7),
    "wan_echo128_c256": _at_least(0.9),
    "wan_echo256k_c16": _at_least(0.85),
    "upload64m_memory": _at_most(1.5),
    "upload64m_memory_file": _at_most(0.1),
    "idle_links": _at_most(120.0),  # KB a link
    "idle_links_cpu": _at_most(5.0),  # percent of a core, for 1,000
    "connect": _at_most(1.0),
    "dead_peer": _at_most(0.5),  # seconds; killed
    "dead_peer_silent": _at_most(2.0),
    "dead_peer_frozen": _at_most(5.0),
}


# Measures that no engine makes a difference to.
OTHERS: dict[str, Target] = {
    "dht_recall": Target(0.995, True),
    "dht_closest": Target(0.99, True),
    "dht_steered": Target(0.995, True),
    "dht_rounds_10": Target(1.2, False),  # of log2(n) / 2
    "dht_rounds_100": Target(1.2, False),
    "dht_rounds_1000": Target(1.2, False),
    "dht_rounds_10000": Target(1.2, False),
    "dht_get": Target(0.5, False),  # of hivemind's time
    "dht_store": Target(0.5, False),
    "dht_writers_lost": Target(0.0, False),
    "dht_idle": Target(100.0, False),  # bytes/s
    "crdt_sync": Target(3.0, False),  # of the missing updates
    "crdt_apply": Target(0.25, True),
    "crdt_gossip": Target(20.0, False),  # milliseconds
    "crdt_open": Target(0.5, False),  # seconds
    "crdt_open_share": Target(0.1, False),
    "crdt_diverged": Target(0.0, False),
    "crdt_lost": Target(0.0, False),
    "blocks_loopback": Target(0.7, True),
    "blocks_swarm": Target(2.2, False),  # times one copy over the seeder's link
    "blocks_providers": Target(3.4, True),
    "blocks_version": Target(1.02, False),
    "blocks_resume": Target(1.0, False),  # blocks
    "blocks_memory": Target(64.0, False),  # MiB
}


def target_of(measure: str, engine: str) -> Target | None:
    """The bound of a measure for an engine; None for measures without one."""
    if measure in OTHERS:
        return OTHERS[measure]
    both = TARGETS.get(measure)
    if both is None or engine not in ENGINES:
        return None
    return both[ENGINES.index(engine)]


def choose(words: Sequence[str], part: str) -> list[str]:
    """The measures of a part of `OTHERS` that `words` name or begin; all without words.

    Raises:
        SystemExit: a word names none.
    """
    known = [measure for measure in OTHERS if measure.startswith(part)]
    found: set[str] = set()
    for word in words or known:
        chosen = {word} if word in known else {each for each in known if each.startswith(word)}
        if not chosen:
            raise SystemExit(f"no measure begins with {word!r}; there are: {', '.join(known)}")
        found |= chosen
    return [measure for measure in known if measure in found]
