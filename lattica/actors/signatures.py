"""Argument checks where a remote function or method is called, not where it runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from lattica.actors.messages import Parameter

_KINDS = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.VAR_POSITIONAL,
    inspect.Parameter.KEYWORD_ONLY,
    inspect.Parameter.VAR_KEYWORD,
)


class _Default:
    """Stands for a default's value, which does not travel."""

    def __repr__(self) -> str:
        return "..."


_DEFAULT = _Default()


def signature_of(function: Callable[..., Any], *, skip_self: bool = False) -> inspect.Signature:
    """The signature, without annotations and without the defaults' values.

    Raises:
        ValueError, TypeError: the callable has none that can be read.
    """
    parameters = list(inspect.signature(function).parameters.values())
    if (
        skip_self
        and parameters
        and parameters[0].kind
        in (
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
        )
    ):
        parameters = parameters[1:]
    return to_signature(to_parameters(parameters))


def to_parameters(parameters: list[inspect.Parameter]) -> tuple[Parameter, ...]:
    """The form that travels."""
    return tuple(
        Parameter(each.name, int(each.kind), each.default is not inspect.Parameter.empty)
        for each in parameters
    )


def to_signature(parameters: tuple[Parameter, ...]) -> inspect.Signature:
    """The form that can be bound.

    Raises:
        ValueError: the parameters do not make a signature.
    """
    return inspect.Signature(
        [
            inspect.Parameter(
                each.name,
                _KINDS[each.kind],
                default=_DEFAULT if each.optional else inspect.Parameter.empty,
            )
            for each in parameters
        ]
    )


def check(
    signature: inspect.Signature | None, what: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Raise TypeError naming the function if the arguments do not fit.

    Raises:
        TypeError: in Python's own words, with `what` in front.
    """
    if signature is None:
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{what}: {error}; its parameters are {signature}") from None


def names(signature: inspect.Signature | None) -> tuple[str, ...]:
    """Names of the parameters, for messages about positional arguments."""
    return tuple(signature.parameters) if signature is not None else ()
