"""What a peer serves, who may call it, and what was refused."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

from lattica.errors import PermissionDeniedError, UnknownMethodError
from lattica.identity.grants import allows
from lattica.identity.keys import PeerId
from lattica.rpc.methods import MethodSpec

log = logging.getLogger("lattica.rpc")
MAX_LOGGED = 1024  # (peer, method) pairs: a stranger must not fill the log


class Handler:
    """One method of a registered service, and what it has done."""

    __slots__ = ("calls", "errors", "function", "running", "spec")

    def __init__(self, spec: MethodSpec, function: Any) -> None:
        self.spec = spec
        self.function = function
        self.calls = 0
        self.errors = 0
        self.running = 0


class Registry:
    """The services of one `Rpc`."""

    def __init__(self, counters: Counter[str]) -> None:
        self.services: dict[str, dict[str, Handler]] = {}
        self.counters = counters
        self._logged: set[tuple[PeerId, str]] = set()

    def add(self, name: str, instance: Any, specs: dict[str, MethodSpec]) -> None:
        """Serve the methods of `instance` as `name`.

        Raises:
            ValueError: the name is taken.
        """
        if name in self.services:
            raise ValueError(f"a service {name!r} is registered already")
        self.services[name] = {
            spec.name: Handler(spec, getattr(instance, spec.name)) for spec in specs.values()
        }

    def find(
        self, service: str, method: str, peer: PeerId, scopes: frozenset[str], *, local: bool
    ) -> Handler:
        """The handler of a method that a peer with `scopes` may call; a `local` one may all.

        Raises:
            UnknownMethodError: names what exists, to members.
            PermissionDeniedError: counted, and logged once for each peer and method.
        """
        handlers = self.services.get(service)
        handler = handlers.get(method) if handlers is not None else None
        if handler is None:
            self.counters["refused:unknown_method"] += 1
            raise UnknownMethodError(
                f"no method {service}.{method}" + (self._known(service) if scopes or local else "")
            )
        wanted = handler.spec.scope
        if wanted is None or local or allows(scopes, wanted):
            return handler
        self.counters["refused:permission"] += 1
        full = f"{service}.{method}"
        if (peer, full) not in self._logged and len(self._logged) < MAX_LOGGED:
            self._logged.add((peer, full))
            log.warning("refused %s to %s: no grant for %r", full, peer.short, wanted)
        raise PermissionDeniedError(
            f"{full} asks for the grant {wanted!r}, which {peer.short} does not hold; "
            "join the mesh with a ticket"
        )

    def _known(self, service: str) -> str:
        handlers = self.services.get(service)
        if handlers is not None:
            return f"; {service!r} has {', '.join(sorted(handlers))}"
        return f"; the services here are {', '.join(sorted(self.services)) or 'none'}"
