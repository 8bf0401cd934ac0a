"""The borrower's side of objects that other peers own: fetch, hold, give back."""

from __future__ import annotations

import asyncio
from collections import defaultdict

import anyio.abc

from lattica.actors.directory import Directory
from lattica.actors.messages import Failure, ObjectId, Value
from lattica.actors.object_service import MAX_POLL, TRUSTED, ObjectService
from lattica.actors.objects import ObjectTable, Slot
from lattica.errors import CallLostError, LatticaError, LinkError
from lattica.identity.keys import PeerId
from lattica.rpc import Rpc

CALL_TIMEOUT = 10.0  # seconds, of the small messages
TRANSFER_TIMEOUT = 3600.0  # seconds; a lost link ends a fetch long before
ATTEMPTS = 3  # a link that breaks may come back


class Borrower:
    """Fetches what local refs need and tells owners what is held here."""

    def __init__(
        self, rpc: Rpc, directory: Directory, tasks: anyio.abc.TaskGroup, lease: float
    ) -> None:
        """`lease` is how long an owner keeps an object for us without a renewal, in seconds."""
        self._rpc = rpc
        self._directory = directory
        self._tasks = tasks
        self._lease = lease
        self._fetching: dict[ObjectId, Slot] = {}
        self._dirty: dict[PeerId, dict[ObjectId, bool]] = defaultdict(dict)
        self.table: ObjectTable

    def borrowed(self, object_id: ObjectId) -> None:
        """The first local ref of another peer's object appeared."""
        self._note(object_id, True)

    def returned(self, object_id: ObjectId) -> None:
        """The last one is gone."""
        self._note(object_id, False)

    def fetch(self, object_id: ObjectId) -> None:
        """Start fetching an object that somebody waits for, unless that has been done."""
        slot = self.table.find(object_id)
        if slot is None or slot.outcome is not None or self._fetching.get(object_id) is slot:
            return
        self._fetching[object_id] = slot
        self._tasks.start_soon(self._fetch, object_id, slot)

    async def renew_forever(self) -> None:
        """Renew what is held, three times within each lease."""
        while True:
            await asyncio.sleep(self._lease / 3)
            owners: dict[PeerId, list[ObjectId]] = defaultdict(list)
            for object_id in self.table.borrowed():
                owners[object_id.owner].append(object_id)
            for owner, ids in owners.items():
                self._tasks.start_soon(self._tell, owner, ids, [])

    def _note(self, object_id: ObjectId, held: bool) -> None:
        # What happens within one turn of the loop travels in one message.
        owner = object_id.owner
        if not self._dirty[owner]:
            self._tasks.start_soon(self._flush, owner)
        self._dirty[owner][object_id] = held

    async def _flush(self, owner: PeerId) -> None:
        notes = self._dirty.pop(owner, {})
        held = [object_id for object_id, is_held in notes.items() if is_held]
        returned = [object_id for object_id, is_held in notes.items() if not is_held]
        await self._tell(owner, held, returned)

    async def _tell(self, owner: PeerId, held: list[ObjectId], returned: list[ObjectId]) -> None:
        stub = self._stub(owner, CALL_TIMEOUT)
        try:
            await self._directory.reach(owner)
            if held:
                await stub.borrow(held)
            if returned:
                await stub.give_back(returned)
        except LatticaError:
            # Nothing is lost by it: a fetch says that the owner is gone, and what is not
            # given back expires there.
            return

    async def _fetch(self, object_id: ObjectId, slot: Slot) -> None:
        try:
            outcome = await self._ask(object_id)
        finally:
            self._fetching.pop(object_id, None)
        if self.table.find(object_id) is slot:
            self.table.settle(object_id, outcome)

    async def _ask(self, object_id: ObjectId) -> Value | Failure:
        owner = object_id.owner
        stub = self._stub(owner, TRANSFER_TIMEOUT)
        attempt = 0
        while True:
            try:
                link = await self._directory.reach(owner)
                if not TRUSTED & link.remote.scopes:
                    return Failure(
                        "refused",
                        f"the value belongs to {owner.short}, which holds no grant of this mesh; "
                        "it is not unpickled",
                    )
                outcome = await stub.fetch(object_id, MAX_POLL)
            except (LinkError, CallLostError) as error:
                attempt += 1
                if attempt >= ATTEMPTS or not isinstance(error, CallLostError):
                    return self._lost(owner, error)
                await asyncio.sleep(0.2 * attempt)
            except LatticaError as error:
                return self._lost(owner, error)
            else:
                if outcome is not None:
                    return outcome

    def _stub(self, owner: PeerId, timeout: float) -> ObjectService:
        return self._rpc.client(owner, ObjectService, "objects", timeout=timeout)

    def _lost(self, owner: PeerId, error: LatticaError) -> Failure:
        name = self._directory.name_of(owner)
        return Failure(
            "object_lost",
            f"the value's owner {name} is gone: {error}",
            peer=owner,
            peer_name=name,
        )
