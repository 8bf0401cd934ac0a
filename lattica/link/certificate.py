"""The throw-away certificate that TLS insists on. It proves nothing: see `proof`."""

from __future__ import annotations

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lattica.path.self_signed import self_signed

DAYS = 3650


class Certificate(msgspec.Struct, frozen=True):
    """A self-signed certificate and its key, made anew for each endpoint."""

    certificate: x509.Certificate
    key: Ed25519PrivateKey

    @classmethod
    def generate(cls) -> Certificate:
        """A certificate that names nobody, so that it tells observers nothing."""
        key = Ed25519PrivateKey.generate()
        certificate = self_signed(key, "lattica", DAYS)
        return cls(certificate, key)
