"""Replicated documents and content-addressed blocks."""

from lattica.store.arrays import DocumentArray
from lattica.store.awareness import Awareness
from lattica.store.blocks import Blocks
from lattica.store.changes import Change, Revision
from lattica.store.counters import DocumentCounter
from lattica.store.document import Document
from lattica.store.documents import Documents
from lattica.store.getting import FetchReport
from lattica.store.manifest import BlockRef, FileEntry, Manifest
from lattica.store.maps import DocumentMap
from lattica.store.texts import DocumentText
from lattica.store.views import DocumentView

__all__ = [
    "Awareness",
    "BlockRef",
    "Blocks",
    "Change",
    "Document",
    "DocumentArray",
    "DocumentCounter",
    "DocumentMap",
    "DocumentText",
    "DocumentView",
    "Documents",
    "FetchReport",
    "FileEntry",
    "Manifest",
    "Revision",
]
