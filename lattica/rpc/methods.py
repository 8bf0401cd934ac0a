"""Methods as both ends see them: built from annotations, once per class."""

from __future__ import annotations

import copy
import inspect
import typing
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Generator,
    Iterator,
)
from typing import Any, Literal, ParamSpec, Protocol, TypeVar, overload

import msgspec

from lattica.errors import BadArgumentsError, BadResultError
from lattica.identity import grants
from lattica.identity.keys import PeerId
from lattica.rpc import codec
from lattica.rpc.buffers import Buffer
from lattica.rpc.itemtypes import ItemType
from lattica.rpc.mismatch import explain

F = TypeVar("F", bound=Callable[..., Any])
P = ParamSpec("P")
R = TypeVar("R")
RunIn = Literal["loop", "thread", "process"]
_MARK = "_lattica_offer"
_STREAMS = (AsyncIterator, AsyncGenerator, AsyncIterable)
_PLAIN_STREAMS = (Iterator, Generator)
# Stands for the items among the arguments: no other annotation takes it, so ends that know
# the method by different signatures notice.
_ITEMS = msgspec.msgpack.Ext(1, b"")


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """What `@method` says; None where the defaults of `RpcConfig` hold."""

    scope: str | None
    max_concurrency: int | None
    max_queue: int | None
    run_in: RunIn
    idempotent: bool


class _Mark(Protocol):
    """Callers await what is a plain function here, and what it yields comes one by one."""

    @overload
    def __call__(  # type: ignore[overload-overlap] # an iterator is never one value here
        self, function: Callable[P, Iterator[R]]
    ) -> Callable[P, AsyncIterator[R]]: ...
    @overload
    def __call__(self, function: Callable[P, R]) -> Callable[P, Coroutine[Any, Any, R]]: ...


@overload
def method(
    *,
    scope: str | None = ...,
    max_concurrency: int | None = ...,
    max_queue: int | None = ...,
    run_in: Literal["loop"] = ...,
    idempotent: bool = ...,
) -> Callable[[F], F]: ...
@overload
def method(
    *,
    scope: str | None = ...,
    max_concurrency: int | None = ...,
    max_queue: int | None = ...,
    run_in: Literal["thread", "process"],
    idempotent: bool = ...,
) -> _Mark: ...
def method(
    *,
    scope: str | None = grants.CALL,
    max_concurrency: int | None = None,
    max_queue: int | None = None,
    run_in: RunIn = "loop",
    idempotent: bool = False,
) -> Any:
    """Offer a method to peers that hold `scope`; None: to anyone, even strangers.

    The method is `async def` and annotated; an async generator is a stream of items. One
    parameter may be an `AsyncIterator[T]`: the items that the caller sends meanwhile.

    `max_concurrency` of its calls run at a time, all peers together; `max_queue` more wait
    for a place, and the peers take turns. What is over that is refused with a `BusyError`.

    With `run_in="thread"` it is a plain function, or a plain generator, that may block: it
    keeps its place until it returns, also when its caller has gone. With
    `run_in="process"` it is a plain function that may compute: a static method, or one whose
    object can be pickled and is copied for each call. Its process is killed and replaced
    when the call is cancelled or past its deadline. Processes are spawned when they are first
    needed, so a script that serves keeps what it does behind `if __name__ == "__main__"`.

    `idempotent` says that a call which may have run may be made again: callers that ask for
    retries then get one after a lost link too.

    Raises:
        ValueError: a value is none of those allowed.
    """
    if max_concurrency is not None and max_concurrency < 1:
        raise ValueError("max_concurrency is at least 1")
    if max_queue is not None and max_queue < 0:
        raise ValueError("max_queue is at least 0")
    if run_in not in typing.get_args(RunIn):
        raise ValueError(f'run_in is "loop", "thread" or "process", not {run_in!r}')
    offer = Offer(
        scope=scope,
        max_concurrency=max_concurrency,
        max_queue=max_queue,
        run_in=run_in,
        idempotent=idempotent,
    )

    def mark(function: F) -> F:
        setattr(function, _MARK, offer)
        return function

    return mark


class MethodSpec:
    """One method: what is offered, how its arguments and results are packed and checked."""

    into: tuple[memoryview, ...] = ()  # where the buffers of this call's result go

    def __init__(self, name: str, function: Callable[..., Any], *, is_static: bool = False) -> None:
        """`is_static`: its first parameter is not the object."""
        self.name = name
        self.offer: Offer = getattr(function, _MARK)
        hints = _hints(function, is_static)
        self.signature = _signature(function, is_static, hints)
        returns = hints.pop("return")
        on_loop = self.offer.run_in == "loop"
        self.is_stream = typing.get_origin(returns) in (_STREAMS if on_loop else _PLAIN_STREAMS)
        self.result_type: Any = typing.get_args(returns)[0] if self.is_stream else returns
        _check_kind(function, self.offer.run_in, self.is_stream)
        parameters = list(self.signature.parameters)
        self.result_items = ItemType(self.result_type, f"{name}()", BadResultError)
        self.upload = _upload(function, self.signature, hints)
        self.upload_items: ItemType | None = None
        if self.upload is not None:
            if not on_loop:
                raise TypeError(f"{function.__qualname__}: streams of items are read in the loop")
            kind = typing.get_args(hints[self.upload])[0]
            title = f"{name}(): an item of {self.upload!r}"
            self.upload_items = ItemType(kind, title, BadArgumentsError)
            hints[self.upload] = msgspec.msgpack.Ext
        self.args_type = msgspec.defstruct(
            f"{name}_arguments",
            [(parameter, hints[parameter]) for parameter in parameters],
            array_like=True,
            forbid_unknown_fields=True,
        )
        self._names = tuple(parameters)
        self._keywords = tuple(
            parameter.name
            for parameter in self.signature.parameters.values()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        )
        # Values of just these types need no further look: most calls, at a third of the cost.
        kinds = [hints[parameter] for parameter in parameters]
        is_exact = not self._keywords and all(map(_is_exact, kinds))
        self._exact = tuple(kinds) if is_exact else None
        self._exact_result = self.result_type if _is_exact(self.result_type) else None
        self.args_decoder = codec.Decoder(self.args_type)
        self.result_decoder = codec.Decoder(self.result_type)

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The arguments as an `args_type`.

        Raises:
            BadArgumentsError: they do not fit the signature or the annotations.
        """
        if not kwargs and tuple(map(type, args)) == self._exact:
            return self.args_type(*args)
        if kwargs or self._keywords or len(args) != len(self._names):
            args = self._positional(args, kwargs)
        return self._checked(args)

    def bind_upload(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """The same for a method that takes items: the arguments, and what makes the items.

        Raises:
            BadArgumentsError: see `bind`.
        """
        values = list(self._positional(args, kwargs))
        assert self.upload is not None
        place = self._names.index(self.upload)
        source, values[place] = values[place], _ITEMS
        is_text = isinstance(source, str | bytes | bytearray | memoryview)
        if is_text or not (hasattr(source, "__aiter__") or hasattr(source, "__iter__")):
            raise BadArgumentsError(
                f"{self.name}(): {self.upload!r} takes an async iterable or an iterable of "
                f"items, not {type(source).__name__}"
            )
        return self._checked(tuple(values)), source

    def _positional(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise self.bad_arguments(str(error)) from None
        bound.apply_defaults()
        return tuple(bound.arguments.values())

    def _checked(self, args: tuple[Any, ...]) -> Any:
        try:
            return codec.check(args, self.args_type)
        except BadArgumentsError as error:
            raise self.bad_arguments(str(error)) from None

    def bad_arguments(self, problem: str) -> BadArgumentsError:
        """The error for arguments that do not fit; `problem` as msgspec or Python tell it."""
        return BadArgumentsError(f"{self.name}{self.signature}: {explain(problem, self._names)}")

    def invoke(self, function: Callable[..., Any], arguments: Any, items: Any = None) -> Any:
        """Call the handler; `items` are those that the caller sends, if the method takes any."""
        if not self._keywords and items is None:
            return function(*msgspec.structs.astuple(arguments))
        args, kwargs = self.unbind(arguments, items)
        return function(*args, **kwargs)

    def unbind(self, arguments: Any, items: Any = None) -> tuple[list[Any], dict[str, Any]]:
        """Arguments as Python passes them."""
        values = {name: getattr(arguments, name) for name in self._names}
        if self.upload is not None:
            values[self.upload] = items
        keywords = {name: values.pop(name) for name in self._keywords}
        return list(values.values()), keywords

    def with_destinations(self, views: tuple[memoryview, ...]) -> MethodSpec:
        """The same method, for a call whose result's buffers go into `views`."""
        spec = copy.copy(self)
        spec.into = views
        return spec

    def check_result(self, value: Any) -> Any:
        """`value` as the annotated result or item.

        Raises:
            BadResultError: it is none.
        """
        if type(value) is self._exact_result:
            return value
        try:
            return codec.check(value, self.result_type)
        except BadArgumentsError as error:
            what = "yielded" if self.is_stream else "returned"
            raise BadResultError(
                f"{self.name}() {what} a value that is no {self.result_type}: {error}"
            ) from None

    def __repr__(self) -> str:
        return f"MethodSpec({self.name}{self.signature})"


def _is_exact(kind: Any) -> bool:
    """Whether every value whose type is just `kind` is a valid `kind`."""
    return kind in (bool, int, float, str, bytes, Buffer, PeerId)


def methods_of(service: type[Any]) -> dict[str, MethodSpec]:
    """The marked methods of a class, those of its bases included.

    Raises:
        TypeError: a method is not annotated as it must be.
    """
    found: dict[str, MethodSpec] = {}
    for name in dir(service):
        found_there = inspect.getattr_static(service, name)
        is_static = isinstance(found_there, staticmethod)
        function = getattr(found_there, "__func__", found_there)  # of a static or class method
        if callable(function) and hasattr(function, _MARK):
            found[name] = MethodSpec(name, function, is_static=is_static)
    if not found:
        raise TypeError(f"{service.__qualname__} has no @method")
    return found


def _check_kind(function: Callable[..., Any], run_in: RunIn, is_stream: bool) -> None:
    name = function.__qualname__
    if run_in == "loop":
        if not is_stream and not inspect.iscoroutinefunction(function):
            raise TypeError(
                f"{name} must be `async def` or an async generator, or say where it runs: "
                '@method(run_in="thread") or "process"'
            )
    elif inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f'{name} is async and runs in the loop: leave out run_in="{run_in}"')
    elif is_stream and run_in == "process":
        raise TypeError(f'{name} yields items, which come from threads only: run_in="thread"')


def _signature(
    function: Callable[..., Any], is_static: bool, hints: dict[str, Any]
) -> inspect.Signature:
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())[not is_static :]
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TypeError(f"{function.__qualname__}: *args and **kwargs have no wire form")
    # Types in place of what their annotations say, which may be text: errors show them.
    typed = [parameter.replace(annotation=hints[parameter.name]) for parameter in parameters]
    returns = None if hints["return"] is type(None) else hints["return"]
    return signature.replace(parameters=typed, return_annotation=returns)


def _upload(
    function: Callable[..., Any], signature: inspect.Signature, hints: dict[str, Any]
) -> str | None:
    """The parameter that is a stream of items, if any."""
    name = function.__qualname__
    found = [key for key in signature.parameters if typing.get_origin(hints[key]) in _STREAMS]
    if len(found) > 1:
        raise TypeError(f"{name}: one stream of items, not {', '.join(found)}")
    for key, parameter in signature.parameters.items():
        inside = key not in found and _mentions_stream(hints[key])
        if inside or (key in found and parameter.default is not parameter.empty):
            raise TypeError(f"{name}: {key!r} must be a stream of items always, with no default")
    return found[0] if found else None


def _mentions_stream(hint: Any) -> bool:
    arguments = typing.get_args(hint)
    return typing.get_origin(hint) in _STREAMS or any(map(_mentions_stream, arguments))


def _hints(function: Callable[..., Any], is_static: bool) -> dict[str, Any]:
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise TypeError(
            f"{function.__qualname__}: {error}; annotations must name what its module imports"
        ) from None
    names = [*list(inspect.signature(function).parameters)[not is_static :], "return"]
    missing = [name for name in names if name not in hints]
    if missing:
        raise TypeError(f"{function.__qualname__}: no annotation for {', '.join(missing)}")
    return {name: hints[name] for name in names}
