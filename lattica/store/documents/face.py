"""What the faces of a document's content need of the document: its state, and transactions."""

from __future__ import annotations

import contextlib
from typing import Protocol

from lattica.identity.keys import PeerId
from lattica.store.crdt.kinds import Place
from lattica.store.crdt.state import State


class Owner(Protocol):
    """The document that maps, arrays, texts and counters belong to."""

    @property
    def name(self) -> str:
        """The document's name."""
        ...

    @property
    def state(self) -> State:
        """The content."""
        ...

    def author_of(self, place: Place) -> PeerId:
        """Who wrote what is there now."""
        ...

    def transaction(self) -> contextlib.AbstractContextManager[None]:
        """Group writes into one update."""
        ...
