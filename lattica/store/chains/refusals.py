"""Why a document refuses an envelope, in a word that can be counted."""

from __future__ import annotations

from lattica.errors import DocumentError


class RefusedError(DocumentError):
    """An envelope that is not taken in.

    Attributes:
        reason: oversized, forged, foreign (of another mesh or document), unauthorised,
            forked, malformed, client, stuck (its author was refused before), full.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
