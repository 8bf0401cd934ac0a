"""Traces of connections as qlog files (draft-ietf-quic-qlog-main-schema), for `LATTICA_QLOG`.

One file for each connection, written when it ends. Bounded: the newest `MAX_EVENTS` events of
a connection, `MAX_FILES` files in the directory, of which the oldest make room. What is in
them: times, sizes, packet numbers, frame types, congestion state. Not in them: payload,
keys, and the tokens by which a packet could pass for an end's own. What aioquic does is traced
packet by packet; qh3 shows datagrams and metrics only (`traced_qh3`).
"""

from __future__ import annotations

import json
import logging
from collections import deque
from pathlib import Path
from typing import Any

from aioquic.quic.logger import QuicLogger, QuicLoggerTrace

MAX_EVENTS = 10_000  # about 3 MB of text
MAX_FILES = 256

logger = logging.getLogger("lattica.link")


class _Trace(QuicLoggerTrace):
    """Keeps the newest events, and no tokens."""

    def __init__(self, *, is_client: bool, odcid: bytes) -> None:
        super().__init__(is_client=is_client, odcid=odcid)
        self._events: deque[dict[str, Any]] = deque(maxlen=MAX_EVENTS)

    def log_event(self, *, category: str, event: str, data: dict[str, Any]) -> None:
        super().log_event(
            category=category,
            event=event,
            data={key: value for key, value in data.items() if "token" not in key},
        )

    def encode_new_connection_id_frame(self, *args: Any, **named: Any) -> dict[str, Any]:
        frame: dict[str, Any] = super().encode_new_connection_id_frame(*args, **named)
        return {key: value for key, value in frame.items() if "token" not in key}

    def encode_new_token_frame(self, token: bytes) -> dict[str, Any]:
        return {"frame_type": "new_token", "length": len(token)}

    def encode_path_challenge_frame(self, data: bytes) -> dict[str, Any]:
        return {"frame_type": "path_challenge"}

    def encode_path_response_frame(self, data: bytes) -> dict[str, Any]:
        return {"frame_type": "path_response"}


class Qlog(QuicLogger):
    """The traces of one connection; see `lattica.link.engine.EngineConfig.qlog`."""

    def __init__(self, where: Path) -> None:
        super().__init__()
        self._where = where

    def start_trace(self, is_client: bool, odcid: bytes) -> QuicLoggerTrace:
        """Called by aioquic."""
        trace = _Trace(is_client=is_client, odcid=odcid)
        self._traces.append(trace)
        return trace

    def end_trace(self, trace: QuicLoggerTrace) -> None:
        """Called by aioquic when it has drained; the link's end comes before, and writes."""

    def write(self) -> None:
        """The connection is over. Once; a directory that cannot be written is told in the log."""
        traces, self._traces = self._traces, []
        for trace in traces:
            content = trace.to_dict()
            side = content["vantage_point"]["type"]
            name = f"{content['common_fields']['ODCID']}-{side}.qlog"
            log = {"qlog_format": "JSON", "qlog_version": "0.3", "traces": [content]}
            try:
                self._where.mkdir(parents=True, exist_ok=True)
                self._make_room()
                (self._where / name).write_text(json.dumps(log))
            except OSError as error:
                logger.warning("the trace %s cannot be written: %s", name, error)

    def _make_room(self) -> None:
        files = sorted(self._where.glob("*.qlog"), key=lambda each: each.stat().st_mtime)
        for oldest in files[: max(0, len(files) - MAX_FILES + 1)]:
            oldest.unlink(missing_ok=True)
