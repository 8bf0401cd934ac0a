"""A peer's home: what it keeps, and what it refuses."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from lattica.clock import ManualClock
from lattica.errors import (
    GrantError,
    HomeError,
    HomeInUseError,
    KeyFileError,
    TicketExpiredError,
    TicketForeignError,
)
from lattica.home import FOUNDER_GRANT, Home
from lattica.identity import grants, tickets
from lattica.identity.keys import Identity
from lattica.identity.tickets import Contact


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def home(tmp_path: Path, clock: ManualClock) -> Home:
    return Home(tmp_path / "home", clock=clock)


def ticket_of(home: Home, clock: ManualClock, valid_for: float = 60.0) -> str:
    authority = home.authority()
    assert authority is not None
    contact = Contact(home.identity().peer_id, ("127.0.0.1:4000",))
    return tickets.issue(authority, [contact], now=clock.time(), valid_for=valid_for).encode()


def founded(home: Home) -> grants.Membership:
    home.directory.mkdir(parents=True, exist_ok=True)
    return home.membership(home.identity())


def test_key_is_private_and_kept(home: Home) -> None:
    home.directory.mkdir()
    first = home.identity()
    key = home.directory / "identity.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert home.identity().peer_id == first.peer_id


def test_key_that_others_can_read_is_refused_with_the_cure(home: Home) -> None:
    home.directory.mkdir()
    home.identity()
    key = home.directory / "identity.key"
    key.chmod(0o644)
    with pytest.raises(KeyFileError, match=f"chmod 600 {key}"):
        home.identity()


def test_founding_gives_every_scope_and_survives_a_restart(home: Home, clock: ManualClock) -> None:
    membership = founded(home)
    identity = home.identity()
    clock.advance(FOUNDER_GRANT * 2)
    again = home.membership(identity)
    assert again.mesh == membership.mesh
    scopes = grants.verify_chain(
        again.chain, mesh=again.mesh, subject=identity.peer_id, now=clock.time()
    )
    assert scopes == frozenset(grants.MEMBER)


def test_joining_by_ticket_is_remembered(home: Home, tmp_path: Path, clock: ManualClock) -> None:
    founded(home)
    other = Home(tmp_path / "other", clock=clock)
    other.directory.mkdir()
    identity = other.identity()
    joined = other.membership(identity, ticket_of(home, clock))
    assert other.membership(identity) == joined
    assert other.contacts() == [Contact(home.identity().peer_id, ("127.0.0.1:4000",))]
    assert other.authority() is None


def test_expired_ticket_and_expired_membership(
    home: Home, tmp_path: Path, clock: ManualClock
) -> None:
    founded(home)
    other = Home(tmp_path / "other", clock=clock)
    other.directory.mkdir()
    identity = other.identity()
    ticket = ticket_of(home, clock, valid_for=60)
    other.membership(identity, ticket)
    clock.advance(61)
    with pytest.raises(TicketExpiredError, match="lattica invite"):
        other.membership(identity, ticket)
    with pytest.raises(GrantError, match="lattica join"):
        other.membership(identity)


def test_ticket_of_another_mesh_is_refused_and_changes_nothing(
    home: Home, tmp_path: Path, clock: ManualClock
) -> None:
    before = founded(home)
    foreign = Home(tmp_path / "foreign", clock=clock)
    founded(foreign)
    with pytest.raises(TicketForeignError, match="--home"):
        home.membership(home.identity(), ticket_of(foreign, clock))
    assert home.membership(home.identity()).mesh == before.mesh
    assert home.contacts() == []


def test_one_running_peer_per_home(home: Home) -> None:
    with home.locked(), pytest.raises(HomeInUseError, match="--home"), home.locked():
        pass
    with home.locked():
        pass


def test_the_lock_goes_with_a_killed_process(home: Home) -> None:
    program = (
        "import sys, pathlib; from lattica.home import Home\n"
        "lock = Home(pathlib.Path(sys.argv[1])).locked(); lock.__enter__()\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(home.directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(HomeInUseError), home.locked():
            pass
        holder.kill()
    with home.locked():
        pass


def test_a_home_that_cannot_be_made(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    with pytest.raises(HomeError, match="--home"), Home(blocker / "home").locked():
        pass


def test_damaged_membership_is_told(home: Home, clock: ManualClock) -> None:
    home.directory.mkdir()
    (home.directory / "membership").write_bytes(os.urandom(40))
    with pytest.raises(HomeError, match="join again"):
        home.membership(Identity.generate())


def test_damaged_contacts_are_forgotten(home: Home) -> None:
    home.directory.mkdir()
    (home.directory / "contacts").write_bytes(b"\xc1 not msgpack")
    assert home.contacts() == []


def test_port_is_remembered(home: Home) -> None:
    home.directory.mkdir()
    assert home.port == 0
    home.port = 4711
    assert home.port == 4711
