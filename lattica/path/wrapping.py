"""What may lie between a TCP connection and the frames in it: TLS, a proxy's greeting. No I/O."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from typing import Protocol

from lattica.errors import PathError

_READ = 65_536  # bytes at a time; a TLS record has at most a quarter of it


class WrappingError(PathError):
    """The other end, or who stands between, does not take part. The message says what to do."""


class Wrapping(Protocol):
    """Turns what the socket carries into what the connection means, and back."""

    @property
    def is_ready(self) -> bool:
        """Whether contents can be sealed."""
        ...

    def begin(self) -> bytes:
        """The connection stands. What to send first."""
        ...

    def received(self, data: bytes) -> tuple[bytes, bytes]:
        """Contents that have arrived, and bytes to send.

        Raises:
            WrappingError: this cannot go on.
        """
        ...

    def seal(self, contents: bytes) -> bytes:
        """What to send for `contents`. Only when ready."""
        ...


class TlsWrapping:
    """TLS as one end of a connection sees it. It authenticates nobody: the QUIC inside does."""

    def __init__(
        self, context: ssl.SSLContext, *, is_server: bool, name: str | None = None
    ) -> None:
        """`name` is what a client asks for (SNI)."""
        self._arriving = ssl.MemoryBIO()
        self._leaving = ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._arriving, self._leaving, server_side=is_server, server_hostname=name
        )
        self.is_ready = False

    def begin(self) -> bytes:
        self._shake()
        return self._leaving.read()

    def received(self, data: bytes) -> tuple[bytes, bytes]:
        self._arriving.write(data)
        contents: list[bytes] = []
        try:
            if not self.is_ready:
                self._shake()
            while self.is_ready:
                piece = self._tls.read(_READ)
                if not piece:
                    break
                contents.append(piece)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            pass  # the connection's own end follows
        except ssl.SSLError as error:
            raise WrappingError(
                f"no TLS there ({error.reason or error}); is it the tls: address of a peer?"
            ) from None
        return b"".join(contents), self._leaving.read()

    def seal(self, contents: bytes) -> bytes:
        self._tls.write(contents)
        return self._leaving.read()

    def _shake(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return
        self.is_ready = True


class Chain:
    """Wrappings inside each other, the outermost first; each begins when its outer one is ready."""

    def __init__(self, wrappings: Sequence[Wrapping]) -> None:
        self._wrappings = list(wrappings)

    @property
    def is_ready(self) -> bool:
        return all(each.is_ready for each in self._wrappings)

    def begin(self) -> bytes:
        return self._begin_from(0)

    def received(self, data: bytes) -> tuple[bytes, bytes]:
        sending = b""
        for index, wrapping in enumerate(self._wrappings):
            was_ready = wrapping.is_ready
            data, answer = wrapping.received(data)
            sending += self._seal(answer, index)
            if not wrapping.is_ready:
                return b"", sending
            if not was_ready and index + 1 < len(self._wrappings):
                sending += self._begin_from(index + 1)
            if not data:
                return b"", sending
        return data, sending

    def seal(self, contents: bytes) -> bytes:
        return self._seal(contents, len(self._wrappings))

    def _begin_from(self, index: int) -> bytes:
        return self._seal(self._wrappings[index].begin(), index)

    def _seal(self, data: bytes, index: int) -> bytes:
        """Through all wrappings outside of the one at `index`."""
        for wrapping in reversed(self._wrappings[:index]):
            data = wrapping.seal(data) if data else b""
        return data
