"""Methods as both ends see them: built from annotations, once per class."""

from __future__ import annotations

import inspect
import typing
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from typing import Any, TypeVar

import msgspec

from lattica.errors import BadArgumentsError, BadResultError
from lattica.identity import grants
from lattica.identity.keys import PeerId
from lattica.rpc import codec
from lattica.rpc.buffers import Buffer

F = TypeVar("F", bound=Callable[..., Any])
_MARK = "_lattica_offer"
_STREAMS = (AsyncIterator, AsyncGenerator, AsyncIterable)


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """What `@method` says; None where the defaults of `RpcConfig` hold."""

    scope: str | None = grants.CALL
    max_concurrency: int | None = None
    max_queue: int | None = None
    idempotent: bool = False


def method(
    *,
    scope: str | None = grants.CALL,
    max_concurrency: int | None = None,
    max_queue: int | None = None,
    idempotent: bool = False,
) -> Callable[[F], F]:
    """Offer a method to peers that hold `scope`; None: to anyone, even strangers.

    The method is `async def` and annotated; an async generator is a stream of items.

    `max_concurrency` of its calls run at a time, all peers together; `max_queue` more wait
    for a place, and the peers take turns. What is over that is refused with a `BusyError`.
    `idempotent` says that a call which may have run may be made again: callers that ask for
    retries then get one after a lost link too.

    Raises:
        ValueError: `max_concurrency` is below 1 or `max_queue` below 0.
    """
    if max_concurrency is not None and max_concurrency < 1:
        raise ValueError("max_concurrency is at least 1")
    if max_queue is not None and max_queue < 0:
        raise ValueError("max_queue is at least 0")
    offer = Offer(
        scope=scope, max_concurrency=max_concurrency, max_queue=max_queue, idempotent=idempotent
    )

    def mark(function: F) -> F:
        setattr(function, _MARK, offer)
        return function

    return mark


class MethodSpec:
    """One method: what is offered, how its arguments and results are packed and checked."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = name
        self.offer: Offer = getattr(function, _MARK)
        self.signature = _without_self(function)
        hints = _hints(function)
        returns = hints.pop("return")
        self.is_stream = typing.get_origin(returns) in _STREAMS
        self.result_type: Any = typing.get_args(returns)[0] if self.is_stream else returns
        if not self.is_stream and not inspect.iscoroutinefunction(function):
            raise TypeError(f"{function.__qualname__} must be `async def` or an async generator")
        parameters = list(self.signature.parameters)
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
            try:
                bound = self.signature.bind(*args, **kwargs)
            except TypeError as error:
                raise BadArgumentsError(f"{self.name}(): {error}") from None
            bound.apply_defaults()
            args = tuple(bound.arguments.values())
        try:
            return codec.check(args, self.args_type)
        except BadArgumentsError as error:
            raise BadArgumentsError(f"{self.name}{self.signature}: {error}") from None

    def invoke(self, function: Callable[..., Any], arguments: Any) -> Any:
        """Call the handler."""
        if not self._keywords:
            return function(*msgspec.structs.astuple(arguments))
        values = {name: getattr(arguments, name) for name in self._names}
        keywords = {name: values.pop(name) for name in self._keywords}
        return function(*values.values(), **keywords)

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
        function = inspect.getattr_static(service, name)
        if callable(function) and hasattr(function, _MARK):
            found[name] = MethodSpec(name, function)
    if not found:
        raise TypeError(f"{service.__qualname__} has no @method")
    return found


def _without_self(function: Callable[..., Any]) -> inspect.Signature:
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())[1:]
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TypeError(f"{function.__qualname__}: *args and **kwargs have no wire form")
    return signature.replace(parameters=parameters)


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise TypeError(
            f"{function.__qualname__}: {error}; annotations must name what its module imports"
        ) from None
    names = [*list(inspect.signature(function).parameters)[1:], "return"]
    missing = [name for name in names if name not in hints]
    if missing:
        raise TypeError(f"{function.__qualname__}: no annotation for {', '.join(missing)}")
    return {name: hints[name] for name in names}
