"""Mutual authentication inside an encrypted link, without I/O.

QUIC's TLS runs with throw-away certificates that nobody checks, so on its own it
protects only against those who listen. Then each end signs, with the key that *is* its
PeerId, a message on stream 0 made of

    a fixed tag, its role, its own PeerId, the PeerId it takes the other for, the binding

where the binding is a key that both ends derive from this TLS session's secrets
(`lattica.link.secrets`) and never send. Why that is enough:

- Someone in the middle ends TLS twice. The two sessions have different transcripts
  (other randoms, other key shares) and so different bindings; a signature made for one
  does not verify in the other, and the middle cannot make one of its own for a key
  that it does not have. It cannot learn a binding it is not an end of either.
- Replaying an old signature fails for the same reason: each session's binding is new.
- Reflecting an end's own signature fails on the role and on the PeerId.
- Both PeerIds are signed, so neither end can be led to think that it talks to another
  than the other thinks (an unknown key share).
- The tag keeps these signatures apart from every other use of the key.

The dialer speaks first, so the acceptor shows who it is only to a peer whose proof
holds. The acceptor's Hello says that it accepts the dialer, the dialer's empty last
message that it accepts the acceptor: neither hands the link on before both have.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from lattica.errors import (
    CrossMeshError,
    GrantError,
    LinkRefusedError,
    ProofError,
    SelfDialError,
    VersionError,
    WrongPeerError,
)
from lattica.identity import wire
from lattica.identity.grants import Grant, Membership, root_of, verify_chain
from lattica.identity.keys import Identity, PeerId
from lattica.link.interface import RemotePeer
from lattica.link.messages import (
    CONFIRM,
    LENGTH,
    MAX_HELLO,
    MAX_NAME,
    PROTOCOL_VERSION,
    Hello,
    Version,
)
from lattica.link.refusals import printable

_TAG = b"lattica-link-proof-v1\x00"
_NOBODY = bytes(32)


class Role(Enum):
    """Which end of the connection."""

    DIALER = b"d"
    ACCEPTOR = b"a"

    @property
    def other(self) -> Role:
        """The opposite end."""
        return Role.ACCEPTOR if self is Role.DIALER else Role.DIALER


class Step(Enum):
    """What a message from the other end has led to."""

    WAITING = "waiting"
    PROVEN = "proven"  # its Hello holds; ours or the confirmation is due
    CONFIRMED = "confirmed"  # the dialer has accepted us too


class Proof:
    """One end's part in the exchange. Errors raised are refusals to be told to the other end."""

    def __init__(
        self,
        identity: Identity,
        membership: Membership,
        name: str,
        *,
        role: Role,
        binding: bytes,
        expected: PeerId | None = None,
    ) -> None:
        """`expected` is the peer that a dialer wants; `binding` is this session's."""
        self._identity = identity
        self._membership = membership
        self._name = name[:MAX_NAME]
        self._role = role
        self._binding = binding
        self._expected = expected
        self._buffer = bytearray()
        self.remote: RemotePeer | None = None
        self.expires = float("inf")  # seconds since the Unix epoch: when its grant ends

    def hello(self) -> bytes:
        """Our Hello. A dialer sends it at once, an acceptor to accept a proven dialer."""
        to = self._expected if self.remote is None else self.remote.peer
        own = self._identity.peer_id
        body = wire.encode(
            Hello(
                PROTOCOL_VERSION,
                own,
                to,
                self._membership,
                self._name,
                self._identity.sign_bytes(_message(self._role, own, to, self._binding)),
            )
        )
        return len(body).to_bytes(LENGTH, "big") + body

    def confirm(self) -> bytes:
        """The dialer's last message."""
        return CONFIRM

    def receive(self, data: bytes, now: float) -> Step:
        """Take in bytes of stream 0; `now` in seconds since the Unix epoch.

        Raises:
            VersionError, ProofError, WrongPeerError, SelfDialError, CrossMeshError,
            LinkRefusedError: the other end is refused.
        """
        self._buffer += data
        if len(self._buffer) < LENGTH:
            return Step.WAITING
        length = int.from_bytes(self._buffer[:LENGTH], "big")
        if self.remote is not None:
            return self._confirmed()
        if not 0 < length <= MAX_HELLO:
            raise LinkRefusedError(f"a hello of {length} bytes; at most {MAX_HELLO} are read")
        if len(self._buffer) < LENGTH + length:
            return Step.WAITING
        body = bytes(self._buffer[LENGTH : LENGTH + length])
        del self._buffer[: LENGTH + length]
        if self._buffer:
            raise LinkRefusedError("bytes after the hello, before the answer to it")
        self._verify(_decode(body), now)
        return Step.PROVEN

    # ------------------------------------------------------------------ inside

    def _confirmed(self) -> Step:
        if self._role is Role.DIALER or not self._buffer.startswith(CONFIRM):
            raise LinkRefusedError("unexpected bytes on the link's own stream")
        del self._buffer[: len(CONFIRM)]
        return Step.CONFIRMED

    def rest(self) -> bytes:
        """What came behind the dialer's last message, once."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest

    def _verify(self, hello: Hello, now: float) -> None:
        own = self._identity.peer_id
        if hello.peer == own:
            raise SelfDialError("a peer cannot link to itself")
        message = _message(self._role.other, hello.peer, hello.to, self._binding)
        if not hello.peer.verify(hello.signature, message):
            raise ProofError(f"the proof of {hello.peer.short} does not hold for this session")
        if hello.to is not None and hello.to != own:
            raise WrongPeerError(f"{hello.to.short} was wanted, but this is {own.short}")
        if self._role is Role.DIALER and hello.to is None:
            raise ProofError("the acceptor's proof names no dialer")
        if self._expected is not None and hello.peer != self._expected:
            raise WrongPeerError(
                f"{self._expected.short} was wanted, but {hello.peer.short} answers there"
            )
        mesh = self._membership.mesh
        if hello.membership.mesh != mesh:
            raise CrossMeshError(
                f"{hello.peer.short} belongs to mesh {hello.membership.mesh.short}, "
                f"{own.short} to mesh {mesh.short}"
            )
        try:
            scopes = verify_chain(hello.membership.chain, mesh=mesh, subject=hello.peer, now=now)
        except GrantError as error:
            raise LinkRefusedError(f"{hello.peer.short} is not let in: {error}") from None
        self.expires = _expiry(hello.membership)
        name = printable(hello.name, MAX_NAME) or hello.peer.short
        self.remote = RemotePeer(hello.peer, mesh, scopes, name, root_of(hello.membership.chain))


def _decode(body: bytes) -> Hello:
    try:
        version = wire.decode(body, Version).version
        if version != PROTOCOL_VERSION:
            raise VersionError(
                f"protocol version {version} meets version {PROTOCOL_VERSION}; "
                "install the same release of lattica on both machines"
            )
        return wire.decode(body, Hello)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise LinkRefusedError(f"the hello does not decode: {error}") from None


def _expiry(membership: Membership) -> float:
    """When the first grant of a chain ends, whose signatures have just been verified."""
    return min(
        (wire.decode(step.payload, Grant).expires for step in membership.chain),
        default=float("inf"),
    )


def _message(role: Role, own: PeerId, to: PeerId | None, binding: bytes) -> bytes:
    """What is signed. Every part has a fixed length, so no two contents give one message."""
    return _TAG + role.value + own.raw + (_NOBODY if to is None else to.raw) + binding
