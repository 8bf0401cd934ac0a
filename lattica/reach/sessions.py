"""What a relay knows about those it serves, and what it tells about them."""

from __future__ import annotations

import msgspec

from lattica.identity.keys import PeerId
from lattica.path.relay import Leg
from lattica.reach.fair import Flow, Group


class RelayLoad(msgspec.Struct, frozen=True, kw_only=True):
    """How busy a relay is."""

    sessions: int
    reservations: int
    rate: float  # bytes/s forwarded lately
    share: float  # of the rate that it may forward: 0 to 1


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """One direction of a session. Bytes are of whole frames."""

    frames: int
    bytes: int
    dropped: int  # frames


class RelaySession(msgspec.Struct, frozen=True, kw_only=True):
    """One session. Times in seconds."""

    source: PeerId  # who asked for it
    target: PeerId
    age: float
    idle: float
    up: Traffic  # from source to target
    down: Traffic


class RelayStats(msgspec.Struct, frozen=True, kw_only=True):
    """What a relay has done: `frames_in` are `frames_out`, `waiting`, and all of `dropped`."""

    frames_in: int
    frames_out: int
    bytes_out: int
    waiting: int  # frames whose session is not known yet
    dropped: dict[str, int]  # frames, by reason
    sessions: tuple[RelaySession, ...]


class Party:
    """A peer with a reservation or sessions."""

    __slots__ = ("batch", "down_at", "group", "leg", "peer", "reserved_until", "sessions")

    def __init__(self, peer: PeerId) -> None:
        self.peer = peer
        self.group = Group()  # of the sessions that it asked for
        self.sessions: dict[bytes, Session] = {}
        self.reserved_until: float | None = None
        self.down_at: float | None = None  # when its link was lost
        self.leg: Leg | None = None  # as of `batch`
        self.batch = 0


class Side:
    """One direction of a session."""

    __slots__ = ("bytes", "dropped", "flow", "frames", "receiver", "sender")

    def __init__(self, sender: Party, receiver: Party, flow: Flow) -> None:
        self.sender = sender
        self.receiver = receiver
        self.flow = flow
        self.frames = 0
        self.bytes = 0
        self.dropped = 0

    def traffic(self) -> Traffic:
        """What has passed."""
        return Traffic(frames=self.frames, bytes=self.bytes, dropped=self.dropped)


class Session:
    """Two peers that reach each other through this one."""

    __slots__ = ("billed", "down", "name", "opened", "up", "used")

    def __init__(self, name: bytes, up: Side, down: Side, now: float) -> None:
        self.name = name
        self.up = up  # from the peer that asked for it
        self.down = down
        self.opened = now
        self.used = now
        self.billed = 0  # bytes

    def bill(self) -> int:
        """Bytes forwarded since the last call."""
        before, self.billed = self.billed, self.up.bytes + self.down.bytes
        return self.billed - before

    @property
    def ends(self) -> tuple[Party, Party]:
        """Who asked for it, and the other one."""
        return self.up.sender, self.down.sender

    def describe(self, now: float) -> RelaySession:
        """For people and tests."""
        source, target = self.ends
        return RelaySession(
            source=source.peer,
            target=target.peer,
            age=now - self.opened,
            idle=now - self.used,
            up=self.up.traffic(),
            down=self.down.traffic(),
        )
