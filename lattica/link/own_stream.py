"""Stream 0, the link's own: the ends introduce themselves, later each may say that it leaves.

No I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum

from lattica.errors import LinkRefusedError
from lattica.link.draining import Draining, Farewell
from lattica.link.interface import RemotePeer
from lattica.link.proof import Proof, Step

OWN_STREAM = 0


class Said(Enum):
    """What the other end has said."""

    HELLO = "hello"  # and its proof holds
    CONFIRM = "confirm"  # it, the dialer, has accepted this end
    FAREWELL = "farewell"  # it is going away


class OwnStream:
    """One end's part: a proof until both have accepted each other, then at most a farewell."""

    def __init__(self, proof: Proof, send: Callable[[bytes], None]) -> None:
        """`send` takes what is to be written on the stream."""
        self._proof = proof
        self._send = send
        self._farewell = Farewell()
        self._is_introduced = False
        self.farewell: str | None = None  # why the other end is leaving

    @property
    def remote(self) -> RemotePeer | None:
        """The other end, once its Hello holds."""
        return self._proof.remote

    @property
    def expires(self) -> float:
        """When the other end's grant ends, in seconds since the Unix epoch."""
        return self._proof.expires

    def introduce(self) -> None:
        """Say who this end is: a dialer at once, an acceptor to accept a proven dialer."""
        self._send(self._proof.hello())

    def confirm(self) -> None:
        """Accept a proven acceptor."""
        self._is_introduced = True
        self._send(self._proof.confirm())

    def leave(self, draining: Draining) -> None:
        """Say that this end is going away."""
        self._send(draining.message())

    def receive(self, data: bytes, end: bool, now: float) -> Iterator[Said]:
        """What bytes of the stream say, in order; each is to be acted on before the next is taken.

        `now` in seconds since the Unix epoch. Whoever closes the link meanwhile takes no more.

        Raises:
            LinkRefusedError, and what `Proof.receive` raises: the other end is refused.
        """
        if end:
            raise LinkRefusedError("unexpected bytes on the link's own stream")
        if not self._is_introduced:
            step = self._proof.receive(data, now)
            if step is Step.PROVEN:
                yield Said.HELLO
            if step is not Step.CONFIRMED:
                return
            self._is_introduced = True
            yield Said.CONFIRM
            data = self._proof.rest()
        if data and self._is_farewell(data):
            yield Said.FAREWELL

    def _is_farewell(self, data: bytes) -> bool:
        """Whether these bytes complete one that was not heard before."""
        try:
            reason = self._farewell.receive(data)
        except ValueError as error:
            raise LinkRefusedError(str(error)) from None
        if reason is None or self.farewell is not None:
            return False
        self.farewell = reason
        return True
