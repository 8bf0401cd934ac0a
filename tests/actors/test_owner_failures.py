from __future__ import annotations

import errno
import pickle
import threading
from typing import Any

import pytest

from lattica.actors.failures import carrier_of, error_of, pack_error, unwrap
from lattica.actors.messages import Failure, FailureKind, Value
from lattica.actors.serialization import dumps, loads
from lattica.errors import (
    ActorDiedError,
    LatticaError,
    NoPlacementError,
    ObjectLostError,
    PermissionDeniedError,
    TaskCancelledError,
    TaskError,
)
from lattica.rpc.buffers import Buffer


class NeedsTwoError(Exception):
    def __init__(self, code: int, *, detail: str) -> None:
        super().__init__(f"{code} {detail}")
        self.code = code


class BrokenTextError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class SlotsError(ValueError):
    __slots__ = ("extra",)


class HoldsLockError(Exception):
    def __init__(self) -> None:
        super().__init__("held", threading.Lock())


def through(error: BaseException) -> TaskError:
    """The error as it arrives at the other end."""
    try:
        raise error
    except BaseException as raised:
        failure = pack_error(raised, peer_name="far")
    arrived = error_of(failure)
    assert isinstance(arrived, TaskError)
    return arrived


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        KeyError("k"),
        NeedsTwoError(7, detail="d"),
        BrokenTextError(),
        SlotsError("s"),
        UnicodeDecodeError("utf8", b"x", 0, 1, "bad"),
        OSError(errno.ENOENT, "no file", "name"),
        AssertionError(),
        TimeoutError("late"),
    ],
)
def test_an_error_arrives_as_its_own_class_and_as_a_task_error(error: Exception) -> None:
    arrived = through(error)
    assert isinstance(arrived, type(error))
    assert arrived.peer_name == "far"
    assert type(error).__name__ in str(arrived)
    assert "far" in str(arrived)
    assert "raise error" in arrived.remote_traceback
    assert isinstance(arrived.cause, type(error))


def test_attributes_are_those_of_the_original() -> None:
    arrived: Any = through(NeedsTwoError(7, detail="d"))
    assert arrived.code == 7
    missing: Any = through(FileNotFoundError(errno.ENOENT, "no file", "name"))
    assert (missing.errno, missing.filename) == (errno.ENOENT, "name")


def test_what_cannot_be_its_class_is_a_task_error_with_all_the_text() -> None:
    for error in (SystemExit(3), KeyboardInterrupt(), StopIteration(5)):
        arrived = through(error)
        assert type(arrived) is TaskError
        assert type(error).__name__ in str(arrived)


def test_an_error_that_does_not_pickle_keeps_its_text_and_class() -> None:
    arrived = through(HoldsLockError())
    assert "HoldsLockError" in str(arrived)
    assert isinstance(arrived, HoldsLockError)


def test_a_class_that_does_not_load_here_does_not_hide_the_error() -> None:
    failure = Failure("task", "text", type_name="far.Error", traceback="tb", exception=dumps(3))
    error = error_of(failure)
    assert type(error) is TaskError
    assert "far.Error" in str(error)


def test_an_error_passed_on_by_a_middle_task_is_still_the_first_one() -> None:
    again = through(through(NeedsTwoError(7, detail="d")))
    assert isinstance(again, NeedsTwoError)
    assert "TaskError" not in type(again.cause).__name__
    assert isinstance(loads(dumps(again)), NeedsTwoError)
    assert isinstance(pickle.loads(pickle.dumps(through(KeyError("k")))), KeyError)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("actor_died", ActorDiedError),
        ("no_placement", NoPlacementError),
        ("object_lost", ObjectLostError),
        ("cancelled", TaskCancelledError),
        ("refused", PermissionDeniedError),
    ],
)
def test_other_failures_have_their_own_errors(
    kind: FailureKind, expected: type[LatticaError]
) -> None:
    with pytest.raises(expected, match="why"):
        unwrap(Failure(kind, "why", peer_name="far", may_have_run=False))


def test_a_peer_passes_a_failure_on_without_unpickling_it() -> None:
    poisoned = Failure("task", "boom", type_name="Boom", exception=Value(Buffer(b"not a pickle")))
    error = carrier_of(poisoned)
    assert type(error) is TaskError
    assert "Boom on another peer: boom" in str(error)
    assert error.failure is poisoned  # type: ignore[attr-defined]
