"""Every default of serving in one place."""

from __future__ import annotations

import msgspec


class ServingConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Limits and deadlines. Times in seconds."""

    dtype: str = "float32"  # of weights, cache and activations on the wire; "auto": the model's own
    threads: int = 1  # of torch, per process
    kv_tokens: int = 65_536  # cache budget of a volunteer, in tokens over all sessions
    max_sessions: int = 64
    session_idle: float = 60.0  # a session without a step for so long is closed
    prefill_chunk: int = 256  # tokens per forward pass of a prompt
    hop_timeout: float = 4.0  # a stage must take over a step within this
    open_timeout: float = 5.0
    suspect_patience: float = 1.0  # nothing is heard of a stage for so much too long: give it up
    token_timeout: float = 30.0  # no token for so long: the slowest stage is given up
    load_timeout: float = 60.0  # for a standby to take a span
    probe_timeout: float = 2.5  # for an entry of the roster to prove that it is alive
    claim_settle: float = 0.5  # for others' claims to arrive before one's own is firm
    ghost_for: float = 5.0  # one that did not is not asked again for so long
    max_replacements: int = 8  # per generation
    busy_retry: float = 1.0
    max_body: int = 1 << 20  # bytes of an HTTP request
