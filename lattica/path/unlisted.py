"""What the carriers share that have no addresses of their own: nobody dials them by a text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from lattica.errors import AddressError
from lattica.path.interface import PathStats, VirtualAddress

NOTHING = PathStats(
    datagrams_in=0,
    bytes_in=0,
    reads=0,
    datagrams_out=0,
    bytes_out=0,
    writes=0,
    queued=0,
    receive_buffer=0,
    send_buffer=0,
    overruns=0,
    coalesced=False,
    segmented=False,
    dropped={},
)
_ADDED_UP = (
    "datagrams_in",
    "bytes_in",
    "reads",
    "datagrams_out",
    "bytes_out",
    "writes",
    "queued",
    "overruns",
)


def added_up(base: PathStats, others: Iterable[PathStats], dropped: Counter[str]) -> PathStats:
    """The sums; buffers and batching are those of `base`."""
    counted = (base, *others)
    sums = {name: sum(getattr(each, name) for each in counted) for name in _ADDED_UP}
    return msgspec.structs.replace(base, dropped=dict(dropped), **sums)


class UnlistedPath:
    """Part of `lattica.path.interface.Path`. Addresses come from packets, or from the owner."""

    def __init__(self) -> None:
        self._counters: Counter[str] = Counter()

    @property
    def addresses(self) -> tuple[str, ...]:
        """None: see `Path`."""
        return ()

    async def resolve(self, address: str) -> VirtualAddress:
        """See `Path`.

        Raises:
            AddressError: always.
        """
        raise AddressError(f"{address!r} is not a text that can be dialled")

    def spray(self, datagram: bytes, addresses: Sequence[str]) -> None:
        """Nobody guesses here: see `Path`."""
        del datagram
        self._counters["sent_nowhere"] += len(addresses)

    def datagram_limit(self, address: VirtualAddress) -> int | None:
        """Not known before it is probed: see `Path`."""
        del address
        return None

    def can_probe(self, address: VirtualAddress) -> bool:
        """See `Path`."""
        del address
        return True

    def window_limit(self, address: VirtualAddress) -> int | None:
        """Not known: see `Path`."""
        del address
        return None
