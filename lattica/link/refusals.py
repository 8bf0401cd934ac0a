"""How a link's end is told to the other side: application close codes and typed errors."""

from __future__ import annotations

from enum import IntEnum

from lattica.errors import (
    CrossMeshError,
    LinkError,
    LinkLostError,
    LinkRefusedError,
    ProofError,
    SelfDialError,
    VersionError,
    WrongPeerError,
)


class CloseCode(IntEnum):
    """Application error codes of CONNECTION_CLOSE (RFC 9000 §19.19)."""

    CLOSED = 0
    REFUSED = 1
    WRONG_PEER = 2
    PROOF = 3
    SELF_DIAL = 4
    CROSS_MESH = 5
    VERSION = 6
    DUPLICATE = 7  # another link between the two is the one that stays
    LOST = 8  # silent for too long
    BUSY = 9  # no place for another link


class DuplicateLinkError(LinkRefusedError):
    """Another link between the two peers stays: the dial joins that one."""


class LinkBusyError(LinkRefusedError):
    """The other end has no place for another link now."""


_ERRORS: dict[CloseCode, type[LinkError]] = {
    CloseCode.REFUSED: LinkRefusedError,
    CloseCode.WRONG_PEER: WrongPeerError,
    CloseCode.PROOF: ProofError,
    CloseCode.SELF_DIAL: SelfDialError,
    CloseCode.CROSS_MESH: CrossMeshError,
    CloseCode.VERSION: VersionError,
    CloseCode.DUPLICATE: DuplicateLinkError,
    CloseCode.BUSY: LinkBusyError,
}


def code_of(error: LinkError) -> CloseCode:
    """The close code that tells the other end of `error`."""
    for code, kind in reversed(_ERRORS.items()):
        if isinstance(error, kind):
            return code
    return CloseCode.CLOSED


def error_of(code: int | None, reason: str, *, is_open: bool) -> LinkError:
    """The error for a close by the other end.

    `code` is None where QUIC itself gave up. `is_open`: the link had been established,
    so whatever the reason it is lost, not refused.
    """
    text = printable(reason) or "no reason given"
    if code is None:
        return LinkLostError(f"the connection broke: {text}")
    if is_open:
        return LinkLostError(f"closed by the other end: {text}")
    try:
        kind = _ERRORS.get(CloseCode(code), LinkLostError)
    except ValueError:
        kind = LinkRefusedError
    return kind(f"refused by the other end: {text}")


def printable(text: str, limit: int = 200) -> str:
    """`text` as it may be shown on a terminal: the other end chose it."""
    return "".join(each if each.isprintable() else "?" for each in text[:limit])
