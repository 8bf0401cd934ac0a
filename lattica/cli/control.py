"""How commands such as `lattica status` or `ping` ask the peer that runs on this machine.

A Unix socket in the peer's home, mode 0600: one JSON line asks, one JSON line answers.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import anyio
import anyio.abc
import msgspec
from anyio.streams.buffered import BufferedByteReceiveStream

from lattica.cli.advice import Network
from lattica.cli.reports import InviteReport, PeerReport, PingReport, SpeedReport, StatusReport
from lattica.errors import ControlError, LatticaError

MAX_LINE = 1 << 20
ANSWER_TIMEOUT = 15.0  # seconds; a listing may ask peers that are going away
_MAX_SOCKET_PATH = 100  # sun_path holds 108 bytes

T = TypeVar("T")


class Ask(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One question."""

    what: Literal["status", "peers", "network", "invite", "ping", "measure"]
    valid_for: float = 0.0  # seconds, for `invite`
    peer: str = ""  # for `ping` and `measure`: a name, an id, or the beginning of one
    size: int = 0  # bytes of a ping
    count: int = 1  # pings at once
    figure: str = ""  # for `measure`
    seconds: float = 0.0


class Answer(msgspec.Struct, frozen=True):
    """One answer: a report, or an error's class name and message."""

    report: msgspec.Raw = msgspec.Raw(b"null")
    error: str = ""


Report = StatusReport | Network | InviteReport | list[PeerReport] | PingReport | SpeedReport
Responder = Callable[[Ask], Awaitable[Report]]


def socket_path(home: Path) -> Path:
    """Where the peer of `home` listens; a short stand-in where the home's path is too long."""
    path = home.resolve() / "control.sock"
    if len(os.fsencode(path)) <= _MAX_SOCKET_PATH:
        return path
    tag = hashlib.blake2s(os.fsencode(path), digest_size=8).hexdigest()
    folder = Path(tempfile.gettempdir()) / f"lattica-{os.getuid()}"
    return folder / f"{tag}.sock"


async def serve(home: Path, respond: Responder) -> None:
    """Answer questions until cancelled. The caller holds the home's lock."""
    path = socket_path(home)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.parent.stat().st_uid != os.getuid():
        raise ControlError(f"{path.parent} belongs to another user; remove it")
    path.unlink(missing_ok=True)  # left by a peer that was killed: the lock is ours
    listener = await anyio.create_unix_listener(path, mode=0o600)

    async def handle(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            try:
                with anyio.fail_after(ANSWER_TIMEOUT):
                    await stream.send(await _answer(stream, respond) + b"\n")
            except (TimeoutError, anyio.BrokenResourceError, anyio.EndOfStream, OSError):
                return  # the asker is gone, or asked nothing: nobody is left to tell

    try:
        await listener.serve(handle)
    finally:
        path.unlink(missing_ok=True)


async def _answer(stream: anyio.abc.SocketStream, respond: Responder) -> bytes:
    try:
        line = await BufferedByteReceiveStream(stream).receive_until(b"\n", MAX_LINE)
        report = await respond(msgspec.json.decode(line, type=Ask))
    except (msgspec.MsgspecError, anyio.DelimiterNotFound) as error:
        return msgspec.json.encode(Answer(error=f"not a question: {error}"))
    except LatticaError as error:
        return msgspec.json.encode(Answer(error=str(error)))
    return msgspec.json.encode(Answer(report=msgspec.Raw(msgspec.json.encode(report))))


async def ask(home: Path, question: Ask, kind: type[T] | Any) -> T:
    """Ask the running peer of `home`.

    Raises:
        ControlError: no peer runs there, or it answered with an error.
    """
    path = socket_path(home)
    try:
        with anyio.fail_after(ANSWER_TIMEOUT + 1):
            async with await anyio.connect_unix(path) as stream:
                await stream.send(msgspec.json.encode(question) + b"\n")
                line = await BufferedByteReceiveStream(stream).receive_until(b"\n", MAX_LINE)
    except (OSError, anyio.EndOfStream, anyio.IncompleteRead, TimeoutError) as error:
        raise ControlError(
            f"no peer answers in {home} ({type(error).__name__}); "
            "start one with: lattica up (or name its home with --home)"
        ) from None
    answer = msgspec.json.decode(line, type=Answer)
    if answer.error:
        raise ControlError(answer.error)
    result: T = msgspec.json.decode(answer.report, type=kind)
    return result
