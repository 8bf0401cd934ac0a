"""Certificates that TLS insists on and nobody checks: peers prove their keys inside."""

from __future__ import annotations

import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID


def self_signed(
    key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey, name: str, days: int
) -> x509.Certificate:
    """A certificate of `name` for `days`, from a day ago, for clocks differ."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=days))
    )
    # Ed25519 brings its own hash.
    return builder.sign(key, None if isinstance(key, Ed25519PrivateKey) else SHA256())
