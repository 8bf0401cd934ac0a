"""qh3's connection, with our limits, and its Rust core within reach.

qh3's `QuicConnection` joins TLS (Python) and a packet core (Rust). It fixes in its code what
this project wants otherwise, so the private methods that build the two are overridden here;
the version is pinned for their sake. Only this module and `engine_qh3` know qh3's names.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterator
from typing import Any, TextIO, cast

import qh3
from cryptography.hazmat.primitives import serialization
from qh3._hazmat import Buffer, QuicConnectionCore, X25519KeyExchange, pull_quic_header
from qh3.quic.configuration import QuicConfiguration
from qh3.quic.connection import QuicConnection
from qh3.quic.packet import (
    QuicErrorCode,
    QuicFrameType,
    pull_quic_transport_parameters,
    push_quic_transport_parameters,
)
from qh3.quic.tls_bridge import QuicTlsBridge, QuicTlsBridgeError, QuicTlsCryptoData
from qh3.tls import Epoch, SignatureAlgorithm

from lattica.link import header
from lattica.link.engine import EngineConfig
from lattica.link.secrets import SecretsLog
from lattica.path.interface import QUIC_FIXED_BIT

SUPPORTED = "2.1."  # the private names are those of these releases
ALPN = "lattica"
REMOTE = ("::1", 1)  # the path decides where packets go, but the core insists on an address
LOCAL = ("::1", 2)
_MAX_UDP_PAYLOAD = 65_527  # bytes; RFC 9000 §18.2's default
_CONNECTION_IDS = 2  # of each end; a link never changes them
_INITIAL_RTT = 0.1  # seconds; an unanswered first packet is repeated after twice that
OWN_PROBING = 1472  # bytes; qh3 finds its way back up to here and no further
_MAX_ACK_DELAY = 0.025  # seconds
_ACK_DELAY_EXPONENT = 3

if not qh3.__version__.startswith(SUPPORTED):
    raise ImportError(f"qh3 {qh3.__version__} is installed, but {SUPPORTED}x is needed")

# The first key takes a tenth of a second, to gather entropy: not in the middle of a dial.
X25519KeyExchange()

# qh3 warns about every broken connection: a stranger could fill the log.
logging.getLogger("quic").setLevel(logging.ERROR)


def configuration(config: EngineConfig, secrets: SecretsLog) -> QuicConfiguration:
    """A connection's settings in qh3's words."""
    result = QuicConfiguration(
        active_connection_id_limit=_CONNECTION_IDS,
        alpn_protocols=[ALPN],
        connection_id_length=header.CONNECTION_ID,
        idle_timeout=config.idle_timeout,
        initial_rtt=_INITIAL_RTT,
        is_client=config.is_client,
        max_data=config.max_data,
        max_datagram_size=config.datagram,
        max_stream_data=config.max_stream_data,
        probe_datagram_size=config.datagram <= OWN_PROBING <= config.max_datagram,
        secrets_log_file=cast(TextIO, secrets),
        # Left out by default, though it is the only kind of key there is here.
        signature_algorithms=[SignatureAlgorithm.ED25519],
        supported_versions=[header.VERSION_1],
        verify_mode=ssl.CERT_NONE,  # the proof on stream 0 authenticates both ends
    )
    if not config.is_client:
        pem, key = config.certificate.certificate, config.certificate.key
        result.load_cert_chain(
            pem.public_bytes(serialization.Encoding.PEM),
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
        )
    return result


class Tls(QuicTlsBridge):
    """Offers other limits, and remembers a client's first message."""

    def __init__(self, settings: QuicConfiguration, *, max_streams: int, **options: Any) -> None:
        self._max_streams = max_streams  # first: the base serializes in its constructor
        self.first_flight: list[QuicTlsCryptoData] = []
        super().__init__(settings, **options)

    def serialize_transport_parameters(self) -> bytes:
        data = super().serialize_transport_parameters()
        parameters = pull_quic_transport_parameters(Buffer(data=data))
        parameters.initial_max_streams_bidi = self._max_streams
        parameters.initial_max_streams_uni = self._max_streams
        parameters.max_udp_payload_size = _MAX_UDP_PAYLOAD  # a client would say 1,472
        parameters.max_datagram_frame_size = None
        buffer = Buffer(capacity=4096)
        push_quic_transport_parameters(buffer, parameters)
        return buffer.data

    def next_crypto_data(self) -> QuicTlsCryptoData | None:
        crypto = super().next_crypto_data()
        if crypto is not None and crypto.epoch is Epoch.INITIAL:
            self.first_flight.append(crypto)
        return crypto


class Connection(QuicConnection):
    """See the module. Events but those of TLS stay in the core, for the engine to read."""

    def __init__(
        self,
        config: EngineConfig,
        secrets: SecretsLog,
        *,
        original_destination: bytes | None,
        retry_source: bytes | None,
    ) -> None:
        super().__init__(
            configuration=configuration(config, secrets),
            original_destination_connection_id=original_destination,
            retry_source_connection_id=retry_source,
        )
        self._config = config
        self._token = b""
        self.tls_error: str | None = None
        self.inbox: list[tuple[Any, ...]] = []  # the core's events, while TLS is at work

    @property
    def core(self) -> QuicConnectionCore | None:
        """The packet core, once there is one."""
        return self._core

    @property
    def original_destination(self) -> bytes:
        """The id that the client's first packet went to; both ends' traces are named by it."""
        return self._original_destination_connection_id or b""

    @property
    def is_complete(self) -> bool:
        """Whether the handshake is through."""
        return self._handshake_complete

    def receive_early(self, datagram: bytes, now: float) -> None:
        """Take in a datagram of the handshake.

        The base's method counts only the packets' bytes for RFC 9000 §8.1, not the padding
        behind them, and then has not enough credit to answer aioquic.
        """
        if self._core is None:
            first = header.parse_long(datagram)
            if self._is_client or first is None:
                return
            self._version = header.VERSION_1
            self._create_core(REMOTE, first.destination, now)
            self._create_tls(None)
        elif self._receive_retry(datagram, REMOTE, now):
            if self._retry_count and not self._token:
                self._token = pull_quic_header(datagram, 0, header.CONNECTION_ID)[5]
            return
        # One packet at a time: TLS takes its keys from one for the next.
        for packet in self._packets(datagram):
            report = self._require_core().receive_datagram(packet, REMOTE, now, len(datagram))
            if report[2]:
                self._learn_remote_source_cid(packet)
            self._drain_core()

    def take(self, event: tuple[Any, ...]) -> bool:
        """Act on an event of the core that concerns the handshake; whether it was one."""
        kind = event[0]
        core = self._require_core()
        if kind == "crypto_data":
            assert self._tls is not None
            try:
                self._tls.receive_crypto(Epoch(event[1]), event[3], event[2], version=core.version)
                self._drain_tls()
            except QuicTlsBridgeError as error:
                self._fail(error.error_code, int(error.frame_type), error.reason_phrase)
            except Exception as error:  # noqa: BLE001  (a stranger's bytes must not end the loop)
                reason = f"cannot parse a TLS message: {type(error).__name__}"
                self._fail(QuicErrorCode.CRYPTO_ERROR, int(QuicFrameType.CRYPTO), reason)
        elif kind == "handshake_done":
            self._handshake_confirmed = True
            core.handshake_confirmed()
        elif kind == "new_token":
            pass  # dials are too rare for one to be worth keeping
        else:
            return False
        return True

    def shrink(self, size: int) -> bool:
        """Send at most `size` bytes from now on; whether that could be done.

        The core has no method for it. But it obeys the largest size that the other end
        takes, and the call that tells it so may be made again. To raise it is not possible.
        """
        parameters = self._applied_transport_parameters
        if parameters is None:
            return False
        self._require_core().apply_peer_transport_parameters(
            parameters.initial_max_data or 0,
            parameters.initial_max_stream_data_bidi_local or 0,
            parameters.initial_max_stream_data_bidi_remote or 0,
            parameters.initial_max_stream_data_uni or 0,
            parameters.initial_max_streams_bidi or 0,
            parameters.initial_max_streams_uni or 0,
            _default(parameters.ack_delay_exponent, _ACK_DELAY_EXPONENT),
            _default(parameters.max_ack_delay, int(_MAX_ACK_DELAY * 1000)) / 1000,
            parameters.max_idle_timeout / 1000 if parameters.max_idle_timeout else None,
            parameters.max_datagram_frame_size,
            None,
            parameters.active_connection_id_limit or _CONNECTION_IDS,
            bool(parameters.disable_active_migration),
            size,
        )
        return True

    def repeat_first_flight(self, sent: int, now: float) -> None:
        """Send the client's first message again, at the full datagram size.

        The core's own repetition falls to 1,200 bytes and never comes back. `sent` packets
        have gone out: their numbers are not used again.
        """
        tls, initial = self._tls, self._retry_source_connection_id
        assert isinstance(tls, Tls)
        assert self._original_destination_connection_id is not None
        self._create_core(REMOTE, initial or self._original_destination_connection_id, now)
        core = self._require_core()
        core.restore_send_packet_number(0, sent)
        if self._token:
            core.set_initial_token(self._token)
        for crypto in tls.first_flight:
            core.send_crypto(int(crypto.epoch), crypto.offset, crypto.data)

    def _packets(self, datagram: bytes) -> Iterator[bytes]:
        """The packets of a datagram, the last one with whatever is behind it."""
        start = 0
        while start < len(datagram):
            end = _packet_end(datagram, start)
            if _packet_end(datagram, end) <= end:
                end = len(datagram)
            yield datagram[start:end]
            start = end

    # -------------------------------------------------------- overridden, private

    def _create_core(self, remote_addr: Any, initial_dcid: bytes, now: float) -> None:
        """The base's has 100 and 103 streams in its code, and no place to change them."""
        config, settings = self._config, self._configuration
        self._core = QuicConnectionCore(
            is_client=config.is_client,
            version=header.VERSION_1,
            local_addr=LOCAL,
            remote_addr=remote_addr,
            source_cid=self.host_cid,
            destination_cid=initial_dcid,
            peer_address_validated=(
                config.is_client or self._retry_source_connection_id is not None
            ),
            active_connection_id_limit=_CONNECTION_IDS,
            max_datagram_size=config.datagram,
            probe_datagram_size=settings.probe_datagram_size,
            idle_timeout=config.idle_timeout,
            ack_delay_exponent=_ACK_DELAY_EXPONENT,
            max_datagram_frame_size=None,
            peer_max_datagram_frame_size=None,
            connection_receive_window=config.max_data,
            connection_send_limit=0,
            stream_receive_window=config.max_stream_data,
            stream_send_limit_bidi_local=0,
            stream_send_limit_bidi_remote=0,
            stream_send_limit_uni=0,
            max_stream_reassembly=min(config.max_stream_data, config.max_unordered),
            local_max_streams_bidi=config.max_streams,
            local_max_streams_uni=config.max_streams,
            peer_max_streams_bidi=0,
            peer_max_streams_uni=0,
            initial_rtt=_INITIAL_RTT,
            max_ack_delay=_MAX_ACK_DELAY,
            initial_time=now,
        )
        self._applied_transport_parameters = None
        self._pre_handshake_state_replayed = False

    def _create_tls(self, remote_source_cid: bytes | None) -> QuicTlsBridge:
        tls = Tls(
            self._configuration,
            max_streams=self._config.max_streams,
            version=header.VERSION_1,
            local_initial_source_connection_id=self.host_cid,
            remote_initial_source_connection_id=remote_source_cid,
            original_destination_connection_id=self._original_destination_connection_id,
            retry_source_connection_id=self._retry_source_connection_id,
        )
        self._tls = tls
        return tls

    def _drain_core(self) -> None:
        """Called by the base after each packet of a handshake."""
        core = self._require_core()
        while (event := core.next_event()) is not None:
            if not self.take(event):
                self.inbox.append(event)

    def _fail(self, code: int, frame_type: int | None, reason: str) -> None:
        self.tls_error = reason
        core = self._require_core()
        core.close(code, frame_type, reason.encode())


def _default(value: int | None, default: int) -> int:
    return default if value is None else value


def _packet_end(datagram: bytes, start: int) -> int:
    """Where the packet at `start` ends; `start` itself if there is none."""
    if start >= len(datagram) or not datagram[start] & QUIC_FIXED_BIT:
        return start
    try:
        return pull_quic_header(datagram, start, header.CONNECTION_ID)[9]
    except ValueError:
        return start
