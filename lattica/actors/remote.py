"""`@lattica.remote`: functions and classes whose calls run elsewhere in the mesh."""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar, overload

from blake3 import blake3

from lattica.actors import options as opts
from lattica.actors import serialization, signatures
from lattica.actors.calls import pack_call, returned
from lattica.actors.context import current
from lattica.actors.handles import ActorHandle, create
from lattica.actors.messages import ActorSpec, TaskSpec
from lattica.actors.options import Options
from lattica.rpc.buffers import Buffer

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C")


class RemoteFunction(Generic[P, R]):
    """A function whose `.remote(...)` runs as a task on some peer."""

    def __init__(self, function: Callable[P, R], options: Options) -> None:
        self._function = function
        self._options = options
        self._prepare()

    def _prepare(self) -> None:
        function = self._function
        self.__wrapped__ = function
        self.__name__ = function.__name__
        self.__qualname__ = function.__qualname__
        self.__module__ = function.__module__
        self.__doc__ = function.__doc__
        self._signature = _signature(function)
        self._code: tuple[Buffer, bytes] | None = None
        self._lock = threading.Lock()

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Start a task; returns an ObjectRef, a list of them, or an ObjectRefGenerator.

        Raises:
            TypeError: the arguments do not fit the function's signature.
            SerializationError: an argument cannot be pickled; the message names it.
            NotInitializedError: `lattica.init()` has not been called.
        """
        context = current()
        what = f"{self.__name__}()"
        signatures.check(self._signature, what, args, kwargs)
        code, code_hash = self._pickled()
        packed = pack_call(context, args, kwargs, what, signatures.names(self._signature))
        result = returned(context, self._num_returns())
        spec = TaskSpec(
            task=os.urandom(16),
            name=self._options.name or self.__qualname__.rpartition("<locals>.")[2],
            function=code,
            function_hash=code_hash,
            args=packed.args,
            arg_refs=packed.refs,
            returns=result.ids,
            stream=result.stream,
            requirements=self._options.requirements(cpus=1.0),
            max_retries=self._options.max_retries,
            owner_name=context.name,
        )
        context.post(context.core.submit, spec)
        return result.refs

    def options(self, **options: Any) -> RemoteFunction[P, R]:
        """The same function with other options.

        Raises:
            TypeError, ValueError: an unknown option, or a value that it cannot have.
        """
        changed = opts.parse(self._options, options, opts.TASK, f"{self.__name__}.options()")
        made = RemoteFunction(self._function, changed)
        made._code = self._code
        return made

    def _num_returns(self) -> opts.NumReturns:
        if self._options.num_returns is not None:
            return self._options.num_returns
        return "streaming" if _is_generator(self._function) else 1

    def _pickled(self) -> tuple[Buffer, bytes]:
        with self._lock:
            if self._code is None:
                data = serialization.dump_code(self._function, f"function {self.__name__}()")
                self._code = (data, blake3(data.data).digest())
            return self._code

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        raise TypeError(
            f"{self.__name__} is a remote function: call {self.__name__}.remote(...), "
            f"or {self.__name__}.__wrapped__(...) to run it here"
        )

    def __repr__(self) -> str:
        return f"<remote function {self.__module__}.{self.__qualname__}>"

    # State, not constructor arguments: a recursive function holds its RemoteFunction among
    # its globals, and only state is pickled after the object itself is known to the pickler.
    def __getstate__(self) -> dict[str, Any]:
        return {"_function": self._function, "_options": self._options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._pending = True

    def __getattr__(self, name: str) -> Any:
        # While a recursive function is being unpickled it may not be whole yet, so what
        # depends on it is made at first use.
        if self.__dict__.pop("_pending", False):
            self._prepare()
            return getattr(self, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


class ActorClass(Generic[C]):
    """A class whose `.remote(...)` makes an actor: one instance in a process of its own."""

    def __init__(self, cls: type[C], options: Options) -> None:
        self._class = cls
        self._options = options
        self._prepare()

    def _prepare(self) -> None:
        cls = self._class
        self.__name__ = cls.__name__
        self.__qualname__ = cls.__qualname__
        self.__module__ = cls.__module__
        self.__doc__ = cls.__doc__
        self._init = _signature(cls.__init__, skip_self=True)
        self._code: Buffer | None = None
        self._lock = threading.Lock()

    def remote(self, *args: Any, **kwargs: Any) -> ActorHandle:
        """Start an actor; its handle can be used at once.

        Raises:
            TypeError: the arguments do not fit the class's `__init__`.
            SerializationError: an argument cannot be pickled; the message names it.
            NameTakenError: the name is held by a live actor.
            NotInitializedError: `lattica.init()` has not been called.
        """
        context = current()
        what = f"{self.__name__}()"
        signatures.check(self._init, what, args, kwargs)
        packed = pack_call(context, args, kwargs, what, signatures.names(self._init))
        methods = _methods(self._class)
        spec = ActorSpec(
            actor=context.core.owner.raw + os.urandom(16),
            owner=context.core.owner,
            class_name=self.__name__,
            definition=self._pickled(),
            args=packed.args,
            arg_refs=packed.refs,
            methods={name: _kind(method.function) for name, method in methods.items()},
            signatures={
                name: signatures.to_parameters(list(found.parameters.values()))
                for name, method in methods.items()
                if (found := _signature(method.function, skip_self=method.has_self)) is not None
            },
            name=self._options.name,
            requirements=self._options.requirements(cpus=0.0),
            max_restarts=self._options.max_restarts,
            max_task_retries=self._options.max_task_retries,
            max_concurrency=self._concurrency(methods),
        )
        return create(context, spec)

    def options(self, **options: Any) -> ActorClass[C]:
        """The same class with other options.

        Raises:
            TypeError, ValueError: an unknown option, or a value that it cannot have.
        """
        changed = opts.parse(self._options, options, opts.ACTOR, f"{self.__name__}.options()")
        made = ActorClass(self._class, changed)
        made._code = self._code
        return made

    def _concurrency(self, methods: dict[str, _Method]) -> int:
        if self._options.max_concurrency is not None:
            return self._options.max_concurrency
        # As in Ray: an actor with async methods runs many of them at a time.
        return 1000 if any(_is_async(method.function) for method in methods.values()) else 1

    def _pickled(self) -> Buffer:
        with self._lock:
            if self._code is None:
                self._code = serialization.dump_code(self._class, f"class {self.__name__}")
            return self._code

    def __call__(self, *args: Any, **kwargs: Any) -> C:
        raise TypeError(
            f"{self.__name__} is an actor class: call {self.__name__}.remote(...) to start one"
        )

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        raise TypeError(
            f"{self.__name__} is an actor class and cannot be inherited from; "
            "inherit from the plain class and make the subclass remote"
        )

    def __repr__(self) -> str:
        return f"<actor class {self.__module__}.{self.__qualname__}>"

    def __getstate__(self) -> dict[str, Any]:
        return {"_class": self._class, "_options": self._options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._pending = True

    def __getattr__(self, name: str) -> Any:
        if self.__dict__.pop("_pending", False):
            self._prepare()
            return getattr(self, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


@overload
def remote(target: type[C], /) -> ActorClass[C]: ...  # type: ignore[overload-overlap]
@overload
def remote(target: Callable[P, R], /) -> RemoteFunction[P, R]: ...
@overload
def remote(**options: Any) -> Callable[[Any], Any]: ...
def remote(*targets: Any, **options: Any) -> Any:
    """Make a function or class remote: `@remote`, or `@remote(num_cpus=2, max_restarts=1)`.

    Raises:
        TypeError, ValueError: not a function or class, or an option that does not fit.
    """
    if targets:
        if len(targets) > 1 or options:
            raise TypeError("use @lattica.remote, or @lattica.remote(option=value, ...)")
        return _make(targets[0], {})
    return lambda target: _make(target, options)


def _make(target: Any, options: dict[str, Any]) -> Any:
    if isinstance(target, (RemoteFunction, ActorClass)):
        raise TypeError(f"{target!r} is remote already")
    if isinstance(target, type):
        what = f"an actor class ({target.__name__})"
        return ActorClass(target, opts.parse(Options(), options, opts.ACTOR, what))
    if callable(target) and hasattr(target, "__qualname__"):
        what = f"a remote function ({target.__name__})"
        return RemoteFunction(target, opts.parse(Options(), options, opts.TASK, what))
    raise TypeError(f"@lattica.remote takes a function or a class, not {target!r}")


def _signature(function: Any, *, skip_self: bool = False) -> inspect.Signature | None:
    if skip_self and function is object.__init__:
        return inspect.Signature()
    try:
        return signatures.signature_of(function, skip_self=skip_self)
    except (ValueError, TypeError):  # C code: the far end will say what is wrong
        return None


class _Method(NamedTuple):
    function: Any
    has_self: bool


def _methods(cls: type) -> dict[str, _Method]:
    found = {}
    for name in dir(cls):
        if name.startswith("__") and name != "__call__":
            continue
        static = inspect.getattr_static(cls, name)
        bound = isinstance(static, (staticmethod, classmethod))
        if name == "__call__" and not inspect.isfunction(static):
            continue
        if bound or inspect.isroutine(static):
            found[name] = _Method(getattr(cls, name), has_self=not bound)
    return found


def _is_generator(function: Any) -> bool:
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def _is_async(function: Any) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def _kind(function: Any) -> str:
    if _is_generator(function):
        return "stream"
    return "async" if _is_async(function) else "call"
