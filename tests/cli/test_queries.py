"""What `lattica status` says in words."""

from __future__ import annotations

from lattica.cli.queries import packets
from lattica.path.interface import PathStats


def stats(dropped: dict[str, int]) -> PathStats:
    return PathStats(
        datagrams_in=65,
        bytes_in=0,
        reads=0,
        datagrams_out=61,
        bytes_out=0,
        writes=0,
        queued=0,
        receive_buffer=4096 * 1024,
        send_buffer=0,
        overruns=0,
        coalesced=True,
        segmented=True,
        dropped=dropped,
    )


def test_searching_how_large_datagrams_may_be_is_no_trouble() -> None:
    assert packets(stats({"send:EMSGSIZE": 32})).endswith(" 0 dropped or refused")


def test_what_was_dropped_is_told() -> None:
    told = packets(stats({"send:EMSGSIZE": 32, "stray": 3, "send:EPERM": 1}))
    assert told.endswith(" 4 dropped or refused")
