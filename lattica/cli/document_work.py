"""What `lattica docs` asks of the peer that runs on this machine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from lattica.cli.control import Ask
from lattica.cli.reports import DocumentReport, DocumentsReport
from lattica.clock import Clock
from lattica.errors import ControlError
from lattica.identity.keys import PeerId
from lattica.store.documents.document import Document
from lattica.store.documents.documents import Documents

DAY = 86_400.0
Names = Callable[[], Awaitable[Mapping[str, str]]]  # peers' names by their ids


class DocumentWork:
    """Answers about documents."""

    def __init__(self, documents: Documents, names: Names, clock: Clock) -> None:
        self._documents = documents
        self._names = names
        self._clock = clock

    async def __call__(self, question: Ask) -> DocumentsReport:
        """Do it.

        Raises:
            DocumentError: no valid name.
            StoreError: it cannot be read, or does not verify.
            GrantError: this machine does not hold the mesh's authority key.
            ControlError: there is no such operation or author.
        """
        op, name, digest = question.op, question.document, question.digest
        if op == "ls":
            return DocumentsReport(documents=await self._listed())
        if op == "verify":
            return DocumentsReport(documents=[await self._verified(name)])
        if op in ("show", "wait"):
            document = await self._documents.open(name)
            if op == "wait":
                watched = document.watch()
                while document.digest() == digest:
                    await anext(watched)  # no deadline: it ends when the asker does
            return DocumentsReport(documents=[await self._shown(document)])
        if op in ("grant", "revoke"):
            document = await self._documents.open(name)
            author = await self._author(document, question.author)
            if op == "revoke":
                await document.revoke(author)
            else:
                await document.grant(author, until=self._clock.time() + question.days * DAY)
            return DocumentsReport(documents=[await self._shown(document)])
        raise ControlError(f"docs has no operation {op!r}")

    async def _author(self, document: Document, text: str) -> PeerId:
        """Who is meant: by an id, its start, or a name."""
        names = await self._names()
        known = {*names, *(str(peer) for peer in document.heads())}
        if text in known:
            return PeerId.parse(text)
        found = [each for each in known if each.startswith(text) or names.get(each) == text]
        if len(found) != 1:
            what = "several peers are" if found else "no peer known here is"
            raise ControlError(f"{what} {text!r}; give the whole id, see `lattica peers`")
        return PeerId.parse(found[0])

    async def _listed(self) -> list[DocumentReport]:
        """Without reading them: what is not open has no digest here."""
        opened = self._documents.opened
        kept = await self._documents.kept()
        reports = []
        for name in sorted({*kept, *opened}):
            document = opened.get(name)
            heads = kept.get(name, {}) if document is None else document.heads()
            reports.append(
                DocumentReport(
                    name=name,
                    digest="" if document is None else document.digest(),
                    updates=await self._named(heads),
                    refused=0 if document is None else sum(document.counters.values()),
                )
            )
        return reports

    async def _shown(self, document: Document) -> DocumentReport:
        return DocumentReport(
            name=document.name,
            digest=document.digest(),
            updates=await self._named(document.heads()),
            refused=sum(document.counters.values()),
            content=document.to_dict(),
        )

    async def _verified(self, name: str) -> DocumentReport:
        audit = await self._documents.verify(name)
        opened = self._documents.opened.get(name)
        return DocumentReport(
            name=name,
            digest=audit.digest,
            updates=await self._named(audit.updates),
            refused=0 if opened is None else sum(opened.counters.values()),
            forks=audit.forks,
        )

    async def _named(self, heads: Mapping[PeerId, int]) -> dict[str, int]:
        names = await self._names()
        return {
            f"{names.get(str(peer), '')} {peer.short}".strip(): count
            for peer, count in heads.items()
        }
