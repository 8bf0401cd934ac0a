"""The common alternative: grpc.aio over TLS, with raw bytes as messages.

Message size is not limited, payloads are the same objects as ours, and a handler is as
short: what is compared is the transport and the call machinery of each.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

try:
    import grpc
except ImportError:
    grpc = None

NAME = "grpc.aio, TLS"
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # a new channel is a new connection
]


class Where(msgspec.Struct, frozen=True):
    """Where the server is, and whom to trust."""

    port: int
    certificate: bytes  # PEM


class Client:
    """A channel and its calls."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self.echo: Callable[[bytes], Any] = channel.unary_unary("/bench.Service/echo")
        self.take: Callable[[bytes], Any] = channel.unary_unary("/bench.Service/take")
        self._stream = channel.unary_stream("/bench.Service/stream")

    async def stream(self, size: int) -> AsyncIterator[bytes]:
        """Messages of `size` bytes without end."""
        call = self._stream(str(size).encode())
        try:
            async for message in call:
                yield message
        finally:
            call.cancel()


def available() -> bool:
    """Whether grpcio is installed (extra `bench`)."""
    return grpc is not None


@contextlib.asynccontextmanager
async def serve() -> AsyncIterator[Where]:
    """A server on loopback."""

    async def echo(request: bytes, _context: Any) -> bytes:
        return request

    async def take(request: bytes, _context: Any) -> bytes:
        return str(len(request)).encode()

    async def stream(request: bytes, _context: Any) -> AsyncIterator[bytes]:
        message = b"x" * int(request)
        while True:
            yield message

    server = grpc.aio.server(options=_OPTIONS)
    handlers = {
        "echo": grpc.unary_unary_rpc_method_handler(echo),
        "take": grpc.unary_unary_rpc_method_handler(take),
        "stream": grpc.unary_stream_rpc_method_handler(stream),
    }
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("bench.Service", handlers),)
    )
    key, certificate = _certificate()
    credentials = grpc.ssl_server_credentials([(key, certificate)])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield Where(port, certificate)
    finally:
        await server.stop(None)


@contextlib.asynccontextmanager
async def client(where: Where) -> AsyncIterator[Client]:
    """A channel to the server at `where`."""
    channel = grpc.aio.secure_channel(
        f"127.0.0.1:{where.port}",
        grpc.ssl_channel_credentials(where.certificate),
        options=[*_OPTIONS, ("grpc.ssl_target_name_override", "localhost")],
    )
    try:
        yield Client(channel)
    finally:
        await channel.close()


def _certificate() -> tuple[bytes, bytes]:
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
