"""What must be left once all calls have their outcome: nothing.

The one place in these tests that looks inside: a leak has no outside but the memory.
"""

from __future__ import annotations

import asyncio

from lattica.link.quic_link import QuicLink
from lattica.rpc import Rpc
from lattica.rpc.session import Session
from tests.faults.stack import Peer


def leftovers(rpc: Rpc) -> dict[str, int]:
    """What a peer still holds for calls, by where it does."""
    found = {"dials": len(rpc._dials)}
    for index, session in enumerate(rpc._sessions.values()):
        for name, count in _of_session(session).items():
            found[f"session {index}: {name}"] = count
    return {name: count for name, count in found.items() if count}


def _of_session(session: Session) -> dict[str, int]:
    channel, serving = session.channel, session.serving
    held = {
        "calls": len(session.calls),
        "served": len(serving),
        "arguments": serving.held,
        "early bodies": len(serving._early),
        "early items": len(serving._early_items),
        "early bytes": channel.receiving._early,
        "uploads without a place": len(channel.sending._placeless),
        "sources": len(channel.sending._sources),
        "sinks": len(channel.receiving._sinks),
        "half headers": len(channel.receiving._opening),
        "waiting bodies": len(channel.sending._bodies),
        "bodies under way": len(channel.sending._started) + channel.sending._started_bytes,
        "receivers": len(channel.receiving._receiving) + len(channel.receiving._delayed),
        "senders of control": len(channel.control._waiting) + channel.control._resuming,
    }
    link = session.link
    if isinstance(link, QuicLink):
        held |= _of_link(link)
    return held


def _of_link(link: QuicLink) -> dict[str, int]:
    engine = link._engine
    own = 2  # stream 0 and the control stream
    return {
        "streams of the engine": max(0, engine.statistics().streams - own),
        "unsent bytes": engine.unsent(),
        "waiting to be sent": len(link._outbox) + len(link._outbox._data),
    }


async def settle(*peers: Peer, within: float = 10.0) -> None:
    """Wait until nothing is left over at any of the peers.

    Raises:
        AssertionError: something stays.
    """
    left: dict[str, dict[str, int]] = {}
    loop = asyncio.get_running_loop()
    end = loop.time() + within
    while loop.time() < end:
        left = {peer.name: found for peer in peers if (found := leftovers(peer.rpc))}
        if not left:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{within:g} s after the last outcome there are still {left}")
