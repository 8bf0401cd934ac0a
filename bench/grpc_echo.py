"""The common alternative: grpc.aio over TLS, with raw bytes as messages."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

try:
    import grpc
except ImportError:
    grpc = None

METHOD = "/bench.Echo/echo"
_LIMIT = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def available() -> bool:
    """Whether grpcio is installed (extra `bench`)."""
    return grpc is not None


def certificate() -> tuple[bytes, bytes]:
    """A throw-away key and certificate for localhost, PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return pem, cert.public_bytes(serialization.Encoding.PEM)


async def serve(key: bytes, cert: bytes) -> tuple[Any, int]:
    """Start an echo server on loopback; returns it and its port."""

    async def echo(request: bytes, _context: Any) -> bytes:
        return request

    server = grpc.aio.server(options=_LIMIT)
    handler = grpc.unary_unary_rpc_method_handler(echo)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("bench.Echo", {"echo": handler}),)
    )
    credentials = grpc.ssl_server_credentials([(key, cert)])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    return server, port


def client(port: int, cert: bytes) -> tuple[Any, Callable[[bytes], Any]]:
    """A channel and its echo call."""
    channel = grpc.aio.secure_channel(
        f"127.0.0.1:{port}",
        grpc.ssl_channel_credentials(cert),
        options=[*_LIMIT, ("grpc.ssl_target_name_override", "localhost")],
    )
    return channel, channel.unary_unary(METHOD)
