"""Exceptions to messages and back."""

from __future__ import annotations

import traceback as tracebacks

from lattica.errors import BusyError, LatticaError, RelayBusyError, RemoteError
from lattica.rpc.messages import Failure

MAX_MESSAGE = 4096  # characters
MAX_TRACEBACK = 8192  # characters, the end is kept


def to_failure(call: int, error: BaseException, *, with_traceback: bool) -> Failure:
    """What a handler raised, as it travels."""
    kind = type(error)
    try:
        message = str(error)[:MAX_MESSAGE]
    except Exception:  # noqa: BLE001 - a user's __str__ may raise anything
        message = "(its text could not be made)"
    text = ""
    if with_traceback and error.__traceback__ is not None:
        text = "".join(tracebacks.format_exception(error))[-MAX_TRACEBACK:]
    retry_after = error.retry_after if isinstance(error, BusyError | RelayBusyError) else 0.0
    return Failure(
        call,
        _clean(f"{kind.__module__}.{kind.__qualname__}"[:MAX_MESSAGE]),
        _clean(message),
        _clean(text),
        retry_after,
    )


def to_error(failure: Failure, peer: str) -> LatticaError:
    """The error that a caller sees; `peer` names the other end.

    Only classes of `LatticaError` that this process already has are rebuilt; nothing is
    imported or run on the word of a peer.
    """
    kind = _known(failure.type_name)
    error: LatticaError
    if kind is BusyError:
        error = BusyError(failure.message, retry_after=max(0.0, failure.retry_after))
    elif kind is not None and _takes_a_message(kind):
        error = kind(failure.message)
        if isinstance(error, RelayBusyError):
            error.retry_after = max(0.0, failure.retry_after)
    else:
        type_name = failure.type_name.removeprefix("builtins.")
        error = RemoteError(peer, type_name, failure.message, failure.traceback)
    if failure.traceback:
        error.add_note(f"on {peer}:\n{failure.traceback}")
    return error


def _known(type_name: str) -> type[LatticaError] | None:
    waiting: list[type[LatticaError]] = [LatticaError]
    while waiting:
        kind = waiting.pop()
        if f"{kind.__module__}.{kind.__qualname__}" == type_name:
            return kind
        waiting.extend(kind.__subclasses__())
    return None


def _takes_a_message(kind: type[LatticaError]) -> bool:
    own = [base for base in kind.__mro__ if issubclass(base, LatticaError)]
    return not any("__init__" in vars(base) or "__new__" in vars(base) for base in own)


def _clean(text: str) -> str:
    """Lone surrogates cannot be encoded as UTF-8."""
    return text.encode("utf-8", "replace").decode()
