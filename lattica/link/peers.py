"""The supervisor's shell: tells subscribers what becomes of peers, redials those kept."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from lattica.config import LinkConfig
from lattica.errors import BackoffError
from lattica.identity.keys import PeerId
from lattica.link.supervision import PeerEvent, Supervisor

logger = logging.getLogger("lattica.link")


class Peers:
    """Owns the supervisor of one endpoint. Everything is called on the event loop's thread."""

    def __init__(self, config: LinkConfig, redial: Callable[[PeerId], None]) -> None:
        """`redial` begins a dial; how it ends is told to `supervisor`."""
        self.supervisor = Supervisor(config, chance=random.random)
        self._config = config
        self._redial = redial
        self._listeners: list[Callable[[PeerEvent], None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._is_running = False

    def start(self) -> None:
        """Begin to redial, on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._is_running = True
        self._arm()

    def close(self) -> None:
        """Redial nobody any more."""
        self._is_running = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def watch(self, listener: Callable[[PeerEvent], None]) -> Callable[[], None]:
        """Call `listener` on every change of state; the result unsubscribes."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def keep(self, peer: PeerId) -> Callable[[], None]:
        """Redial `peer` whenever it is down, until the result is called."""
        self.supervisor.keep(peer)
        self._arm()
        is_kept = True

        def release() -> None:
            nonlocal is_kept
            if is_kept:
                is_kept = False
                self.supervisor.release(peer)

        return release

    def pause(self, peer: PeerId, now: float) -> float:
        """Seconds that a dial has to wait.

        Raises:
            BackoffError: that is too long to wait for.
        """
        wait = self.supervisor.wait(peer, now)
        if wait > self._config.backoff_patience:
            failures, last = self.supervisor.failures(peer)
            error = BackoffError(
                f"{failures} attempts in a row to link to {peer.short} have failed "
                f"(the last one: {last}); the next is due in {wait:.1f} s"
            )
            error.retry_after = wait
            raise error
        return wait

    def tell(self, event: PeerEvent | None) -> None:
        """Pass on what the supervisor has found."""
        self._arm()
        if event is None:
            return
        for listener in tuple(self._listeners):
            try:
                listener(event)
            except Exception:  # one listener's bug is not the others'
                logger.exception("a listener failed on %s", event)

    # ----------------------------------------------------------------- inside

    def _arm(self) -> None:
        if not self._is_running:
            return
        due = self.supervisor.next_due()
        if self._timer is not None:
            if due is not None and self._timer.when() <= due:
                return  # it is set anew when it fires
            self._timer.cancel()
            self._timer = None
        if due is not None:
            self._timer = self._loop.call_at(max(due, self._loop.time()), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        for peer in self.supervisor.due(self._loop.time()):
            self._redial(peer)
        self._arm()
