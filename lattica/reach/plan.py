"""How two peers punch through their NATs: a plan that follows from what both report. No I/O.

Both ends know both reports (they exchange them over the link that a relay carries) and come to the
same plan. *Plain*: each sends to the other's public addresses, at the same time, which opens its
own filter; this is enough unless a side is seen at another port by each remote. Then the
other side does not know where to send, and its filter, if it has one, keeps that port out. If the
other side has a fixed address, the first opens further sockets that all send there, and the
other one sends to ports that it guesses: after n guesses among N = 64,512 ports, m of which are
open, it has failed with a probability of (1 - m/N)^n.

If both are such, a packet passes only if each has guessed the port from which the other
sends to it: n packets of one side and m of the other have n·m/N² chances (`docs/network.md`
has the figures). Only two sequential allocators meet: both go through the other's next ports
in order, the dialer taking every second one. If other connections took a and b ports since the
reports, the dialer's i-th packet leaves from port a + i for port 2i - 1, and the acceptor's
j-th from b + j for j: packets i = a + b + 1 and j = 2a + b + 1 match, whatever a and b are.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum
from typing import Annotated

import msgspec

from lattica.config import PunchConfig
from lattica.reach.allocation import PORTS
from lattica.reach.guesses import guesses, steps
from lattica.reach.report import Filtering, Mapping, NatReport, Ports

__all__ = [
    "Expectation",
    "Method",
    "Punch",
    "Side",
    "describe",
    "expectation",
    "guess_hosts",
    "guesses",
    "plan",
    "steps",
]

Sockets = Annotated[int, msgspec.Meta(ge=0, le=256)]
Guesses = Annotated[int, msgspec.Meta(ge=0, le=3000)]
Stride = Annotated[int, msgspec.Meta(ge=0, le=2)]
Wait = Annotated[float, msgspec.Meta(ge=0, le=30)]


class Method(Enum):
    """How a direct path is to come about."""

    NONE = "none"  # nothing can be sent
    PLAIN = "plain"
    PREDICTION = "port prediction"
    BIRTHDAY = "birthday"
    HOPELESS = "hopeless"  # plain is tried all the same: reports may be wrong or old


class Side(msgspec.Struct, frozen=True, array_like=True):
    """What one end does besides the plain part.

    Attributes:
        sockets: opened, each sending to the other's fixed address.
        guesses: the most packets to ports at the other's host; 0: does not guess.
        likely: so many of them at the higher rate.
        stride: 0: as `guesses` orders them; else every so manieth port ahead (`steps`).
    """

    sockets: Sockets = 0
    guesses: Guesses = 0
    likely: Guesses = 0
    stride: Stride = 0


class Punch(msgspec.Struct, frozen=True, array_like=True, tag="punch"):
    """One attempt. `delay` is in seconds: the plain part is alone for so long."""

    method: Method
    dialer: Side = Side()
    acceptor: Side = Side()
    delay: Wait = 0.0

    @property
    def sockets_dialer(self) -> int:
        """How many sockets the dialer opens."""
        return self.dialer.sockets

    @property
    def sockets_acceptor(self) -> int:
        """How many sockets the acceptor opens."""
        return self.acceptor.sockets

    @property
    def guess_dialer(self) -> bool:
        """Whether the dialer guesses ports at the acceptor's host."""
        return self.dialer.guesses > 0

    @property
    def guess_acceptor(self) -> bool:
        """Whether the acceptor guesses ports at the dialer's host."""
        return self.acceptor.guesses > 0


class Expectation(msgspec.Struct, frozen=True):
    """How likely a direct path is (0 to 1; None: not known enough), and why, for people."""

    probability: float | None
    why: str


def plan(dialer: NatReport, acceptor: NatReport, config: PunchConfig | None = None) -> Punch:
    """What both ends do for a direct path between them."""
    config = config or PunchConfig()
    if dialer.udp is False or acceptor.udp is False:
        return Punch(Method.NONE)
    if not _is_dependent(dialer) and not _is_dependent(acceptor):
        return Punch(Method.PLAIN)
    if not dialer.public or not acceptor.public:
        return Punch(Method.PLAIN)  # nobody has seen it, so there is nothing to aim at yet
    if _share_a_host(dialer, acceptor) and not _turns_round(dialer, acceptor):
        return Punch(Method.PLAIN)  # their own addresses lead to each other, or nothing does
    if _is_dependent(dialer) and _is_dependent(acceptor):
        return _both(dialer, acceptor, config)
    if _is_dependent(dialer):
        opener, guesser = _one(dialer, config)
        return Punch(_method(dialer), opener, guesser, _delay(acceptor, config))
    opener, guesser = _one(acceptor, config)
    return Punch(_method(acceptor), guesser, opener, _delay(dialer, config))


def guess_hosts(report: NatReport, vouched: Collection[str]) -> tuple[str, ...]:
    """The hosts at which ports may be guessed: those that somebody else has seen the peer at.

    A report is a peer's own word. It could name a third party's host, which would get thousands
    of packets; so the relay of the link, or another witness, must have seen it there. The same
    goes for the host that further sockets send to.
    """
    return tuple(host for host in report.hosts if host in vouched)


def describe(punch: Punch) -> str:
    """The method in a word or two, for people."""
    return punch.method.value


def expectation(
    dialer: NatReport, acceptor: NatReport, config: PunchConfig | None = None
) -> Expectation:
    """What is to be expected of `plan`."""
    config = config or PunchConfig()
    punch = plan(dialer, acceptor, config)
    if punch.method is Method.NONE:
        return Expectation(0.0, "UDP does not pass, so packets go by TCP or a relay")
    if punch.method is Method.HOPELESS:
        chance = (config.max_packets / PORTS) ** 2
        return Expectation(
            chance, "both networks show another port to each peer, and neither can be foreseen"
        )
    if punch.method is Method.PLAIN:
        return _expect_plain(dialer, acceptor)
    known = acceptor if _is_dependent(dialer) else dialer
    if not _is_dependent(known) and _lets_in(known):
        return Expectation(1.0, "one network shows another port to each peer, the other lets it in")
    if punch.method is Method.PREDICTION:
        return Expectation(0.95, "one network shows another port to each peer, near the last one")
    opened = max(punch.sockets_dialer, punch.sockets_acceptor)
    tried = max(punch.dialer.guesses, punch.acceptor.guesses)
    return Expectation(
        1 - (1 - opened / PORTS) ** tried,
        f"one network shows any port: {opened} are opened, and up to {tried} guessed",
    )


def _both(dialer: NatReport, acceptor: NatReport, config: PunchConfig) -> Punch:
    if dialer.ports is Ports.SEQUENTIAL and acceptor.ports is Ports.SEQUENTIAL:
        ahead = config.max_steps
        return Punch(
            Method.PREDICTION,
            Side(guesses=ahead, likely=ahead, stride=2),
            Side(guesses=ahead, likely=ahead, stride=1),
            config.guess_after,
        )
    if dialer.filtering is Filtering.OPEN and acceptor.filtering is Filtering.OPEN:
        return Punch(Method.PLAIN)
    return Punch(Method.HOPELESS)


def _one(dependent: NatReport, config: PunchConfig) -> tuple[Side, Side]:
    """The part of the side that opens sockets, and that of the one that guesses."""
    if dependent.ports in (Ports.SEQUENTIAL, Ports.PRESERVED):
        sockets, likely = config.sockets_sequential, config.likely
    elif dependent.ports is Ports.BLOCK:
        sockets, likely = config.sockets_block, config.likely
    else:
        sockets, likely = config.sockets_random, 0
    hurried = likely / config.likely_rate
    time = config.patience - config.guess_after_open - hurried
    tried = min(config.max_packets, likely + int(time * config.guess_rate))
    return Side(sockets=sockets), Side(guesses=tried, likely=likely)


def _method(dependent: NatReport) -> Method:
    foreseen = (Ports.SEQUENTIAL, Ports.BLOCK, Ports.PRESERVED)
    return Method.PREDICTION if dependent.ports in foreseen else Method.BIRTHDAY


def _delay(known: NatReport, config: PunchConfig) -> float:
    return config.guess_after_open if _lets_in(known) else config.guess_after


def _expect_plain(dialer: NatReport, acceptor: NatReport) -> Expectation:
    if not dialer.public or not acceptor.public:
        return Expectation(None, "no peer has seen yet where one of the two is")
    if _share_a_host(dialer, acceptor):
        why = "both are behind the same public address"
        return Expectation(1.0 if _turns_round(dialer, acceptor) else None, why)
    if Mapping.UNKNOWN in (dialer.mapping, acceptor.mapping):
        return Expectation(None, "too few peers have looked at one of the networks yet")
    if _is_dependent(dialer):
        return Expectation(1.0, "both networks show another port to each peer, and let all in")
    return Expectation(1.0, "both are seen at one address by everybody")


def _is_dependent(report: NatReport) -> bool:
    return report.mapping is Mapping.DEPENDENT


def _lets_in(report: NatReport) -> bool:
    """Whether its filter takes what comes from another port of a host that it sends to."""
    return report.filtering in (Filtering.OPEN, Filtering.ADDRESS)


def _share_a_host(one: NatReport, other: NatReport) -> bool:
    return not set(one.hosts).isdisjoint(other.hosts)


def _turns_round(one: NatReport, other: NatReport) -> bool:
    """Whether the NAT that both are behind is known to send packets back in."""
    return True in (one.hairpin, other.hairpin)
