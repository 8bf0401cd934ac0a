"""What clients and stages say to each other."""

from __future__ import annotations

from typing import Literal

import msgspec

from lattica.identity.keys import PeerId
from serving.sampling import Sampling
from serving.span import Span

SERVICE = "serving"
SessionId = bytes  # 16 random bytes, chosen by the client, new for every replay

State = Literal["choosing", "fetching", "loading", "serving", "standby"]
Finish = Literal["", "stop", "length"]


class StageInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a volunteer offers: its entry in the roster and its answer to `info`."""

    model: str
    manifest: str  # content address of the model's folder
    layers: int  # of the whole model
    state: State
    span: Span | None = None  # held and served, or (before that) claimed; None on standby
    capacity: int = 0  # layers it would hold at most
    name: str = ""  # the peer's name, for people
    context: int = 0  # tokens of prompt and answer
    kv_free: int = 0  # tokens; as of the answer
    sessions: int = 0


class Hop(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One stage of a session's ring."""

    peer: PeerId
    span: Span  # the layers it runs for this session; all of them are in its own span


class Opening(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A session as the client wants it, sent to every stage of its ring."""

    session: SessionId
    model: str
    manifest: str
    route: tuple[Hop, ...]
    index: int  # the receiver's place in `route`
    limit: int  # tokens of prompt and answer together
    sampling: Sampling
    eos: tuple[int, ...] = ()


class Opened(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="opened"
):
    """The stage has room and waits for steps."""

    kv_free: int


class Token(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="token"):
    """The last stage chose a token."""

    position: int  # in the sequence, the prompt included
    token: int
    finish: Finish = ""


class Failed(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="failed"
):
    """The ring is broken; `peer` is the stage at fault as the sender sees it."""

    peer: PeerId
    reason: str


Event = Opened | Token | Failed
