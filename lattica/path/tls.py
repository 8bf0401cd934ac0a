"""The last resort: frames in TLS connections, which look like any web site's.

For networks that let nothing out but TCP to port 443. A middlebox sees TLS 1.3 with the ALPN
of HTTP; whoever asks in HTTP gets a 404. TLS authenticates nobody here: the QUIC inside does,
so the listener's certificate is self-made and not checked. Addresses are written
`tls:host:port`.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
import tempfile
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from lattica.errors import AddressError, PathError
from lattica.path import addresses as text
from lattica.path.self_signed import self_signed
from lattica.path.tcp import TcpPath
from lattica.path.wrapping import TlsWrapping, Wrapping

PORT = 443  # what such networks let out
_ALPN = ["http/1.1"]
_DAYS = 90
_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class TlsPath(TcpPath):
    """See `lattica.path.interface.Path`."""

    SCHEME = text.TLS
    REFUSAL = _NOT_FOUND
    _client: ssl.SSLContext | None = None

    def __init__(self, listener: socket.socket | None = None, **options: Any) -> None:
        """See `TcpPath`.

        Raises:
            PathError: the listener's certificate could not be made.
        """
        super().__init__(listener, **options)
        self._server: ssl.SSLContext | None = None
        if listener is not None:
            try:
                self._server = _server_context()  # now: a stranger's arrival is too late for errors
            except OSError as error:
                self.close()
                raise PathError(
                    f"no certificate for TLS could be made ({error}); is there room in "
                    f"{tempfile.gettempdir()}?"
                ) from error

    def _wrap(self, host: str, *, is_accepted: bool) -> Wrapping | None:
        if is_accepted:
            assert self._server is not None, "only a listener accepts"
            return TlsWrapping(self._server, is_server=True)
        if self._client is None:
            self._client = _client_context()
        name = None if _is_number(host) else host
        try:
            return TlsWrapping(self._client, is_server=False, name=name)
        except ValueError as error:  # a label too long or empty; UnicodeError is one
            raise AddressError(f"{host!r} is no host name: {error}") from None


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _client_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(_ALPN)
    return context


def _server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(_ALPN)
    file, name = tempfile.mkstemp(prefix="lattica-")  # readable by this user alone
    try:
        with os.fdopen(file, "wb") as out:
            out.write(_certificate())
        context.load_cert_chain(name)
    finally:
        os.unlink(name)
    return context


def _certificate() -> bytes:
    """A key and a certificate in PEM, of the kind that most sites have."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = self_signed(key, "localhost", _DAYS)
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return secret + certificate.public_bytes(Encoding.PEM)
