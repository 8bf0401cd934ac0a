"""Replicated documents and content-addressed blocks."""

from lattica.store.document import Change, Document, DocumentMap
from lattica.store.documents import Documents

__all__ = ["Change", "Document", "DocumentMap", "Documents"]
