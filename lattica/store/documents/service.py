"""Documents towards other peers: exchanges that they ask for, envelopes that they push."""

from __future__ import annotations

from typing import Protocol

from lattica.identity import grants
from lattica.identity.keys import PeerId
from lattica.rpc import caller, method
from lattica.store.chains.messages import (
    Envelopes,
    Exchange,
    Heads,
    Marks,
    Name,
    Notices,
    Others,
    Presences,
)
from lattica.store.documents.glances import Glance, Roots
from lattica.store.documents.showing import Shown


class Handler(Protocol):
    """What the service needs of its owner."""

    async def exchanged(
        self, peer: PeerId, name: str, heads: Heads, marks: Marks
    ) -> Exchange | None:
        """A peer that has the document open tells its heads."""
        ...

    async def pushed(
        self, peer: PeerId, name: str, envelopes: Envelopes, notices: Notices, also: Others
    ) -> bool:
        """A peer sends what it believes to be new here."""
        ...

    async def glanced(self, name: str, roots: Roots) -> Glance | None:
        """A peer that keeps nothing of the document wants to read these of it."""
        ...

    async def shown(self, name: str, roots: Roots) -> Shown | None:
        """The same with what proves it."""
        ...

    async def present(self, peer: PeerId, name: str, presences: Presences) -> None:
        """A peer passes on what it and others say of themselves."""
        ...


class DocumentsService:
    """Reading takes the `call` grant; what is written is judged by the envelopes themselves."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    @method(scope=grants.CALL)
    async def exchange(self, document: Name, heads: Heads, marks: Marks = ()) -> Exchange | None:
        """This peer's heads and what the caller lacks; None if it is not open here."""
        return await self._handler.exchanged(caller().peer, document, heads, marks)

    @method(scope=grants.CALL)
    async def push(
        self, document: Name, envelopes: Envelopes, notices: Notices = (), also: Others = ()
    ) -> bool:
        """Take envelopes in; false if something is missing and an exchange is due.

        `also`: who else is sent them, and need not be told by this peer.
        """
        return await self._handler.pushed(caller().peer, document, envelopes, notices, also)

    @method(scope=grants.CALL)
    async def glance(self, document: Name, roots: Roots) -> Glance | None:
        """What these roots hold here; None if the document is not open here."""
        return await self._handler.glanced(document, roots)

    @method(scope=grants.CALL)
    async def show(self, document: Name, roots: Roots) -> Shown | None:
        """What these roots hold here, and what proves it; None if it is not open here."""
        return await self._handler.shown(document, roots)

    @method(scope=grants.CALL)
    async def present(self, document: Name, presences: Presences) -> None:
        """Take in what peers that have the document open say of themselves."""
        await self._handler.present(caller().peer, document, presences)
