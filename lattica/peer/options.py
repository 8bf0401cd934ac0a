"""What a peer is and what it offers, as its user asks for it."""

from __future__ import annotations

from pathlib import Path

import msgspec

from lattica.config import Config


class PeerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a peer is and what it offers.

    `None` for a resource means this machine's own amount.
    """

    home: Path | None = None  # None: a temporary home, forgotten at the end
    ticket: str | None = None  # the mesh to join; None: the home's own, or a new one
    name: str = ""  # how people call it; default: the machine's name
    listen: str = ""  # host:port; default: loopback, or every interface where others are remote
    tcp: str | None = None  # also listen there over TCP; "": where UDP listens; None: do not
    tls: str | None = None  # and inside TLS; "": port 443, or any if that is not permitted
    addresses: tuple[str, ...] = ()  # others reach it there, such as by a port forwarded by hand
    relay: bool | None = None  # forward for peers behind NATs; None: if strangers can reach this
    map_ports: bool = True  # ask the home's router to let others in
    lan: bool = True  # find members of the mesh on the local network, and be found
    cpus: float | None = None
    gpus: float = 0.0
    memory: int | None = None  # bytes
    resources: dict[str, float] = {}
    labels: dict[str, str] = {}
    config: Config = Config()

    @property
    def offered(self) -> dict[str, float]:
        """What is offered by choice; the host fills in what this machine has."""
        offered = {"GPU": self.gpus, **self.resources}
        if self.cpus is not None:
            offered["CPU"] = self.cpus
        if self.memory is not None:
            offered["memory"] = float(self.memory)
        elif self.cpus == 0:
            offered["memory"] = 0.0  # a guest that runs nothing
        return offered
