"""Which QUIC engine a link uses, and where it writes traces."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from lattica.errors import AddressError, EngineError
from lattica.link.engine import EngineMaker
from lattica.path import addresses

VARIABLE = "LATTICA_QUIC"
TRACES = "LATTICA_QLOG"
AUTO = "auto"
NAMES = (AUTO, "aioquic", "qh3")


class Engines(msgspec.Struct, frozen=True):
    """A peer's choice. Both ends of a link choose for themselves."""

    near: EngineMaker  # on this machine, and in TCP: where nothing is lost
    far: EngineMaker  # across a network

    def towards(self, address: str) -> EngineMaker:
        """The engine for a remote at `host:port`, `tcp:host:port` or such."""
        scheme, rest = addresses.split_scheme(address)
        try:
            host, _ = addresses.split(rest)
        except AddressError:
            return self.near
        if scheme in (addresses.TCP, addresses.TLS):
            return self.near
        return self.far if addresses.is_remote(host) else self.near


def choose(
    wanted: str = AUTO,
    environment: Mapping[str, str] = os.environ,
    *,
    is_traced: bool = False,
) -> Engines:
    """The engine called `wanted`; for "auto", what `LATTICA_QUIC` says, or what is best.

    Best is qh3, where it is installed and nothing is lost. Across a network packets are lost by
    chance: qh3's loss-based congestion control takes that for congestion, and its core now and
    then ends a connection over it. There aioquic is used, and the processor rarely limits.
    With `is_traced` the engine is one that writes traces where its configuration says so.

    Raises:
        EngineError: no engine has that name, or it is not installed.
    """
    source = "the link configuration"
    if wanted == AUTO:
        wanted, source = environment.get(VARIABLE) or AUTO, VARIABLE
    if wanted not in NAMES:
        raise EngineError(f"{source} asks for the engine {wanted!r}; use one of {', '.join(NAMES)}")
    if wanted == "aioquic":
        return Engines(_aioquic(), _aioquic())
    try:
        from lattica.link.engine_qh3 import Qh3Engine
    except ImportError as error:
        if wanted == AUTO:
            return Engines(_aioquic(), _aioquic())
        raise EngineError(
            f"{source} asks for the engine qh3, which cannot be used ({error}); "
            "install it with: pip install 'lattica-mesh[fast]'"
        ) from error
    near: EngineMaker = Qh3Engine
    if is_traced:
        from lattica.link.traced_qh3 import TracedQh3Engine

        near = TracedQh3Engine
    return Engines(near, _aioquic() if wanted == AUTO else near)


def _aioquic() -> EngineMaker:
    from lattica.link.engine_aioquic import AioquicEngine  # only who uses it imports it

    return AioquicEngine


def trace_directory(wanted: str | None, environment: Mapping[str, str] = os.environ) -> Path | None:
    """Where traces go: what the configuration says, else `LATTICA_QLOG`, else nowhere."""
    text = wanted if wanted is not None else environment.get(TRACES, "")
    return Path(text) if text else None
