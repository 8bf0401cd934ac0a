"""What this peer keeps: values it owns, and those it holds for others' refs in its processes.

No input or output here: `ObjectTable` is told what happened and when.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from lattica.actors.messages import ObjectId, Outcome, Value
from lattica.identity.keys import PeerId


class Slot:
    """One object: its outcome once there is one, and who still holds it."""

    __slots__ = ("_callbacks", "borrowers", "expected", "local", "outcome")

    def __init__(self) -> None:
        self.outcome: Outcome | None = None
        self.local = 0
        self.borrowers: dict[PeerId, float] = {}  # until when, on the table's clock
        self.expected = False  # something here is at work on it
        self._callbacks: list[Callable[[], None]] = []

    @property
    def nbytes(self) -> int:
        """Size of the value in bytes; 0 while there is none."""
        return self.outcome.nbytes if isinstance(self.outcome, Value) else 0

    def when_ready(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` once there is an outcome, now if there is one; returns an undo."""
        if self.outcome is not None:
            callback()
            return _nothing
        self._callbacks.append(callback)

        def undo() -> None:
            if callback in self._callbacks:
                self._callbacks.remove(callback)

        return undo

    def settle(self, outcome: Outcome) -> None:
        """Set the outcome; the first one stands."""
        if self.outcome is not None:
            return
        self.outcome = outcome
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()


class ObjectTable:
    """All objects that this peer owns or borrows, by id."""

    def __init__(
        self,
        local: PeerId,
        *,
        on_borrow: Callable[[ObjectId], None],
        on_return: Callable[[ObjectId], None],
        on_free: Callable[[ObjectId], None],
    ) -> None:
        """`on_borrow`/`on_return`: the first and last local ref of another's object."""
        self._local = local
        self._slots: dict[ObjectId, Slot] = {}
        self._on_borrow = on_borrow
        self._on_return = on_return
        self._on_free = on_free
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._slots)

    def find(self, object_id: ObjectId) -> Slot | None:
        """The object's slot, if anybody holds the object."""
        return self._slots.get(object_id)

    def borrowed(self) -> list[ObjectId]:
        """The ids that other peers own."""
        return [object_id for object_id in self._slots if object_id.owner != self._local]

    def retain(self, object_id: ObjectId) -> Slot:
        """One more local reference."""
        slot = self._slots.get(object_id)
        if slot is None:
            slot = self._slots[object_id] = Slot()
            if object_id.owner != self._local:
                self._on_borrow(object_id)
        slot.local += 1
        return slot

    def expect(self, object_id: ObjectId) -> None:
        """An object of ours will be settled in time: a wait for it is not in vain."""
        if (slot := self._slots.get(object_id)) is not None:
            slot.expected = True

    def is_lost(self, object_id: ObjectId) -> bool:
        """Whether an object of ours was freed, or never made: nothing will settle it."""
        slot = self._slots.get(object_id)
        if object_id.owner != self._local:
            return False
        return slot is None or (slot.outcome is None and not slot.expected)

    def release(self, object_id: ObjectId) -> None:
        """One local reference less."""
        slot = self._slots.get(object_id)
        if slot is None or slot.local == 0:
            return
        slot.local -= 1
        self._free_if_unused(object_id, slot)

    def settle(self, object_id: ObjectId, outcome: Outcome) -> None:
        """Set an object's outcome. Nobody holds it: the outcome is dropped."""
        slot = self._slots.get(object_id)
        if slot is None or slot.outcome is not None:
            return
        if isinstance(outcome, Value):
            self.nbytes += outcome.nbytes
            for ref in outcome.refs:
                self.retain(ref)
        slot.settle(outcome)

    def lend(self, object_id: ObjectId, peer: PeerId, until: float) -> bool:
        """Note that a peer holds an object that is ours; False: there is none."""
        slot = self._slots.get(object_id)
        if slot is None or object_id.owner != self._local:
            return False
        slot.borrowers[peer] = until
        return True

    def take_back(self, object_id: ObjectId, peer: PeerId) -> None:
        """A peer no longer holds an object."""
        slot = self._slots.get(object_id)
        if slot is not None and slot.borrowers.pop(peer, None) is not None:
            self._free_if_unused(object_id, slot)

    def expire(self, now: float) -> None:
        """Forget borrowers that have not renewed."""
        for object_id, slot in list(self._slots.items()):
            if slot.borrowers:
                slot.borrowers = {
                    peer: until for peer, until in slot.borrowers.items() if until > now
                }
                self._free_if_unused(object_id, slot)

    def _free_if_unused(self, object_id: ObjectId, slot: Slot) -> None:
        if slot.local or slot.borrowers or self._slots.get(object_id) is not slot:
            return
        del self._slots[object_id]
        if object_id.owner != self._local:
            self._on_return(object_id)
        else:
            self._on_free(object_id)
        if isinstance(slot.outcome, Value):
            self.nbytes -= slot.outcome.nbytes
            self._release_all(slot.outcome.refs)

    def _release_all(self, ids: Iterable[ObjectId]) -> None:
        for object_id in ids:
            self.release(object_id)


def _nothing() -> None:
    pass
