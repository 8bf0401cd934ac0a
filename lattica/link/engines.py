"""Which QUIC engine a peer uses, and where it writes traces."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from lattica.errors import EngineError
from lattica.link.engine import EngineMaker

VARIABLE = "LATTICA_QUIC"
TRACES = "LATTICA_QLOG"
AUTO = "auto"
NAMES = (AUTO, "aioquic", "qh3")


def choose(wanted: str = AUTO, environment: Mapping[str, str] = os.environ) -> EngineMaker:
    """The engine called `wanted`; for "auto", what `LATTICA_QUIC` says, or the fastest there is.

    Raises:
        EngineError: no engine has that name, or it is not installed.
    """
    source = "the link configuration"
    if wanted == AUTO:
        wanted, source = environment.get(VARIABLE) or AUTO, VARIABLE
    if wanted not in NAMES:
        raise EngineError(f"{source} asks for the engine {wanted!r}; use one of {', '.join(NAMES)}")
    if wanted != "aioquic":
        try:
            from lattica.link.engine_qh3 import Qh3Engine
        except ImportError as error:
            if wanted == "qh3":
                raise EngineError(
                    f"{source} asks for the engine qh3, which cannot be used ({error}); "
                    "install it with: pip install 'lattica-mesh[fast]'"
                ) from error
        else:
            return Qh3Engine
    from lattica.link.engine_aioquic import AioquicEngine  # only who uses it pays for its import

    return AioquicEngine


def trace_directory(wanted: str | None, environment: Mapping[str, str] = os.environ) -> Path | None:
    """Where traces go: what the configuration says, else `LATTICA_QLOG`, else nowhere."""
    text = wanted if wanted is not None else environment.get(TRACES, "")
    return Path(text) if text else None
