"""Values as bytes, and back; and which part of a value cannot be pickled.

`dump_call` and `load_call` are the two ends of a call's arguments: top-level ObjectRefs
stand as placeholders in the pickle and are replaced by their values before the call.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from typing import Any

from lattica.actors import pickling
from lattica.actors.context import find_current
from lattica.actors.messages import ObjectId, Value
from lattica.actors.refs import ObjectRef
from lattica.errors import SerializationError
from lattica.rpc.buffers import Buffer

_MAX_TRIALS = 400  # pickles tried in the search for a culprit
_MAX_DEPTH = 12
_PLAIN = (int, float, bool, str, bytes, type(None))


class ArgRef:
    """Stands in pickled arguments for `arg_refs[index]`."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index

    def __reduce__(self) -> tuple[type[ArgRef], tuple[int]]:
        return ArgRef, (self.index,)


def dumps(obj: Any, what: str = "the value") -> Value:
    """Pickle `obj`; `what` names it in errors. Buffers are copied: later changes do not show.

    Raises:
        SerializationError: naming the part that cannot be pickled.
    """
    if type(obj) in _PLAIN:
        return Value(Buffer(pickle.dumps(obj, protocol=5)))
    try:
        value = pickling.dump(obj)
    except Exception as error:
        raise _unpicklable(obj, what, error) from error
    _pin(value.refs)
    return value


def loads(value: Value) -> Any:
    """Unpickle. Runs code: only for values from peers that hold the mesh's grant."""
    return pickling.load(value)


def dump_code(obj: Any, what: str) -> Buffer:
    """Pickle a function or class, all in band.

    Raises:
        SerializationError: naming the part that cannot be pickled.
    """
    try:
        return pickling.dump(obj, out_of_band=False).pickle
    except Exception as error:
        raise _unpicklable(obj, what, error) from error


def load_code(data: Buffer) -> Any:
    """The function or class that `dump_code` pickled."""
    return pickling.load(Value(data))


def dump_call(
    args: Sequence[Any], kwargs: dict[str, Any], what: str, names: Sequence[str] = ()
) -> tuple[Value, tuple[ObjectId, ...]]:
    """The pickled `(args, kwargs)` and the top-level refs among them.

    `names` are the parameters' names, for errors about positional arguments.

    Raises:
        SerializationError: naming the argument and the part of it.
    """
    refs: list[ObjectId] = []

    def stand_in(arg: Any) -> Any:
        if isinstance(arg, ObjectRef):
            refs.append(arg.id)
            return ArgRef(len(refs) - 1)
        return arg

    call = (
        tuple(stand_in(arg) for arg in args),
        {key: stand_in(arg) for key, arg in kwargs.items()},
    )
    if not kwargs and all(type(arg) in _PLAIN for arg in args):
        return Value(Buffer(pickle.dumps(call, protocol=5))), ()
    try:
        value = pickling.dump(call)
    except Exception as error:
        raise _name_argument(call, what, names, error) from error
    _pin(value.refs)
    return value, tuple(refs)


def spill_call(index: int) -> Value:
    """Arguments that are themselves an object: `arg_refs[index]` is the pickled call."""
    return Value(Buffer(pickle.dumps(ArgRef(index), protocol=5)))


def load_call(args: Value, arg_values: Sequence[Value]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call; `arg_values` are the values of its `arg_refs`."""
    call = loads(args)
    if isinstance(call, ArgRef):
        call = loads(arg_values[call.index])

    def resolve(arg: Any) -> Any:
        return loads(arg_values[arg.index]) if isinstance(arg, ArgRef) else arg

    positional, named = call
    return (
        tuple(resolve(arg) for arg in positional),
        {key: resolve(arg) for key, arg in named.items()},
    )


def _pin(refs: Sequence[ObjectId]) -> None:
    # The receiver needs a moment to say that it holds them too; the sender's own refs may
    # be gone by then.
    if refs and (context := find_current()) is not None:
        for ref in refs:
            context.pin(ref)


def _name_argument(
    call: tuple[tuple[Any, ...], dict[str, Any]],
    what: str,
    names: Sequence[str],
    error: Exception,
) -> SerializationError:
    positional, named = call
    for index, arg in enumerate(positional):
        if _failure_of(arg) is not None:
            name = f"'{names[index]}'" if index < len(names) else f"number {index + 1}"
            return _unpicklable(arg, f"argument {name} of {what}", error)
    for key, arg in named.items():
        if _failure_of(arg) is not None:
            return _unpicklable(arg, f"argument '{key}' of {what}", error)
    return SerializationError(f"the arguments of {what} cannot be pickled: {error}")


def _unpicklable(obj: Any, what: str, error: Exception) -> SerializationError:
    if isinstance(error, SerializationError):
        return SerializationError(f"{what} cannot be pickled: {error}")
    path, culprit, cause = _find_culprit(obj)
    kind = type(culprit)
    type_name = (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else (f"{kind.__module__}.{kind.__qualname__}")
    )
    where = f"holds a {type_name} at {path}" if path else f"is a {type_name}"
    return SerializationError(
        f"{what} {where}, which cannot be pickled ({cause or error}); "
        "make it at the other end, or leave it out with __getstate__"
    )


def _find_culprit(obj: Any) -> tuple[str, Any, Exception | None]:
    """Path, object and error of the innermost part that fails on its own."""
    path, trials, cause = "", 0, _failure_of(obj)
    seen: set[int] = set()
    for _ in range(_MAX_DEPTH):
        seen.add(id(obj))
        for step, child in _children(obj):
            if id(child) in seen or type(child) in _PLAIN:
                continue
            trials += 1
            if trials > _MAX_TRIALS:
                return path, obj, cause
            failure = _failure_of(child)
            if failure is not None:
                path, obj, cause = path + step, child, failure
                break
        else:
            break
    return path, obj, cause


def _failure_of(obj: Any) -> Exception | None:
    try:
        pickling.dump(obj)
    except Exception as error:  # noqa: BLE001 - user code's __reduce__ may raise anything
        return error
    return None


def _children(obj: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(obj, dict):
        for key, child in obj.items():
            yield f"[{key!r}]", child
        for key in obj:
            yield f" key {key!r}", key
    elif isinstance(obj, (list, tuple)):
        for index, child in enumerate(obj):
            yield f"[{index}]", child
    elif isinstance(obj, (set, frozenset)):
        for child in obj:
            yield "{...}", child
    elif hasattr(obj, "__code__"):
        yield from _captured(obj)
    elif not isinstance(obj, type):
        for name, child in list(getattr(obj, "__dict__", {}).items()):
            yield f".{name}", child
        for name in getattr(type(obj), "__slots__", ()):
            if isinstance(name, str) and hasattr(obj, name):
                yield f".{name}", getattr(obj, name)
    else:
        for name, child in list(vars(obj).items()):
            if name not in ("__dict__", "__weakref__"):
                yield f".{name}", child


def _captured(function: Any) -> Iterator[tuple[str, Any]]:
    """What a function takes along: closure, defaults, and the globals that it names."""
    code = function.__code__
    cells = getattr(function, "__closure__", None) or ()
    for name, cell in zip(code.co_freevars, cells, strict=False):
        try:
            yield f" (captured variable '{name}')", cell.cell_contents
        except ValueError:  # an empty cell
            continue
    for index, child in enumerate(getattr(function, "__defaults__", None) or ()):
        yield f" (default {index})", child
    module = getattr(function, "__globals__", {})
    for name in code.co_names:
        if name in module:
            yield f" (global '{name}')", module[name]
