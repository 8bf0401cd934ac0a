"""A peer that also listens on TCP, and one that reaches it that way only."""

from __future__ import annotations

from pathlib import Path

import anyio
import msgspec
import pytest

from lattica.cli.main import build_parser
from lattica.cli.options import peer_options
from lattica.path.addresses import TCP, split, strip_scheme
from lattica.peer import Peer, PeerOptions

pytestmark = pytest.mark.anyio

IDLE = PeerOptions(cpus=0, memory=0)


async def test_joining_over_tcp_alone(tmp_path: Path) -> None:
    first = msgspec.structs.replace(IDLE, home=tmp_path / "first", tcp="")
    async with Peer.open(first) as host:
        over_tcp = tuple(each for each in host.addresses if each.startswith(TCP))
        udp_port = split(host.addresses[0])[1]
        assert over_tcp == (f"tcp:127.0.0.1:{udp_port}",)
        ticket = host.invite()
        contact = msgspec.structs.replace(ticket.contacts[0], addresses=over_tcp)
        ticket = msgspec.structs.replace(ticket, contacts=(contact,))
        second = msgspec.structs.replace(IDLE, home=tmp_path / "second", ticket=ticket.encode())
        with anyio.fail_after(30):
            async with Peer.open(second) as guest:
                link = guest.endpoint.find(host.identity.peer_id)
                assert link is not None
                assert link.address == over_tcp[0]
                nodes = await guest.core.nodes()
                assert host.identity.peer_id in {node.peer for node in nodes}


async def test_without_the_option_a_peer_does_not_listen_on_tcp(tmp_path: Path) -> None:
    async with Peer.open(msgspec.structs.replace(IDLE, home=tmp_path)) as peer:
        assert not any(each.startswith(TCP) for each in peer.addresses)


async def test_an_address_of_its_own(tmp_path: Path) -> None:
    options = msgspec.structs.replace(IDLE, home=tmp_path, tcp="127.0.0.1:0")
    async with Peer.open(options) as peer:
        assert split(strip_scheme(peer.addresses[-1]))[1] > 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [([], None), (["--tcp"], ""), (["--tcp", "0.0.0.0:443"], "0.0.0.0:443")],
)
def test_the_option_on_the_command_line(
    tmp_path: Path, words: list[str], expected: str | None
) -> None:
    words = ["up", "--home", str(tmp_path), *words]
    assert peer_options(build_parser(words).parse_args(words)).tcp == expected
