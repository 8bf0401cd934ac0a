"""Eight processes on loopback: real sockets, real links, and two that are killed."""

from __future__ import annotations

import contextlib
import secrets
import signal

import anyio
import pytest

from bench.mesh import Where, engines, link_config, member
from bench.processes import Other, other
from lattica.dht import Dht, dht_key
from lattica.errors import NameTakenError
from lattica.identity import wire
from lattica.identity.keys import Identity
from lattica.identity.tickets import Contact

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
OTHERS = 7
KEYS = [dht_key("test", str(number)) for number in range(10)]


async def test_eight_processes_keep_what_is_said_and_leased_when_two_are_killed() -> None:
    seed = secrets.token_bytes(32)
    async with contextlib.AsyncExitStack() as stack:
        others: list[Other] = []
        entry: Where | None = None
        for _ in range(OTHERS):
            words = () if entry is None else (wire.encode(entry).hex(),)
            process = await stack.enter_async_context(other("bench.dht_peer", seed.hex(), *words))
            told = wire.decode(bytes.fromhex(await process.line()), Where)
            entry = entry or told
            others.append(process)
        assert entry is not None
        dhts = []
        for _ in range(2):  # in this process
            links, rpc = await stack.enter_async_context(
                member(Identity(seed), link_config(engines("both")[-1]))
            )
            addresses = links.addresses
            dht = Dht(rpc, links.identity, addresses=lambda addresses=addresses: addresses)
            dht.register_kind("note", bytes)
            await stack.enter_async_context(dht)
            await dht.bootstrap([Contact(entry.peer, (entry.address,))])
            dhts.append(dht)
        writer, reader = dhts
        with anyio.fail_after(30.0):
            for key in KEYS:
                assert await writer.put(key, "note", key) == OTHERS + 1
            holding = await writer.claim(KEYS[0])
            for process in others[-2:]:
                process.signal(signal.SIGKILL)
            for key in KEYS:
                (found,) = await reader.get(key, "note", bytes)
                assert (found.author, found.value) == (writer.local, key)
            assert holding.is_held
            with pytest.raises(NameTakenError) as caught:
                await reader.claim(KEYS[0])
            assert caught.value.holder == writer.local
            await holding.release()
            assert (await reader.claim(KEYS[0])).is_held
