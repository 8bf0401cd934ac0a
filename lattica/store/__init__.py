"""Replicated documents and content-addressed blocks."""

from lattica.store.blocks.manifest import BlockRef, FileEntry, Manifest
from lattica.store.chains.changes import Change, Revision
from lattica.store.documents.arrays import DocumentArray
from lattica.store.documents.awareness import Awareness
from lattica.store.documents.counters import DocumentCounter
from lattica.store.documents.document import Document
from lattica.store.documents.documents import Documents
from lattica.store.documents.maps import DocumentMap
from lattica.store.documents.texts import DocumentText
from lattica.store.documents.views import DocumentView
from lattica.store.swarm.blocks import Blocks
from lattica.store.swarm.getting import FetchReport

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
