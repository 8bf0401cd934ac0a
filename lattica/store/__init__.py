"""Replicated documents and content-addressed blocks."""

from lattica.store.blocks import Blocks, FetchReport
from lattica.store.document import Change, Document, DocumentMap
from lattica.store.documents import Documents
from lattica.store.manifest import BlockRef, FileEntry, Manifest

__all__ = [
    "BlockRef",
    "Blocks",
    "Change",
    "Document",
    "DocumentMap",
    "Documents",
    "FetchReport",
    "FileEntry",
    "Manifest",
]
