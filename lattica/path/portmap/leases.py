"""Keeps ports mapped at one gateway by PCP, or by NAT-PMP where that is what it speaks. No I/O.

Questions are asked one at a time, as small routers want it (RFC 6886 §3.1): for each port
a mapping, renewed at half its lifetime (RFC 6887 §11.2.1), and in between a check whose
answer has the gateway's epoch. If that shows that the gateway lost its state, all ports are
asked for again at once, with the ports they had.

RFC 6887 would wait three seconds before a question is repeated and go on for ever. Here it
is a quarter of a second and a few times: a gateway is one cable away, and one that is silent
should be found silent before a person wonders.
"""

from __future__ import annotations

import random
import secrets
from collections import Counter
from collections.abc import Sequence

from lattica.config import PortMapConfig
from lattica.path.portmap.dialects import Answer, Dialect, Drop, Verdict
from lattica.path.portmap.epoch import EpochWatch
from lattica.path.portmap.mapping import Mapping, Want
from lattica.path.portmap.pcp import NONCE
from lattica.path.scopes import Scope, scope_of

NEVER = float("inf")
_NO_OUTSIDE = "it has no address outside"
_JITTER = 0.1  # of a pause before a question is repeated, RFC 6887 §8.1.1 (RAND)


class _Lease:
    """A wanted port and what is known of it. Times of one monotonic clock, in seconds."""

    def __init__(self, want: Want, now: float) -> None:
        self.want = want
        self.nonce = secrets.token_bytes(NONCE)  # the same for the life of the mapping, §11.2
        self.due = now
        self.is_asked = False
        self.host = ""  # outside; empty while nothing is granted
        self.port = want.port  # outside: granted, or wished for
        self.lifetime = 0.0
        self.until = NEVER


class _Question:
    """What is being asked: for a port, or a check."""

    def __init__(self, lease: _Lease | None, datagram: bytes) -> None:
        self.lease = lease
        self.datagram = datagram
        self.sent = 0  # times
        self.next = 0.0  # when to send it again, or to give up


class Leases:
    """The ports `wants` at one gateway. Times in seconds of one monotonic clock."""

    def __init__(
        self,
        gateway: str,
        wants: Sequence[Want],
        dialects: Sequence[Dialect],
        now: float,
        *,
        config: PortMapConfig,
        counters: Counter[str],
        chance: random.Random,
    ) -> None:
        """`dialects` are tried in turn, at least one; `counters` take what was dropped."""
        self._gateway = gateway
        self._dialects = list(dialects)
        self._config = config
        self._counters = counters
        self._chance = chance
        self._leases = [_Lease(want, now) for want in wants]
        self._question: _Question | None = None
        self._hint_after = now
        self._check_due = NEVER
        self._is_leaving = False
        self.failure = ""  # for people; not empty: nothing more will come of it
        self._start(now)

    @property
    def mappings(self) -> tuple[Mapping, ...]:
        """What is granted now."""
        return tuple(
            Mapping(
                protocol=self._dialect.protocol,
                want=lease.want,
                host=lease.host,
                port=lease.port,
                lifetime=lease.lifetime,
                gateway=self._gateway,
            )
            for lease in self._leases
            if lease.host
        )

    @property
    def due(self) -> float:
        """When `poll` must be called."""
        if self.failure:
            return NEVER
        if self._question is not None:
            return min(self._question.next, self._expiry)
        return min(self._next_due, self._expiry)

    @property
    def is_released(self) -> bool:
        """Whether all is removed, after `release`."""
        return self._is_leaving and not any(lease.is_asked for lease in self._leases)

    def poll(self, now: float) -> bytes | None:
        """The datagram to send to the gateway now, if any."""
        self._expire(now)
        if self._question is not None and now >= self._question.next:
            limit = self._config.tries_leaving if self._is_leaving else self._config.tries
            if self._question.sent >= limit:
                self._unanswered(self._question, now)
        if self._question is None and not self.failure and now >= self._next_due:
            self._question = self._ask()
        question = self._question
        if question is None or self.failure or now < question.next:
            return None
        pause = self._config.first_retry * 2**question.sent
        question.next = now + pause * self._chance.uniform(1 - _JITTER, 1 + _JITTER)
        question.sent += 1
        return question.datagram

    def receive(self, datagram: bytes, source: tuple[str, int], now: float) -> None:
        """Take in a datagram; what is no answer of the gateway's is dropped and counted."""
        if source != (self._gateway, self._config.gateway_port):
            return self._drop("foreign")
        question = self._question
        if question is None or not question.sent:
            return self._drop(Drop.UNEXPECTED.value)
        want = question.lease.want if question.lease else None
        nonce = question.lease.nonce if question.lease else b""
        answer = self._dialect.read(datagram, want, nonce)
        if isinstance(answer, Drop):
            return self._drop(answer.value)
        self._question = None
        self._is_heard = True
        if self._is_leaving:
            return self._forget(question.lease)
        if answer.verdict is Verdict.UNSUPPORTED:
            return self._give_up(answer.reason, now)
        if answer.epoch is not None and not self._epoch.take(answer.epoch, now):
            self._ask_again(now)
        return self._apply(question.lease, answer, now)

    def hint(self, now: float) -> None:
        """Something that anybody can forge says that the gateway lost its state: ask it."""
        if now >= self._hint_after and not self._is_leaving:
            self._hint_after = now + self._config.hint_pause
            self._check_due = min(self._check_due, now)

    def release(self) -> None:
        """From now on remove what was asked for; see `is_released`."""
        if self.failure and not self._is_heard:
            for lease in self._leases:
                lease.is_asked = False  # nobody is there
        self.failure = ""
        self._is_leaving = True
        self._question = None
        for lease in self._leases:
            lease.host = ""

    # ------------------------------------------------------------------ inside

    @property
    def _dialect(self) -> Dialect:
        return self._dialects[0]

    @property
    def _expiry(self) -> float:
        return min((lease.until for lease in self._leases if lease.host), default=NEVER)

    @property
    def _next_due(self) -> float:
        if self._is_leaving:
            return NEVER if self.is_released else 0.0
        return min(self._check_due, *(lease.due for lease in self._leases))

    def _start(self, now: float) -> None:
        """Begin with the first of the dialects that are left."""
        self._epoch = EpochWatch()
        self._outside = ""
        self._check_due = now if self._dialect.needs_check else NEVER
        self._question = None
        self._is_heard = False
        for lease in self._leases:
            lease.due = now
            lease.is_asked = False
            lease.host = ""

    def _ask(self) -> _Question:
        """A question for what is due first."""
        asked = [lease for lease in self._leases if lease.is_asked]
        if self._is_leaving:
            lease, lifetime = asked[0], 0
        else:
            lease, lifetime = min(self._leases, key=lambda each: each.due), self._config.lifetime
            if self._check_due <= lease.due:
                return _Question(None, self._dialect.check())
        lease.is_asked = True
        # RFC 6886 §3.4 and RFC 6887 §15: who removes a mapping wishes for no port.
        outside = lease.port if lifetime else 0
        return _Question(lease, self._dialect.ask(lease.want, lease.nonce, lifetime, outside))

    def _apply(self, lease: _Lease | None, answer: Answer, now: float) -> None:
        if lease is None:
            self._check_due = now + self._config.check_every
            if answer.verdict is Verdict.REFUSED:
                return self._give_up(answer.reason, now)
            if answer.host:
                self._found_outside(answer.host, now)
            return None
        host = answer.host or self._outside
        if answer.verdict is Verdict.REFUSED:
            self._refused(lease, answer.reason, answer.lifetime, now)
        elif not answer.port or not answer.lifetime or scope_of(host) is Scope.NOBODY:
            self._refused(lease, _NO_OUTSIDE, 0, now)
        else:
            lease.host, lease.port = host, answer.port
            lease.lifetime = float(answer.lifetime)
            lease.until = now + answer.lifetime
            lifetime = min(answer.lifetime, self._config.max_lifetime)
            lease.due = now + max(lifetime / 2, self._config.min_renew)
            self._check_due = now + self._config.check_every
        return None

    def _found_outside(self, host: str, now: float) -> None:
        if scope_of(host) is Scope.NOBODY:
            return self._give_up(_NO_OUTSIDE, now)
        if self._outside and host != self._outside:
            self._ask_again(now)  # the mappings may have gone with the address
        self._outside = host
        for lease in self._leases:
            if lease.host:
                lease.host = host
        return None

    def _ask_again(self, now: float) -> None:
        for lease in self._leases:
            lease.due = min(lease.due, now)

    def _refused(self, lease: _Lease, reason: str, lifetime: int, now: float) -> None:
        if not any(each.host for each in self._leases):
            return self._give_up(reason, now)
        low, high = self._config.min_refusal, self._config.max_refusal
        lease.due = now + min(max(lifetime, low), high)
        return None

    def _unanswered(self, question: _Question, now: float) -> None:
        self._question = None
        lease = question.lease
        if self._is_leaving:
            return self._forget(lease)
        if not any(each.host for each in self._leases):
            return self._give_up("no answer", now)
        if lease is None:
            self._check_due = now + self._config.check_every
        else:
            rest = (lease.until - now) / 2 if lease.host else self._config.min_refusal
            lease.due = now + max(rest, self._config.min_renew)
        return None

    def _give_up(self, reason: str, now: float) -> None:
        """This protocol leads nowhere: go on with the next, or fail."""
        said = f"{self._dialect.protocol.value}: {reason}"
        if len(self._dialects) == 1:
            self.failure = said
            return
        del self._dialects[0]
        self._start(now)

    def _expire(self, now: float) -> None:
        for lease in self._leases:
            if lease.host and now >= lease.until:
                lease.host = ""

    def _forget(self, lease: _Lease | None) -> None:
        if lease is not None:
            lease.is_asked = False

    def _drop(self, reason: str) -> None:
        self._counters[f"portmap:{reason}"] += 1
