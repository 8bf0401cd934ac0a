"""Errors cross a link as what they are, and nothing is made up on a peer's word."""

from __future__ import annotations

import inspect

import pytest

from lattica import errors
from lattica.rpc.failures import MAX_MESSAGE, to_error, to_failure
from lattica.rpc.messages import Failure

KINDS = [
    kind
    for kind in vars(errors).values()
    if inspect.isclass(kind) and issubclass(kind, errors.LatticaError)
]
PLAIN = [
    kind
    for kind in KINDS
    if kind not in (errors.BusyError, errors.CallLostError, errors.RemoteError)
]


@pytest.mark.parametrize("kind", PLAIN)
def test_every_plain_error_arrives_as_itself(kind: type[errors.LatticaError]) -> None:
    back = to_error(to_failure(1, kind("what happened"), with_traceback=True), "b")
    assert type(back) is kind
    assert str(back) == "what happened"


def test_busy_says_when_to_come_back() -> None:
    back = to_error(
        to_failure(1, errors.BusyError("full", retry_after=2.5), with_traceback=False), "b"
    )
    assert isinstance(back, errors.BusyError)
    assert back.retry_after == 2.5


def test_what_cannot_be_rebuilt_is_a_remote_error() -> None:
    lost = errors.CallLostError("elsewhere", may_have_run=True)
    back = to_error(to_failure(1, lost, with_traceback=False), "b")
    assert isinstance(back, errors.RemoteError)
    assert back.type_name == "lattica.errors.CallLostError"


def test_users_errors_keep_type_text_and_traceback() -> None:
    try:
        raise KeyError("lost")
    except KeyError as error:
        failure = to_failure(1, error, with_traceback=True)
    back = to_error(failure, "bob")
    assert isinstance(back, errors.RemoteError)
    assert (back.peer, back.type_name, back.remote_message) == ("bob", "KeyError", "'lost'")
    assert "test_users_errors" in back.remote_traceback
    assert "on bob" in back.__notes__[0]


@pytest.mark.parametrize("name", ["os.system", "lattica.errors", "builtins.SystemExit", "", "a.b"])
def test_a_peer_cannot_name_other_classes(name: str) -> None:
    assert type(to_error(Failure(1, name, "x"), "b")) is errors.RemoteError


class RudeError(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


def test_rude_exceptions() -> None:
    assert "could not be made" in to_failure(1, RudeError(), with_traceback=False).message
    long = to_failure(1, ValueError("x" * 1_000_000), with_traceback=True)
    assert len(long.message) == MAX_MESSAGE
    assert to_failure(1, ValueError("\ud800"), with_traceback=False).message == "?"
