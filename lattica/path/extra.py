"""More sockets than one, for a while: a NAT that gives each destination its own port has to
be asked many times until one of its ports is guessed (birthday probing).

Each socket is a path of its own. Those on which a link has come to stand are kept, the others
are closed when the attempt is over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from lattica.errors import PathError
from lattica.path.interface import Path, PathStats, Receiver, VirtualAddress
from lattica.path.unlisted import NOTHING, UnlistedPath, added_up

SCHEME = "extra"
MAX_SOCKETS = 512


class ExtraPaths(UnlistedPath):
    """A carrier of `lattica.path.combined.CombinedPath` over any number of paths."""

    def __init__(self, make: Callable[[], Path]) -> None:
        """`make` binds a new path, to a port of the system's choice."""
        super().__init__()
        self._make = make
        self._receiver: Receiver | None = None
        self._members: dict[int, _Member] = {}
        self._by_address: dict[VirtualAddress, tuple[_Member, VirtualAddress]] = {}
        self._next = 1

    def __len__(self) -> int:
        """How many sockets are open."""
        return len(self._members)

    def open(self, count: int) -> list[int]:
        """Up to `count` more sockets, by number; fewer where the system gives no more."""
        made: list[int] = []
        if self._receiver is None:
            return made
        while len(made) < count and len(self._members) < MAX_SOCKETS:
            try:
                path = self._make()
            except PathError:
                self._counters["extra:no_socket"] += 1
                break
            number, self._next = self._next, self._next + 1
            member = _Member(self, number, path)
            self._members[number] = member
            path.start(member)
            made.append(number)
        return made

    def spray_from(self, number: int, datagram: bytes, addresses: Sequence[str]) -> None:
        """Send from one socket to each address, without remembering them."""
        member = self._members.get(number)
        if member is not None:
            member.path.spray(datagram, addresses)

    def close_idle(self, numbers: Sequence[int]) -> None:
        """Close those of the sockets that no link holds."""
        for number in numbers:
            member = self._members.get(number)
            if member is not None:
                member.is_busy = False
                if not member.holds:
                    self._close(member)

    def address_of(self, member: _Member, below: VirtualAddress) -> VirtualAddress:
        """The address that stands for what is seen at `below` from one of the sockets."""
        made = member.seen.get(below)
        if made is None:
            made = VirtualAddress(SCHEME, self._next)
            self._next += 1
            if len(member.seen) >= 64:  # strangers' packets; those of a link are few
                self._forget(member)
            member.seen[below] = made
            self._by_address[made] = (member, below)
        return made

    # ------------------------------------------------------------ the Path interface

    @property
    def counters(self) -> Counter[str]:
        return sum((each.path.counters for each in self._members.values()), self._counters)

    def statistics(self) -> PathStats:
        members = (each.path.statistics() for each in self._members.values())
        return added_up(NOTHING, members, self.counters)

    def start(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def close(self) -> None:
        self._receiver = None
        for member in tuple(self._members.values()):
            self._close(member)

    def send(self, datagrams: Sequence[bytes], address: VirtualAddress) -> None:
        found = self._by_address.get(address)
        if found is None:
            self._counters["sent_nowhere"] += len(datagrams)
        else:
            found[0].path.send(datagrams, found[1])

    def describe(self, address: VirtualAddress) -> str:
        found = self._by_address.get(address)
        return "forgotten" if found is None else found[0].path.describe(found[1])

    def hold(self, address: VirtualAddress) -> None:
        found = self._by_address.get(address)
        if found is not None:
            member, below = found
            member.holds[address] = member.holds.get(address, 0) + 1
            member.path.hold(below)

    def release(self, address: VirtualAddress) -> None:
        found = self._by_address.get(address)
        if found is None:
            return
        member, below = found
        member.path.release(below)
        left = member.holds.get(address, 0) - 1
        if left > 0:
            member.holds[address] = left
            return
        member.holds.pop(address, None)
        if not member.holds and not member.is_busy:
            self._close(member)

    # ------------------------------------------------------------ inside

    def _forget(self, member: _Member) -> None:
        for below, address in tuple(member.seen.items()):
            if address not in member.holds:
                del member.seen[below]
                del self._by_address[address]

    def _close(self, member: _Member) -> None:
        if self._members.pop(member.number, None) is None:
            return
        for address in member.seen.values():
            self._by_address.pop(address, None)
        member.path.close()

    @property
    def receiver(self) -> Receiver | None:
        """Who takes what arrives."""
        return self._receiver


class _Member:
    """One socket: the receiver of its path."""

    def __init__(self, owner: ExtraPaths, number: int, path: Path) -> None:
        self.number = number
        self.path = path
        self.seen: dict[VirtualAddress, VirtualAddress] = {}
        self.holds: dict[VirtualAddress, int] = {}
        self.is_busy = True  # an attempt runs that will close it
        self._owner = owner

    def packets_received(self, packets: Sequence[tuple[bytes, VirtualAddress]]) -> None:
        """See `Receiver`."""
        if (receiver := self._owner.receiver) is not None:
            receiver.packets_received(self._renamed(packets))

    def probes_received(self, probes: Sequence[tuple[bytes, VirtualAddress]]) -> None:
        """See `Receiver`."""
        if (receiver := self._owner.receiver) is not None:
            receiver.probes_received(self._renamed(probes))

    def path_refused(self, address: VirtualAddress) -> None:
        """See `Receiver`."""
        if (receiver := self._owner.receiver) is not None and address in self.seen:
            receiver.path_refused(self.seen[address])

    def path_too_big(self, address: VirtualAddress, size: int) -> None:
        """See `Receiver`."""
        if (receiver := self._owner.receiver) is not None and address in self.seen:
            receiver.path_too_big(self.seen[address], size)

    def _renamed(
        self, batch: Sequence[tuple[bytes, VirtualAddress]]
    ) -> list[tuple[bytes, VirtualAddress]]:
        return [(each, self._owner.address_of(self, source)) for each, source in batch]
