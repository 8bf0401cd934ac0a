"""qh3's engine with a trace: what its core tells of itself. Used only where traces are written.

The core shows neither packets nor frames, so the trace has the datagrams, the handshake's end, the
recovery metrics when they change, and how the connection ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aioquic.quic.logger import QuicLoggerTrace

from lattica.link.engine import EngineConfig, EngineSink
from lattica.link.engine_qh3 import Qh3Engine
from lattica.link.qlog import Qlog
from lattica.path.interface import VirtualAddress

_MS = 1000.0


class TracedQh3Engine(Qh3Engine):
    """See `Qh3Engine`."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        original_destination: bytes | None = None,
        retry_source: bytes | None = None,
    ) -> None:
        """See `lattica.link.engine.EngineMaker`. `config.qlog` is where the trace goes."""
        super().__init__(
            config, original_destination=original_destination, retry_source=retry_source
        )
        assert config.qlog is not None
        self._qlog = Qlog(config.qlog)
        self._trace: QuicLoggerTrace | None = None
        self._metrics: dict[str, float] = {}
        self._was_told = False

    def receive_many(self, datagrams: Sequence[bytes], address: VirtualAddress, now: float) -> bool:
        is_heard = super().receive_many(datagrams, address, now)
        self._log("transport", "datagrams_received", _sizes(datagrams))
        return is_heard

    def drain(self, sink: EngineSink) -> None:
        super().drain(sink)
        if self._is_told and not self._was_told:
            self._was_told = True
            self._log("connectivity", "connection_state_updated", {"new": "handshake_complete"})
        self._log_metrics()

    def datagrams(self, now: float) -> list[bytes]:
        result = super().datagrams(now)
        if result:
            self._log("transport", "datagrams_sent", _sizes(result))
            self._log_metrics()
        return result

    def close(self, code: int, reason: str) -> None:
        super().close(code, reason)
        self._log_closed("local", code, reason)

    def finish(self) -> None:
        super().finish()
        self._qlog.write()

    def _tell_closed(self, sink: EngineSink, code: int | None, reason: str) -> None:
        if not self._is_closed:
            self._log_closed("remote" if code is not None else "local", code, reason)
        super()._tell_closed(sink, code, reason)

    # ------------------------------------------------------------------ inside

    def _log(self, category: str, event: str, data: dict[str, Any]) -> None:
        if self._trace is None:
            first = self._connection.original_destination
            self._trace = self._qlog.start_trace(self._config.is_client, first)
        self._trace.log_event(category=category, event=event, data=data)

    def _log_metrics(self) -> None:
        """Those that have changed."""
        now = self.statistics()
        metrics = {
            "bytes_in_flight": now.in_flight,
            "congestion_window": now.window,
            "latest_rtt": round(now.rtt_latest * _MS, 3),
            "min_rtt": round(now.rtt_min * _MS, 3),
            "smoothed_rtt": round(now.rtt * _MS, 3),
            "packets_lost": now.packets_lost,
        }
        changed = {name: each for name, each in metrics.items() if self._metrics.get(name) != each}
        if changed:
            self._metrics = metrics
            self._log("recovery", "metrics_updated", changed)

    def _log_closed(self, owner: str, code: int | None, reason: str) -> None:
        data = {"owner": owner, "connection_code": code, "reason": reason}
        self._log("connectivity", "connection_closed", data)


def _sizes(datagrams: Sequence[bytes]) -> dict[str, Any]:
    return {"count": len(datagrams), "raw": [{"length": len(each)} for each in datagrams]}
