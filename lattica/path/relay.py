"""Packets through a relay: frames beside QUIC, on the ways of this peer's own link to the relay.

    0x07 (1 byte)  session (8)  datagram

The datagram is whatever would go directly: a QUIC packet, a probe, a beat. It is sealed between the
two ends; the relay sees the session and the size. A session is known to both ends and to the
relay before frames pass, so a frame reaches nobody who did not ask for it. The first byte has
QUIC's fixed bit clear (RFC 9443).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from lattica.errors import AddressError
from lattica.path.interface import (
    QUIC_FIXED_BIT,
    RELAY,
    Path,
    PathStats,
    Receiver,
    VirtualAddress,
)
from lattica.path.unlisted import NOTHING, UnlistedPath

SCHEME = "relay"
SESSION = 8  # bytes
HEADER = 1 + SESSION
MAX_SESSIONS = 4096
MAX_FRESH = 256  # sessions that a relay has opened and no link has taken yet
_COUNTED = ("datagrams_in", "bytes_in", "datagrams_out", "bytes_out", "writes")
Batch = list[tuple[bytes, VirtualAddress]]


class Leg(Protocol):
    """This peer's link to the other end of a leg: the relay, or at the relay one of the two."""

    @property
    def current(self) -> VirtualAddress:
        """Where its packets go now."""
        ...

    def has(self, address: VirtualAddress) -> bool:
        """Whether the other end is known to be at an address."""
        ...


class _Session:
    __slots__ = ("address", "head", "holds", "label", "leg", "out")

    def __init__(self, address: VirtualAddress, session: bytes, leg: Leg, label: str) -> None:
        self.address = address
        self.head = bytes((RELAY,)) + session
        self.leg = leg
        self.label = label
        self.holds = 0
        self.out = 0


class RelayPath(UnlistedPath):
    """A carrier of `lattica.path.combined.CombinedPath`. Its addresses are sessions.

    Attributes:
        forward: takes the frames of sessions that do not end here.
        admit: says for a frame's source whether it is a relay that may open sessions to this
            peer: the leg to it, and the label of such sessions.
        released: called when no link holds a session's address any more.
    """

    def __init__(self, below: Path) -> None:
        """Frames are sent over `below`."""
        super().__init__()
        self._below = below
        self._sessions: dict[bytes, _Session] = {}
        self._by_address: dict[VirtualAddress, _Session] = {}
        self._fresh: dict[VirtualAddress, None] = {}  # admitted, and held by no link so far
        self._next = 1
        self._totals: Counter[str] = Counter()
        self.forward: Callable[[Batch], None] | None = None  # frames of no session here
        self.admit: Callable[[VirtualAddress], tuple[Leg, str] | None] | None = None
        self.released: Callable[[VirtualAddress], None] | None = None  # no link holds it any more

    # ------------------------------------------------------------ sessions

    def open(self, session: bytes, leg: Leg, label: str) -> VirtualAddress:
        """The address that stands for a session with the relay at the end of `leg`.

        Raises:
            AddressError: the session is open already, or there are too many.
        """
        if session in self._sessions:
            raise AddressError("a relay session of that name is open already")
        if len(self._sessions) >= MAX_SESSIONS:
            raise AddressError(f"{MAX_SESSIONS} relay sessions are open; close some")
        address = VirtualAddress(SCHEME, self._next)
        self._next += 1
        made = self._sessions[session] = _Session(address, session, leg, label)
        self._by_address[address] = made
        return address

    @property
    def is_idle(self) -> bool:
        """Whether no session is open here."""
        return not self._sessions

    def end(self, address: VirtualAddress) -> None:
        """Forget a session. Idempotent."""
        session = self._by_address.pop(address, None)
        self._fresh.pop(address, None)
        if session is not None:
            del self._sessions[session.head[1:]]

    def received(self, frames: Batch) -> tuple[Batch, Batch]:
        """Unwrap the frames of sessions here: packets, and probes. Others go to `forward`."""
        packets: Batch = []
        probes: Batch = []
        others: Batch = []
        for frame, source in frames:
            session = self._sessions.get(frame[1:HEADER])
            if session is None:
                session = self._admit(frame, source)
            if session is None:
                others.append((frame, source))
                continue
            if not session.leg.has(source):
                self._counters["relay:wrong_source"] += 1
                continue
            datagram = frame[HEADER:]
            self._totals["datagrams_in"] += 1
            self._totals["bytes_in"] += len(datagram)
            if not datagram:
                self._counters["garbage"] += 1
            elif datagram[0] & QUIC_FIXED_BIT:
                packets.append((datagram, session.address))
            elif datagram[0] == RELAY:
                self._counters["relay:nested"] += 1  # a relay of a relay: nobody means that
            else:
                probes.append((datagram, session.address))
        if others:
            if self.forward is None:
                self._counters["relay:no_session"] += len(others)
            else:
                self.forward(others)
        return packets, probes

    def _admit(self, frame: bytes, source: VirtualAddress) -> _Session | None:
        """A relay that this peer asked to has opened a session: the other end begins."""
        admitted = None if self.admit is None or len(frame) <= HEADER else self.admit(source)
        if admitted is None:
            return None
        while len(self._fresh) >= MAX_FRESH or len(self._sessions) >= MAX_SESSIONS:
            if not self._fresh:
                self._counters["relay:too_many"] += 1
                return None
            self._counters["relay:unused"] += 1
            self.end(next(iter(self._fresh)))
        address = self.open(frame[1:HEADER], *admitted)
        self._fresh[address] = None
        return self._by_address[address]

    # ------------------------------------------------------------ the Path interface

    @property
    def counters(self) -> Counter[str]:
        return self._counters

    def statistics(self) -> PathStats:
        counted = {name: self._totals[name] for name in _COUNTED}
        return msgspec.structs.replace(NOTHING, dropped=dict(self._counters), **counted)

    def start(self, receiver: Receiver) -> None:
        """Nothing arrives here by itself: see `received`."""

    def close(self) -> None:
        self._sessions.clear()
        self._fresh.clear()
        self._by_address.clear()

    def send(self, datagrams: Sequence[bytes], address: VirtualAddress) -> None:
        session = self._by_address.get(address)
        if session is None:
            self._counters["sent_nowhere"] += len(datagrams)
            return
        self._totals["writes"] += 1
        self._totals["datagrams_out"] += len(datagrams)
        self._totals["bytes_out"] += sum(map(len, datagrams))
        head = session.head
        self._below.send([head + datagram for datagram in datagrams], session.leg.current)

    def describe(self, address: VirtualAddress) -> str:
        session = self._by_address.get(address)
        return "forgotten" if session is None else session.label

    def hold(self, address: VirtualAddress) -> None:
        if (session := self._by_address.get(address)) is not None:
            session.holds += 1
            self._fresh.pop(address, None)

    def release(self, address: VirtualAddress) -> None:
        session = self._by_address.get(address)
        if session is None:
            return
        session.holds -= 1
        if session.holds <= 0:
            self.end(address)
            if self.released is not None:
                self.released(address)
