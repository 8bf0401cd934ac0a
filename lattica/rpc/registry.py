"""What a peer serves, who may call it, and what was refused."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any, Protocol
from weakref import WeakValueDictionary

from lattica.config import RpcConfig
from lattica.errors import BusyError, PermissionDeniedError, UnknownMethodError
from lattica.identity.grants import allows
from lattica.identity.keys import PeerId
from lattica.rpc.admission import Admission, Gate, Share
from lattica.rpc.executors import Executors
from lattica.rpc.meter import Meter
from lattica.rpc.methods import MethodSpec
from lattica.rpc.work import Pool

log = logging.getLogger("lattica.rpc")
MAX_LOGGED = 1024  # (peer, method) pairs: a stranger must not fill the log


class Waiting(Protocol):
    """A call that waits for its turn."""

    def start(self) -> None:
        """There is a place, and it is taken."""
        ...

    def refuse(self) -> None:
        """Too many wait."""
        ...


class Handler:
    """One method of a registered service, and what it has done."""

    __slots__ = ("_is_known_to_block", "function", "gate", "meter", "name", "pool", "spec")

    def __init__(
        self,
        name: str,
        spec: MethodSpec,
        function: Any,
        gate: Gate[Waiting],
        pool: Pool | None = None,
    ) -> None:
        """`name` is that of the service and the method; no `pool`: it runs on the loop."""
        self.name = name
        self.spec = spec
        self.function = function
        self.gate = gate
        self.pool = pool
        self.meter = Meter()
        self._is_known_to_block = False

    def blocked(self, seconds: float) -> None:
        """It kept the event loop for so long."""
        self.meter.blocked = max(self.meter.blocked, seconds)
        if not self._is_known_to_block:
            self._is_known_to_block = True
            log.warning(
                "%s kept the event loop for %.2f s, and every other call with it: make it a plain "
                'function with @method(run_in="thread"), or let it wait more often',
                self.name,
                seconds,
            )


class Registry:
    """The services of one `Rpc`, and who may run how many of their calls."""

    def __init__(self, counters: Counter[str], config: RpcConfig) -> None:
        self.services: dict[str, dict[str, Handler]] = {}
        self.counters = counters
        self.admission: Admission[Waiting] = Admission(config.max_running)
        self.executors = Executors(config)
        self.config = config
        # A peer's calls count until their handlers are over, also those of a lost link.
        self._shares: WeakValueDictionary[PeerId, Share] = WeakValueDictionary()
        self._logged: set[tuple[PeerId, str]] = set()

    def add(self, name: str, instance: Any, specs: dict[str, MethodSpec]) -> None:
        """Serve the methods of `instance` as `name`.

        Raises:
            ValueError: the name is taken.
        """
        if name in self.services:
            raise ValueError(f"a service {name!r} is registered already")
        self.services[name] = {
            spec.name: self._handler(name, spec, getattr(instance, spec.name))
            for spec in specs.values()
        }

    def _handler(self, service: str, spec: MethodSpec, function: Any) -> Handler:
        offer, config = spec.offer, self.config
        pool = self.executors.pool(spec, function)
        gate: Gate[Waiting] = Gate(
            config.max_concurrency if offer.max_concurrency is None else offer.max_concurrency,
            max_queue=config.max_queue if offer.max_queue is None else offer.max_queue,
            max_queue_bytes=config.max_queue_bytes,
            pool=pool.limit if pool is not None else None,
        )
        return Handler(f"{service}.{spec.name}", spec, function, gate, pool)

    def share(self, peer: PeerId) -> Share:
        """What runs of `peer`. Keep it: it is forgotten with its last holder."""
        share = self._shares.get(peer)
        if share is None:
            share = self._shares[peer] = Share(self.config.max_running_per_peer)
        return share

    def busy(self, handler: Handler, now: float) -> BusyError:
        """The refusal of a call that found no place in the queue."""
        self.counters["refused:busy"] += 1
        gate = handler.gate
        return BusyError(
            f"{gate.running} calls of {handler.name} are running and {gate.queued} waiting, as "
            "many as may; try again later, or ask a peer that has less to do",
            retry_after=self.admission.retry_after(gate, now),
        )

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
        wanted = handler.spec.offer.scope
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
