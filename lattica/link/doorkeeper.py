"""Who may begin a handshake now, and who has to show first where it is. No I/O.

Two floods are told apart. Forged sources cost an attacker nothing, so nothing is kept for
them: above a number of handshakes in progress, or of first packets from one source, the
answer is a Retry. A source that came back with a token is real, and limited as such; the
two have buckets of their own, so that nobody uses up another's by forging its address.
"""

from __future__ import annotations

import os
from enum import Enum

import msgspec

from lattica.config import LinkConfig
from lattica.link import header
from lattica.link.buckets import Buckets, source_of
from lattica.link.retry import RetryTokens, retry_packet
from lattica.path import addresses

MIN_DESTINATION = 8  # bytes; RFC 9000 §7.2, of the id that a client makes up


class Entry(Enum):
    """What to do with a stranger's first packet."""

    ACCEPT = "accepted"
    RETRY = "retried"
    BUSY = "too_many_handshakes"
    LIMITED = "source_limited"
    BAD_TOKEN = "bad_token"
    MALFORMED = "malformed"


class Decision(msgspec.Struct, frozen=True):
    """An entry, with what goes with it."""

    entry: Entry
    original_destination: bytes = b""  # if accepted
    retry_source: bytes | None = None  # if accepted after a Retry
    answer: bytes = b""  # if retried


class Doorkeeper:
    """Decides on first packets for one endpoint. Times in seconds of its clock."""

    def __init__(self, config: LinkConfig) -> None:
        self._retry_above = config.retry_above
        self._max_pending = config.max_pending
        self._max_shown = config.max_pending_per_source
        self._tokens = RetryTokens()
        self._shown = Buckets(config.handshake_rate, config.handshake_burst)
        self._claimed = Buckets(config.handshake_rate, config.handshake_burst)

    def decide(
        self, first: header.LongHeader, address: str, pending: int, now: float, *, shown: int = 0
    ) -> Decision:
        """`address` is the physical source, `pending` the handshakes in progress.

        `shown` are those of them with this source that began with a token.
        """
        if len(first.destination) < MIN_DESTINATION:
            return Decision(Entry.MALFORMED)
        if pending >= self._max_pending:
            return Decision(Entry.BUSY)
        source = source_of(address)
        is_here = addresses.is_loopback(source)  # may do worse than dial
        if first.token:
            original = self._tokens.check(first.token, address, first.destination, now)
            if original is None:
                return Decision(Entry.BAD_TOKEN)
            if not is_here and (shown >= self._max_shown or not self._shown.take(source, now)):
                return Decision(Entry.LIMITED)
            return Decision(Entry.ACCEPT, original, first.destination)
        if pending >= self._retry_above or not (is_here or self._claimed.take(source, now)):
            chosen = os.urandom(header.CONNECTION_ID)
            token = self._tokens.issue(address, first.destination, chosen, now)
            return Decision(Entry.RETRY, answer=retry_packet(first, chosen, token))
        return Decision(Entry.ACCEPT, first.destination)
