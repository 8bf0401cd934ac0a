"""User exceptions across the wire: packed at the far end, raised at the near one."""

from __future__ import annotations

import traceback as tb
import types
from typing import Any

from lattica.actors.messages import Failure, FailureKind, Outcome, Value
from lattica.errors import (
    ActorDiedError,
    ActorsError,
    ActorUnavailableError,
    LatticaError,
    NoPlacementError,
    ObjectLostError,
    PermissionDeniedError,
    SerializationError,
    TaskCancelledError,
    TaskError,
    WorkerDiedError,
)
from lattica.identity.keys import PeerId

MAX_TRACEBACK = 64 * 1024  # characters

_ERRORS: dict[FailureKind, type[LatticaError]] = {
    "task": TaskError,
    "serialization": SerializationError,
    "worker_died": WorkerDiedError,
    "actor_died": ActorDiedError,
    "actor_unavailable": ActorUnavailableError,
    "cancelled": TaskCancelledError,
    "no_placement": NoPlacementError,
    "object_lost": ObjectLostError,
    "refused": PermissionDeniedError,
}


def pack_error(error: BaseException, *, peer: PeerId | None = None, peer_name: str = "") -> Failure:
    """What a worker sends of an exception that user code raised."""
    original = error.cause if isinstance(error, TaskError) and error.cause else error
    kind = type(original)
    return Failure(
        kind="task",
        message=_text(original),
        peer=peer,
        peer_name=peer_name,
        type_name=f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.").removeprefix(
            "__main__."
        ),
        traceback="".join(tb.format_exception(error))[-MAX_TRACEBACK:],
        exception=_pickle_exception(original),
    )


def _pickle_exception(error: BaseException) -> Value | None:
    """The exception as a value that surely loads again; None if there is no way."""
    from lattica.actors import pickling

    kind = type(error)
    for form in (
        lambda: error,
        # BaseException's own way calls kind(*args), which fails where __init__ wants others.
        lambda: _Rebuild(kind, error.args, dict(vars(error))),
        lambda: _Rebuild(kind, tuple(map(_plain, error.args)), {}),
    ):
        try:
            value = pickling.dump(form(), out_of_band=False)
            pickling.load(value)
        except Exception:  # noqa: BLE001 - user code's __reduce__ and __init__ may raise anything
            continue
        return value
    return None


def _plain(arg: Any) -> Any:
    return arg if isinstance(arg, (int, float, str, bytes, bool, type(None))) else repr(arg)


class _Rebuild:
    """Pickles to an exception that is made without its class's __init__."""

    def __init__(self, kind: type[BaseException], args: tuple[Any, ...], state: Any) -> None:
        self.parts = (kind, args, state)

    def __reduce__(self) -> Any:
        return _rebuild_exception, self.parts


def _rebuild_exception(
    kind: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]
) -> BaseException:
    error: BaseException = _builtin_base(kind).__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


def _builtin_base(kind: type[BaseException]) -> Any:
    """Where the layout of `kind` comes from: the __new__ that surely makes an instance."""
    return next(
        base
        for base in kind.__mro__
        if base.__module__ == "builtins" and "__new__" in base.__dict__
    )


def unwrap(outcome: Outcome) -> Any:
    """The value of an outcome.

    Raises:
        TaskError: and at the same time the user's exception class, if user code raised.
        LatticaError: what else went wrong.
    """
    from lattica.actors.pickling import load

    if isinstance(outcome, Failure):
        raise error_of(outcome)
    return load(outcome)


def error_of(failure: Failure) -> LatticaError:
    """The exception that `lattica.get` raises for a failure."""
    if failure.kind != "task":
        return carrier_of(failure)
    name = _where(failure)
    cause = _load_cause(failure)
    error = _dual_class(type(cause) if cause is not None else None)(_told(failure))
    if cause is not None:
        _copy_attributes(cause, error)
    _annotate(error, failure, name, cause)
    error.__cause__ = cause
    return error


def carrier_of(failure: Failure) -> LatticaError:
    """The same without the user's class: nothing is unpickled.

    For a peer's own process, which passes failures on and must not run what they hold. The
    failure itself is the error's `failure`.
    """
    is_users = failure.kind == "task"
    error = _ERRORS[failure.kind](_told(failure) if is_users else failure.message)
    _annotate(error, failure, _where(failure), None)
    error.__dict__["failure"] = failure
    return error


def _where(failure: Failure) -> str:
    return failure.peer_name or (failure.peer.short if failure.peer else "")


def _told(failure: Failure) -> str:
    name = _where(failure)
    message = f"{failure.type_name} on {name or 'another peer'}: {failure.message}"
    if failure.traceback:
        message += f"\n\nremote traceback ({name}):\n{failure.traceback.rstrip()}"
    return message


def _copy_attributes(cause: BaseException, error: LatticaError) -> None:
    """The user's own attributes (code, response) and built-in ones (errno, filename)."""
    for key, value in vars(cause).items():
        error.__dict__.setdefault(key, value)
    if not isinstance(error, type(cause)):
        return
    for name, member in vars(_builtin_base(type(cause))).items():
        if isinstance(member, (types.MemberDescriptorType, types.GetSetDescriptorType)):
            try:
                setattr(error, name, getattr(cause, name))
            except (AttributeError, TypeError):  # read-only, or unset
                continue


def _annotate(
    error: LatticaError, failure: Failure, name: str, cause: BaseException | None
) -> None:
    if isinstance(error, ActorsError):
        error.peer = failure.peer
        error.peer_name = name
        error.remote_traceback = failure.traceback
        error.may_have_run = failure.may_have_run
        error.cause = cause


def _load_cause(failure: Failure) -> BaseException | None:
    from lattica.actors.pickling import load

    if failure.exception is None:
        return None
    try:
        cause = load(failure.exception)
    except Exception:  # noqa: BLE001 - a class that does not rebuild; the text is enough
        return None
    return cause if isinstance(cause, BaseException) else None


def _dual_class(user: type[BaseException] | None) -> type[TaskError]:
    """A class that is both TaskError and the user's, whatever `user.__init__` wants."""
    if user is None or not issubclass(user, Exception) or issubclass(TaskError, user):
        return TaskError
    if issubclass(user, (StopIteration, StopAsyncIteration)):
        return TaskError  # raised out of a coroutine these would mean something else
    if issubclass(user, TaskError):
        return user

    def init(self: Any, message: str) -> None:
        Exception.__init__(self, message)

    def text(self: Any) -> str:
        return str(self.args[0]) if self.args else ""

    try:
        made = type(
            f"TaskError({user.__name__})",
            (TaskError, user),
            {
                "__init__": init,
                "__new__": _new,
                "__str__": text,
                "__repr__": lambda self: f"{type(self).__name__}({text(self).splitlines()[0]!r})",
                "__reduce__": _reduce,
                "__module__": "lattica.errors",
            },
        )
        made("probe")
    except Exception:  # noqa: BLE001 - layout conflicts and final classes: no dual form
        return TaskError
    return made


def _new(cls: type[BaseException], message: str = "") -> BaseException:
    # Not the user's __new__, which may want other arguments; the built-in layout's.
    made: BaseException = _builtin_base(cls).__new__(cls, message)
    return made


def _reduce(self: Any) -> Any:
    # Passed on by a middle task: the original travels, and becomes dual again at the end.
    cause = self.cause
    if cause is not None:
        cause = _Rebuild(type(cause), cause.args, dict(vars(cause)))
    return _rebuild, (self.args[0], self.peer_name, self.remote_traceback, cause)


def _rebuild(message: str, name: str, remote: str, cause: BaseException | None) -> TaskError:
    error = _dual_class(type(cause) if cause is not None else None)(message)
    if cause is not None:
        _copy_attributes(cause, error)
    error.peer_name, error.remote_traceback, error.cause = name, remote, cause
    return error


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - a broken __str__ must not hide the error
        return f"<{type(error).__qualname__} whose text cannot be made>"
