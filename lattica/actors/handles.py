"""Actor handles: how a program speaks to an actor, wherever that lives."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
from typing import Any

from lattica.actors import options as opts
from lattica.actors import signatures
from lattica.actors.calls import SPILL_ORDERED, pack_call, returned
from lattica.actors.context import Context, current
from lattica.actors.messages import ActorCall, ActorId, ActorInfo, ActorSpec
from lattica.actors.options import Options
from lattica.errors import LatticaError, NameTakenError, NoSuchActorError
from lattica.identity import wire

log = logging.getLogger("lattica.actors")


class ActorMethod:
    """A method of an actor: `.remote(...)` calls it."""

    __slots__ = ("_handle", "_name", "_options")

    def __init__(self, handle: ActorHandle, name: str, options: Options) -> None:
        self._handle = handle
        self._name = name
        self._options = options

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Start a call; returns an ObjectRef, a list of them, or an ObjectRefGenerator.

        Calls of one caller to one actor start in the order made.

        Raises:
            TypeError: the arguments do not fit the method's signature.
            SerializationError: an argument cannot be pickled; the message names it.
        """
        return self._handle._call(self._name, args, kwargs, self._options.num_returns)

    def options(self, **options: Any) -> ActorMethod:
        """The same method with other options: `num_returns`.

        Raises:
            TypeError, ValueError: an unknown option, or a value that it cannot have.
        """
        what = f"{self._handle._info.class_name}.{self._name}.options()"
        changed = opts.parse(self._options, options, opts.METHOD, what)
        return ActorMethod(self._handle, self._name, changed)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        name = f"{self._handle._info.class_name}.{self._name}"
        raise TypeError(f"{name} is a method of an actor: call .{self._name}.remote(...)")

    def __repr__(self) -> str:
        return f"<method {self._name} of {self._handle!r}>"


class ActorHandle:
    """Speaks to one actor. May be passed to remote calls and stored inside values."""

    def __init__(
        self, info: ActorInfo, context: Context | None = None, *, sole: _Sole | None = None
    ) -> None:
        self._info = info
        self._context = context or current()
        self._sole = sole
        self._signatures: dict[str, inspect.Signature] = {}

    def __getattr__(self, name: str) -> ActorMethod:
        if name.startswith("__") and name != "__call__":
            raise AttributeError(name)
        info = self._info
        if name not in info.methods:
            known = ", ".join(sorted(each for each in info.methods if not each.startswith("_")))
            raise AttributeError(
                f"actor class {info.class_name} has no method {name!r}; it has {known or 'none'}"
            )
        return ActorMethod(self, name, Options())

    def _call(
        self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], count: opts.NumReturns
    ) -> Any:
        info, context = self._info, self._context
        what = f"{info.class_name}.{method}()"
        signature = self._signature(method)
        signatures.check(signature, what, args, kwargs)
        packed = pack_call(
            context, args, kwargs, what, signatures.names(signature), spill=SPILL_ORDERED
        )
        if count is None:
            count = "streaming" if info.methods[method] == "stream" else 1
        result = returned(context, count)
        call = ActorCall(
            actor=info.actor,
            task=os.urandom(16),
            method=method,
            args=packed.args,
            arg_refs=packed.refs,
            returns=result.ids,
            stream=result.stream,
        )
        context.post(context.core.call_actor, call)
        return result.refs

    def _signature(self, method: str) -> inspect.Signature | None:
        if method not in self._signatures and method in self._info.signatures:
            self._signatures[method] = signatures.to_signature(self._info.signatures[method])
        return self._signatures.get(method)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActorHandle) and self._info.actor == other._info.actor

    def __hash__(self) -> int:
        return hash(self._info.actor)

    def __repr__(self) -> str:
        name = f" named {self._info.name!r}" if self._info.name else ""
        return f"ActorHandle({self._info.class_name} {actor_text(self._info.actor)}{name})"

    def __copy__(self) -> ActorHandle:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> ActorHandle:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if self._sole is not None:
            self._sole.shared = True
        return _load_handle, (wire.encode(self._info),)


class _Sole:
    """Ends an unnamed actor when the only handle that there ever was is gone, as Ray does."""

    def __init__(self, actor: ActorId, context: Context) -> None:
        self.shared = False
        self._actor = actor
        self._context = context

    def __del__(self) -> None:
        if not self.shared:
            self._context.post(self._context.core.drop_actor, self._actor)


def actor_text(actor: ActorId) -> str:
    """An actor's id for people."""
    return actor[32:].hex()[:12]


def create(context: Context, spec: ActorSpec) -> ActorHandle:
    """Start creating an actor; what goes wrong later is told by the first call.

    Raises:
        NameTakenError: the name is held by a live actor.
    """
    if spec.name and not _in_event_loop():
        _check_name(context, spec.name)
    info = ActorInfo(
        actor=spec.actor,
        owner=spec.owner,
        host=spec.owner,  # not known yet; the owner tells whoever asks
        class_name=spec.class_name,
        name=spec.name,
        methods=spec.methods,
        signatures=spec.signatures,
        max_task_retries=spec.max_task_retries,
    )
    sole = None if spec.name else _Sole(spec.actor, context)
    handle = ActorHandle(info, context, sole=sole)
    creating = context.start(context.core.create_actor, spec)
    creating.add_done_callback(lambda future: _report(future, spec))
    return handle


def _check_name(context: Context, name: str) -> None:
    try:
        info = context.run(context.core.find_actor, name)
    except NoSuchActorError:
        return
    raise NameTakenError(
        f"the name {name!r} is held by a live actor ({info.class_name} of {info.owner.short}); "
        f"use lattica.get_actor({name!r}), or another name"
    )


def _in_event_loop() -> bool:
    return asyncio._get_running_loop() is not None


def _report(future: Any, spec: ActorSpec) -> None:
    if future.cancelled():
        return
    error = future.exception()
    if error is not None:
        level = logging.WARNING if isinstance(error, LatticaError) else logging.ERROR
        log.log(level, "actor %s was not created: %s", spec.class_name, error)


def _load_handle(data: bytes) -> ActorHandle:
    return ActorHandle(wire.decode(data, ActorInfo))
