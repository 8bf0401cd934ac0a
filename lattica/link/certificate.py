"""The throw-away certificate that TLS insists on. It proves nothing: see `proof`."""

from __future__ import annotations

import datetime

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

DAYS = 3650


class Certificate(msgspec.Struct, frozen=True):
    """A self-signed certificate and its key, made anew for each endpoint."""

    certificate: x509.Certificate
    key: Ed25519PrivateKey

    @classmethod
    def generate(cls) -> Certificate:
        """A certificate that names nobody, so that it tells observers nothing."""
        key = Ed25519PrivateKey.generate()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lattica")])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=DAYS))
            .sign(key, None)
        )
        return cls(certificate, key)
