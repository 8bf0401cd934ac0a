"""The channel binding: 32 bytes that only the two ends of one TLS session know.

TLS libraries for QUIC offer no exporter (RFC 8446 §7.5), but they do write the traffic
secrets to a key log. Those come from the same handshake secret and transcript as the
exporter's, so a key derived from both is as good a `tls-exporter` binding (RFC 9266).
"""

from __future__ import annotations

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_LABELS = ("CLIENT_TRAFFIC_SECRET_0", "SERVER_TRAFFIC_SECRET_0")
_INFO = b"lattica link binding v1"


class SecretsLog:
    """A file-like key log that keeps two secrets, in memory, until they have been used."""

    def __init__(self) -> None:
        self._secrets: dict[str, bytearray] = {}
        self._is_open = True

    def write(self, line: str) -> int:
        """Take one line of the NSS key log format."""
        label, _, rest = line.partition(" ")
        if self._is_open and label in _LABELS:
            self._secrets[label] = bytearray.fromhex(rest.split()[1])
        return len(line)

    def flush(self) -> None:
        """Nothing is buffered."""

    def binding(self) -> bytes:
        """Derive the binding and wipe the secrets.

        Raises:
            ValueError: the handshake is not complete, or this was called before.
        """
        try:
            client, server = (self._secrets[label] for label in _LABELS)
        except KeyError:
            raise ValueError("the session's secrets are not there") from None
        material = bytes(client + server)
        self.wipe()
        return HKDF(hashes.SHA256(), 32, salt=None, info=_INFO).derive(material)

    def wipe(self) -> None:
        """Overwrite what is kept, and keep nothing from now on."""
        for secret in self._secrets.values():
            secret[:] = bytes(len(secret))
        self._secrets.clear()
        self._is_open = False
