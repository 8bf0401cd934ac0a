"""Serving HTTP inside a running event loop."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import uvicorn
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serving.background import background
from serving.errors import GatewayPortError

SHUTDOWN = 3  # seconds that open requests get at the end


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to the process's main program."""
        yield


def bind(host: str, port: int) -> socket.socket:
    """A listening TCP socket.

    Raises:
        GatewayPortError: the port is taken, or the address is not this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except (OSError, OverflowError) as error:
        raise GatewayPortError(f"cannot listen at {host}:{port}: {error}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
    except (OSError, OverflowError) as error:
        listener.close()
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        why = "is in use by another process" if taken else f"cannot be used: {error}"
        raise GatewayPortError(
            f"port {port} of {host} {why}; choose another with --port (0: any free one)"
        ) from None
    listener.setblocking(False)
    return listener


@asynccontextmanager
async def serving(app: Any, listener: socket.socket) -> AsyncIterator[str]:
    """Serve `app` at `listener`; yields the base URL. Closes the socket at the end."""
    config = uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=SHUTDOWN,
    )
    server = _Server(config)
    host, port = listener.getsockname()[:2]
    name = f"[{host}]" if ":" in host else host
    async with background() as tasks:
        ended = anyio.Event()

        async def run() -> None:
            with anyio.CancelScope(shield=True):  # ends by `should_exit`, in order
                await server.serve(sockets=[listener])
            ended.set()

        tasks.start_soon(run)
        try:
            yield f"http://{name}:{port}"
        finally:
            server.should_exit = True
            with anyio.CancelScope(shield=True):
                await ended.wait()
            listener.close()


class Answer(Response):
    """A response made while the client listens; a client that leaves cancels the work."""

    def __init__(self, work: Callable[[Send], Awaitable[None]]) -> None:
        super().__init__()
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        async with background() as tasks:

            async def cancel_if_gone() -> None:
                while (await receive())["type"] != "http.disconnect":
                    continue
                logging.getLogger("serving.http").info("client left")
                tasks.cancel_scope.cancel()

            tasks.start_soon(cancel_if_gone)
            await self._work(send)
