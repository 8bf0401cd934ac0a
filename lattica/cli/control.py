"""How commands such as `lattica status` or `ping` ask the peer that runs on this machine.

A Unix socket in the peer's home, mode 0600: one JSON line asks, one JSON line answers.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import anyio
import anyio.abc
import msgspec
from anyio.abc import TaskStatus
from anyio.streams.buffered import BufferedByteReceiveStream

from lattica.cli.advice import Network
from lattica.cli.reports import (
    BlocksReport,
    DocumentsReport,
    InviteReport,
    PeerReport,
    PingReport,
    SpeedReport,
    StatusReport,
)
from lattica.errors import ControlError, LatticaError

log = logging.getLogger(__name__)
MAX_LINE = 1 << 20
LONG = ("blocks", "documents")  # questions whose answer may take long
SAY_EVERY = 0.5  # seconds
ANSWER_TIMEOUT = 15.0  # seconds; a listing may ask peers that are going away
SHORT = Path("/tmp")
_MAX_SOCKET_PATH = 100  # sun_path holds 108 bytes

T = TypeVar("T")


class Ask(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One question."""

    what: Literal["status", "peers", "network", "invite", "ping", "measure", "blocks", "documents"]
    valid_for: float = 0.0  # seconds, for `invite`
    peer: str = ""  # for `ping` and `measure`: a name, an id, or the beginning of one
    size: int = 0  # bytes of a ping
    count: int = 1  # pings at once
    figure: str = ""  # for `measure`
    seconds: float = 0.0
    op: str = ""  # for `blocks` and `documents`
    manifest: str = ""  # for some operations on blocks
    document: str = ""  # for some on documents: its name,
    digest: str = ""  # and what its content was
    author: str = ""  # and whom to let write it, or no more: an id, its start, or a name
    days: float = 0.0  # and for how long
    path: str = ""  # absolute
    quota: int = -1  # bytes; negative: none


class Answer(msgspec.Struct, frozen=True):
    """One answer: a report, an error's class name and message, or how far the work is."""

    report: msgspec.Raw = msgspec.Raw(b"null")
    error: str = ""
    progress: tuple[int, int] | None = None  # bytes done, and in all


class NobodyAnswersError(ControlError):
    """No peer runs there."""


Report = (
    StatusReport
    | Network
    | InviteReport
    | list[PeerReport]
    | PingReport
    | SpeedReport
    | BlocksReport
    | DocumentsReport
)
Tell = Callable[[int, int], None]


class Responder(Protocol):
    """Who answers."""

    async def __call__(self, question: Ask) -> Report:
        """Within seconds."""
        ...

    async def work(self, question: Ask, tell: Tell) -> Report:
        """However long it takes, saying how far it is."""
        ...


def socket_path(home: Path) -> Path:
    """Where the peer of `home` listens; a short stand-in where the home's path is too long.

    Raises:
        ControlError: the stand-in's folder belongs to another user.
    """
    path = home.resolve() / "control.sock"
    if len(os.fsencode(path)) <= _MAX_SOCKET_PATH:
        return path
    tag = hashlib.blake2s(os.fsencode(path), digest_size=8).hexdigest()
    folder = _short_folder() / f"lattica-{os.getuid()}"
    if folder.exists():
        _require_own(folder)
    return folder / f"{tag}.sock"


def _require_own(folder: Path) -> None:
    if folder.stat().st_uid != os.getuid():
        raise ControlError(f"{folder} belongs to another user; remove it")


def _short_folder() -> Path:
    """`/tmp` where there is one: TMPDIR may be as long as the home, or differ between commands."""
    return SHORT if os.access(SHORT, os.W_OK) else Path(tempfile.gettempdir())


async def serve(
    home: Path,
    respond: Responder,
    *,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Answer questions until cancelled; started when it listens. The caller holds the home's lock.

    Raises:
        ControlError: there is no place for the socket.
    """
    path = socket_path(home)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _require_own(path.parent)
    path.unlink(missing_ok=True)  # left by a peer that was killed: the lock is ours
    try:
        listener = await anyio.create_unix_listener(path, mode=0o600)
    except OSError as error:
        raise ControlError(f"commands cannot reach this peer at {path}: {error}") from None
    task_status.started()

    async def handle(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            try:
                with anyio.fail_after(ANSWER_TIMEOUT):
                    question = await _question(stream)
                    if not isinstance(question, Ask) or question.what not in LONG:
                        await stream.send(await _answer(question, respond) + b"\n")
                        return
                await _work(stream, question, respond)
            except (TimeoutError, anyio.BrokenResourceError, anyio.EndOfStream, OSError):
                return  # the asker is gone, or asked nothing: nobody is left to tell
            except Exception:  # one question's bug is not the others'
                log.exception("a question could not be answered")

    try:
        async with listener:
            await listener.serve(handle)
    finally:
        path.unlink(missing_ok=True)


async def _question(stream: anyio.abc.SocketStream) -> Ask | Answer:
    """What is asked, or what to say of what is no question."""
    try:
        line = await BufferedByteReceiveStream(stream).receive_until(b"\n", MAX_LINE)
        return msgspec.json.decode(line, type=Ask)
    except (msgspec.MsgspecError, anyio.DelimiterNotFound) as error:
        return Answer(error=f"not a question: {error}")


async def _answer(question: Ask | Answer, respond: Responder) -> bytes:
    if isinstance(question, Answer):
        return msgspec.json.encode(question)
    try:
        report = await respond(question)
    except LatticaError as error:
        return msgspec.json.encode(Answer(error=str(error)))
    return _encoded(report)


async def _work(stream: anyio.abc.SocketStream, question: Ask, respond: Responder) -> None:
    """Say every second how far it is, until it is done. It ends if the asker is gone."""
    progress = (0, 0)
    answer = b""

    def tell(done: int, total: int) -> None:
        nonlocal progress
        progress = (done, total)

    async def say() -> None:
        with contextlib.suppress(anyio.BrokenResourceError, OSError):
            while True:
                await anyio.sleep(SAY_EVERY)
                await stream.send(msgspec.json.encode(Answer(progress=progress)) + b"\n")

    async def listen() -> None:
        with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError, OSError):
            while True:
                await stream.receive()  # nothing more is asked: this waits for its end
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(say)
        tasks.start_soon(listen)
        try:
            answer = _encoded(await respond.work(question, tell))
        except LatticaError as error:
            answer = msgspec.json.encode(Answer(error=str(error)))
        tasks.cancel_scope.cancel()
    with anyio.move_on_after(ANSWER_TIMEOUT):
        await stream.send(answer + b"\n")


def _encoded(report: Report) -> bytes:
    return msgspec.json.encode(Answer(report=msgspec.Raw(msgspec.json.encode(report))))


async def ask_long(home: Path, question: Ask, kind: type[T] | Any, tell: Tell) -> T:
    """Ask for work that may take long; `tell` hears how far it is.

    Raises:
        NobodyAnswersError: no peer runs there.
        ControlError: it answered with an error, or went away.
    """
    path = socket_path(home)
    try:
        stream = await anyio.connect_unix(path)
    except OSError as error:
        raise NobodyAnswersError(
            f"no peer answers in {home} ({type(error).__name__}); start one with: lattica up "
            "(or name its home with --home)"
        ) from None
    async with stream:
        lines = BufferedByteReceiveStream(stream)
        try:
            await stream.send(msgspec.json.encode(question) + b"\n")
            while True:
                with anyio.fail_after(ANSWER_TIMEOUT):
                    line = await lines.receive_until(b"\n", MAX_LINE)
                answer = msgspec.json.decode(line, type=Answer)
                if answer.progress is None:
                    break
                tell(*answer.progress)
        except (OSError, anyio.EndOfStream, anyio.IncompleteRead, TimeoutError) as error:
            raise ControlError(
                f"the peer in {home} went away ({type(error).__name__}); its log says why"
            ) from None
    if answer.error:
        raise ControlError(answer.error)
    result: T = msgspec.json.decode(answer.report, type=kind)
    return result


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
