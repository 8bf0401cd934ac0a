"""What two ends say to each other on stream 0 before a link exists.

Each message is preceded by its length, four bytes, big endian. Then:

    dialer    Hello                   empty message: "I accept you"
    acceptor         Hello: "I accept you"

Later either end may say once that it is going away: a text, the reason.
"""

from __future__ import annotations

import msgspec

from lattica.identity.grants import Membership
from lattica.identity.keys import PeerId

PROTOCOL_VERSION = 1
MAX_HELLO = 16 * 1024  # bytes
MAX_NAME = 64  # characters
MAX_REASON = 200  # bytes of UTF-8
LENGTH = 4  # bytes
CONFIRM = bytes(LENGTH)


class Version(msgspec.Struct, frozen=True, array_like=True):
    """The field that every version's Hello begins with; what follows is not looked at."""

    version: int


class Hello(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Who I am, whom I take you for, and the proof of it for this TLS session."""

    version: int
    peer: PeerId
    to: PeerId | None  # None: whoever has this address
    membership: Membership
    name: str
    signature: bytes
