"""A peer's directory: its keys, its membership, and the contacts it met.

identity.key   the peer's private key (0600)
mesh.key       the mesh's authority key, only where the mesh was founded (0600)
membership     the mesh and the grants that a ticket gave
contacts       where other peers were last seen
port           the UDP port of the last run, taken again if it is free
store/ logs/   documents and blocks; workers' output
lock           held while a peer runs
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import platformdirs

from lattica.clock import Clock, SystemClock
from lattica.errors import GrantError, HomeError, HomeInUseError, TicketForeignError
from lattica.files import replace
from lattica.identity import grants, tickets, wire
from lattica.identity.keys import Identity
from lattica.identity.tickets import Contact

FOUNDER_GRANT = 30 * tickets.DAY  # renewed at every start of the founder


class Home:
    """The directory of one peer."""

    def __init__(self, directory: Path, *, clock: Clock | None = None) -> None:
        self.directory = directory
        self._clock = clock or SystemClock()

    @classmethod
    def default(cls) -> Home:
        """Where this user's peer lives: `$LATTICA_HOME`, or the platform's data directory."""
        chosen = os.environ.get("LATTICA_HOME")
        return cls(Path(chosen) if chosen else Path(platformdirs.user_data_dir("lattica")))

    @property
    def store(self) -> Path:
        """Documents and blocks."""
        return self.directory / "store"

    @property
    def logs(self) -> Path:
        """What workers print."""
        return self.directory / "logs"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the home for one running peer.

        Raises:
            HomeInUseError: another process runs a peer here.
            HomeError: the directory cannot be made or written.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise HomeError(
                f"cannot use {self.directory} as a peer's home: {error}; choose one with --home"
            ) from None
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise HomeInUseError(
                    f"another process runs the peer of {self.directory}; "
                    "stop it, or choose another home with --home"
                ) from None
            yield
        finally:
            os.close(fd)

    def identity(self) -> Identity:
        """The peer's key, made on first use.

        Raises:
            KeyFileError: malformed, or readable by others.
        """
        return Identity.load_or_create(self.directory / "identity.key")

    def authority(self) -> Identity | None:
        """The mesh's authority key, if this is where the mesh was founded."""
        path = self.directory / "mesh.key"
        return Identity.load(path) if path.exists() else None

    def membership(self, identity: Identity, ticket: str | None = None) -> grants.Membership:
        """The peer's membership: by `ticket`, else as stored, else of a new mesh founded here.

        Raises:
            TicketMangledError, TicketExpiredError: see `lattica.identity.tickets`.
            TicketForeignError: this home belongs to another mesh than the ticket.
            GrantError: the stored grant has expired.
        """
        stored = self._stored_membership(identity)
        if ticket is not None:
            return self._join(identity, tickets.parse(ticket), stored)
        if stored is None:
            Identity.generate().save(self.directory / "mesh.key")
            stored = self._stored_membership(identity)
            assert stored is not None
        try:
            grants.verify_chain(
                stored.chain,
                mesh=stored.mesh,
                subject=identity.peer_id,
                now=self._clock.time(),
            )
        except GrantError as error:
            raise GrantError(
                f"{error}; ask a member for a ticket and run: lattica join TICKET"
            ) from None
        return stored

    def contacts(self) -> list[Contact]:
        """Where other peers were last seen."""
        raw = self._read("contacts")
        return list(raw) if raw else []

    def remember(self, contacts: Sequence[Contact]) -> None:
        """Keep contacts for the next start."""
        self._write("contacts", wire.encode(tuple(contacts)))

    @property
    def port(self) -> int:
        """The UDP port of the last run; 0 if there was none."""
        try:
            return int((self.directory / "port").read_text("ascii"))
        except (OSError, ValueError):
            return 0

    @port.setter
    def port(self, value: int) -> None:
        self._write("port", str(value).encode())

    def _join(
        self, identity: Identity, ticket: tickets.Ticket, stored: grants.Membership | None
    ) -> grants.Membership:
        if stored is not None and stored.mesh != ticket.mesh:
            raise TicketForeignError(
                f"{self.directory} belongs to mesh {stored.mesh.short}, the ticket to mesh "
                f"{ticket.mesh.short}; use another home for it: --home DIR"
            )
        membership = ticket.redeem(identity.peer_id, now=self._clock.time())
        self._write("membership", wire.encode(membership))
        known = {contact.peer: contact for contact in self.contacts()}
        known.update({contact.peer: contact for contact in ticket.contacts})
        self.remember(list(known.values()))
        return membership

    def _stored_membership(self, identity: Identity) -> grants.Membership | None:
        authority = self.authority()
        if authority is not None:
            founder = grants.issue(
                authority,
                mesh=authority.peer_id,
                subject=identity.peer_id,
                scopes=grants.MEMBER,
                expires=self._clock.time() + FOUNDER_GRANT,
            )
            return grants.Membership(authority.peer_id, (founder,))
        try:
            raw = (self.directory / "membership").read_bytes()
        except FileNotFoundError:
            return None
        try:
            return wire.decode(raw, grants.Membership)
        except (msgspec.MsgspecError, ValueError) as error:
            raise HomeError(
                f"{self.directory / 'membership'} is damaged ({error}); "
                "remove it and join again with a ticket"
            ) from None

    def _read(self, name: str) -> tuple[Contact, ...] | None:
        try:
            return wire.decode((self.directory / name).read_bytes(), tuple[Contact, ...])
        except (OSError, msgspec.MsgspecError, ValueError):
            return None  # a cache: it is learned again

    def _write(self, name: str, data: bytes) -> None:
        try:
            replace(self.directory / name, data)
        except OSError as error:
            raise HomeError(f"cannot write {self.directory / name}: {error}") from None
