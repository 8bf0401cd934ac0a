"""`lattica.init()`: a peer for this program, on a thread of its own.

The peer's event loop is never the program's: whatever the program computes or blocks on,
heartbeats go on.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import logging
import threading
from collections.abc import Generator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import anyio

from lattica.actors.context import Context, find_current, set_current
from lattica.config import Config
from lattica.errors import ActorsError
from lattica.identity.keys import PeerId
from lattica.peer import Peer, PeerOptions

STOP_TIMEOUT = 10.0  # seconds for the peer to take its leave

log = logging.getLogger("lattica")


class Session:
    """This program's membership in a mesh; ends with `shutdown`, `with`, or the program."""

    def __init__(self, options: PeerOptions) -> None:
        self._options = options
        self._thread: threading.Thread | None = None
        self._ready: concurrent.futures.Future[Peer] = concurrent.futures.Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None

    # ------------------------------------------------------------------ for users

    @property
    def peer(self) -> Peer:
        """The peer itself. It lives on its own thread's event loop: see `Context.run`."""
        if not self._ready.done():
            raise ActorsError("the session has not started: use `async with lattica.init(...)`")
        return self._ready.result()

    @property
    def name(self) -> str:
        """The peer's name."""
        return self.peer.name

    @property
    def peer_id(self) -> PeerId:
        """The peer's id."""
        return self.peer.identity.peer_id

    @property
    def addresses(self) -> tuple[str, ...]:
        """The `host:port`s at which other peers can dial this one."""
        return self.peer.addresses

    def invite(self, *, valid_for: float = 7 * 86_400.0) -> str:
        """A ticket with which another machine joins this mesh; good for `valid_for` seconds.

        Raises:
            GrantError: this peer did not found the mesh.
        """
        return self.peer.invite(valid_for=valid_for).encode()

    def shutdown(self) -> None:
        """Leave the mesh; what this program owns ends with it. Again: does nothing."""
        thread, loop, stop = self._thread, self._loop, self._stop
        atexit.unregister(self.shutdown)
        if thread is None or loop is None or stop is None or not thread.is_alive():
            return
        try:
            loop.call_soon_threadsafe(stop.set)
        except RuntimeError:  # it has just ended by itself
            pass
        if thread is not threading.current_thread():
            thread.join(STOP_TIMEOUT)
            if thread.is_alive():
                log.warning("the peer did not take its leave within %g s", STOP_TIMEOUT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.shutdown()

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.start)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self.shutdown)

    def __await__(self) -> Generator[Any, None, Self]:
        return self.__aenter__().__await__()

    def __repr__(self) -> str:
        if not self._ready.done() or self._ready.exception() is not None:
            return "<lattica session, not running>"
        return f"<lattica session {self.name!r} ({self.peer_id.short})>"

    # ------------------------------------------------------------------ inside

    def start(self) -> None:
        """Start the peer, unless that has been done.

        Raises:
            LatticaError: whatever kept the peer from starting.
        """
        if self._thread is None:
            _require_none()
            # A daemon, so that a program that ends without shutdown() is not kept alive;
            # atexit then ends the peer properly.
            self._thread = threading.Thread(target=self._run, name="lattica", daemon=True)
            self._thread.start()
        try:
            self._ready.result()
        except BaseException:  # a failed start, or Ctrl-C in the middle of it
            self.shutdown()
            raise
        # Registered last, so run first: before the temporary home is swept away.
        atexit.unregister(self.shutdown)
        atexit.register(self.shutdown)

    def _run(self) -> None:
        try:
            anyio.run(self._serve)
        except BaseException as error:
            if not self._ready.done():
                self._ready.set_exception(error)
            else:
                log.exception("the peer has crashed; calls raise NotInitializedError from now on")

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        async with Peer.open(self._options) as peer:
            context = Context(peer.core, self._loop, kind="driver", name=peer.name)
            set_current(context)
            try:
                self._ready.set_result(peer)
                await self._stop.wait()
            finally:
                context.close()
                if find_current() is context:
                    set_current(None)


_session: Session | None = None


def init(
    ticket: str | None = None,
    *,
    name: str | None = None,
    home: str | Path | None = None,
    listen: str | None = None,
    num_cpus: float | None = None,
    num_gpus: float = 0.0,
    memory: int | None = None,
    resources: dict[str, float] | None = None,
    labels: dict[str, str] | None = None,
    config: Config | None = None,
) -> Session:
    """Make this program a peer: of a mesh of its own, or of the one that `ticket` invites to.

    In a mesh of its own it offers this machine's resources; as a guest it offers no CPUs,
    so that others' work does not run on it, unless `num_cpus` says otherwise. Within a
    running event loop the session starts with `async with` or `await`.

    Args:
        name: what people call this peer; default: the machine's name.
        home: directory of its key and store; default: a temporary one.
        listen: `host:port` of its UDP socket; port 0 for any.
        memory: bytes.

    Raises:
        TicketError: the ticket is mistyped, expired, or not this home's mesh's.
        ActorsError: lattica runs in this process already.
        PortInUseError, AddressError, KeyFileError, HomeError, DhtError: see the classes.
    """
    global _session
    _require_none()
    if num_cpus is None and ticket is not None:
        num_cpus = 0.0
    options = PeerOptions(
        home=None if home is None else Path(home),
        ticket=ticket,
        name=name or "",
        listen=listen or "",
        cpus=num_cpus,
        gpus=num_gpus,
        memory=memory,
        resources=dict(resources or {}),
        labels=dict(labels or {}),
        config=config or Config(),
    )
    _session = Session(options)
    if asyncio._get_running_loop() is None:
        _session.start()
    return _session


def shutdown() -> None:
    """Leave the mesh that `init` made or joined; without one it does nothing."""
    global _session
    session, _session = _session, None
    if session is not None:
        session.shutdown()


def is_initialized() -> bool:
    """Whether this process is part of a mesh: as a driver after `init`, or as a worker."""
    context = find_current()
    return context is not None and context.is_open


def _require_none() -> None:
    context = find_current()
    if context is None or not context.is_open:
        return
    if context.kind == "worker":
        raise ActorsError("a worker is part of its host's mesh already: do not call lattica.init()")
    raise ActorsError("lattica runs in this process already; call lattica.shutdown() first")
