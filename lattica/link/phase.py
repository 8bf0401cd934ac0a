"""How far a link has come."""

from __future__ import annotations

from enum import Enum


class Phase(Enum):
    """In the order in which they come; any may be followed by the last."""

    HANDSHAKE = "handshake"
    PROVING = "proving"  # TLS is done, the other end's Hello is due
    PROVEN = "proven"  # its Hello holds; one of us has not accepted yet
    OPEN = "open"
    CLOSED = "closed"
