"""One dial to a peer, shared by all who want the link: its addresses tried in a stagger."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Protocol

import anyio

from lattica.errors import (
    AddressError,
    LinkError,
    LinkLostError,
    RelayError,
    UnreachableError,
    WrongPeerError,
)
from lattica.identity.keys import PeerId
from lattica.link.book import AddressBook
from lattica.link.quic_link import QuicLink
from lattica.link.refusals import DuplicateLinkError
from lattica.path import addresses as text

logger = logging.getLogger("lattica.link")

STAGGER = 0.25  # seconds between addresses, as in RFC 8305 §8
RELAY_DELAY = 0.05  # seconds that the first address is tried before the first relay
GRACE = 1.0  # seconds for the other addresses once one has refused


class Dialer(Protocol):
    """What a dial needs of its endpoint."""

    async def start_link(self, peer: PeerId, address: str) -> QuicLink:
        """Send the first packet to one address.

        Raises:
            AddressError: the address cannot be used.
        """
        ...

    def pending(self, peer: PeerId) -> QuicLink | None:
        """The peer's own dial, if it is about to succeed."""
        ...

    def dial_over(self) -> None:
        """A dial has ended: what waited for it can be decided."""
        ...


class Dial:
    """Ends with a link, whichever way it came about, or with an error."""

    def __init__(
        self, peer: PeerId, addresses: Sequence[str], *, timeout: float, pause: float = 0.0
    ) -> None:
        """`timeout` counts from the end of the `pause`; both in seconds."""
        self.peer = peer
        self._addresses = tuple(addresses)
        self._timeout = timeout
        self._pause = pause
        self._hurry = anyio.Event()
        self._scope = anyio.CancelScope()
        self._done = anyio.Event()
        self._link: QuicLink | None = None
        self._errors: list[LinkError] = []
        self._reasons: dict[str, str] = {}  # by address, where there is one
        self._running = 0

    async def wait(self) -> QuicLink:
        """The link.

        Raises:
            LinkError: see `Links.connect`.
        """
        await self._done.wait()  # bounded: `run` ends at the timeout
        if self._link is None:
            # Each waiter raises its own, with its own traceback.
            raise copy.copy(self.error())
        return self._link

    @property
    def link(self) -> QuicLink | None:
        """What it has led to."""
        return self._link

    def hurry(self, addresses: Sequence[str]) -> None:
        """There is news of the peer: a dial that has not begun yet begins now, with these."""
        if not self._hurry.is_set():
            self._addresses = tuple(addresses)
            self._hurry.set()

    def succeed(self, link: QuicLink) -> None:
        """A link to the peer is up."""
        self._link = link
        self._done.set()
        self._scope.cancel()

    async def run(self, dialer: Dialer, book: AddressBook) -> None:
        """Try every address. `book` forgets those where another peer answers."""
        try:
            with self._scope:
                with anyio.move_on_after(self._pause):
                    await self._hurry.wait()
                self._hurry.set()  # the addresses are fixed from now on
                self._scope.deadline = anyio.current_time() + self._timeout
                if (pending := dialer.pending(self.peer)) is not None:
                    with anyio.move_on_after(GRACE):
                        await pending.settled.wait()
                async with anyio.create_task_group() as tasks:
                    for address, delay in _staggered(self._addresses):
                        self._running += 1
                        tasks.start_soon(self._attempt, dialer, book, address, delay)
        finally:
            self._done.set()

    async def _attempt(self, dialer: Dialer, book: AddressBook, address: str, delay: float) -> None:
        await anyio.sleep(delay)
        link: QuicLink | None = None
        try:
            link = await dialer.start_link(self.peer, address)
            await link.settled.wait()
            if link.error is not None:
                raise link.error
        except AddressError as error:
            self._unreachable(address, error)
        except DuplicateLinkError:
            # The link that stays is the peer's own dial: it is on its way to us.
            await anyio.sleep_forever()  # until `succeed`, or the deadline
        except (LinkLostError, RelayError) as error:
            self._unreachable(address, error)
        except LinkError as error:
            self._refused(book, address, error)
        except Exception as error:  # addresses are others' words: none may end the endpoint
            logger.exception("the address %r of %s", address, self.peer.short)
            self._unreachable(address, error)
        finally:
            self._running -= 1
            if link is not None and not link.is_open:
                link.refuse(DuplicateLinkError("not needed any more"))

    def _unreachable(self, address: str, error: Exception) -> None:
        self._reasons[address] = str(error).removeprefix(f"{address}: ")

    def _refused(self, book: AddressBook, address: str, error: LinkError) -> None:
        self._errors.append(error)
        if isinstance(error, WrongPeerError):
            book.forget(self.peer, address)
        elif self._running > 1:
            # Unauthenticated, so another address may still be the right one.
            limit = anyio.current_time() + GRACE
            self._scope.deadline = min(self._scope.deadline, limit)

    def error(self) -> LinkError:
        """Of a dial that failed, what tells most: why it was refused, else where it was tried."""
        for error in self._errors:
            if not isinstance(error, UnreachableError | WrongPeerError):
                return error
        for error in self._errors:
            if isinstance(error, WrongPeerError):
                return error
        tried = "; ".join(
            f"{_shortened(each)}: {self._reasons.get(each, 'no answer')}"
            for each in self._addresses
        )
        return UnreachableError(
            f"{self.peer.short} cannot be reached. Tried {tried}. "
            "What this machine's network is like: lattica doctor"
        )


def _shortened(address: str) -> str:
    """As people read it: relays by the beginning of their id."""
    if not text.is_relay(address):
        return address
    try:
        peer, where = text.split_relay(address)
    except AddressError:
        return address
    return f"the relay {peer[:8]} at {where}"


def _staggered(addresses: Sequence[str]) -> list[tuple[str, float]]:
    """Each address and the seconds until it is tried.

    Relays are a queue of their own: a peer with one mostly has no address that answers.
    """
    direct = [each for each in addresses if not text.is_relay(each)]
    relays = [each for each in addresses if text.is_relay(each)]
    head_start = RELAY_DELAY if direct else 0.0
    return [(each, index * STAGGER) for index, each in enumerate(direct)] + [
        (each, head_start + index * STAGGER) for index, each in enumerate(relays)
    ]
