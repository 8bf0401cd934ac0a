"""What the demo's user wrote: functions and an actor, as in any program with Lattica."""

from __future__ import annotations

import os
import time

import lattica


@lattica.remote
def where(number: int) -> tuple[int, str]:
    """Work a little; say which peer did it."""
    time.sleep(0.15)  # stands for work, so that one peer cannot take everything
    return number * number, lattica.get_runtime_context().peer_name


@lattica.remote
class Camera:
    """Stands for what only one machine has."""

    def __init__(self) -> None:
        self.shots = 0

    def shoot(self) -> int:
        """Pictures taken since this process started."""
        self.shots += 1
        return self.shots

    def whoami(self) -> tuple[str, int]:
        """The peer's name and this process's id."""
        return lattica.get_runtime_context().peer_name, os.getpid()
