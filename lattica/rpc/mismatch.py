"""What a user reads where arguments do not fit a method."""

from __future__ import annotations

import re
from collections.abc import Sequence

_PLACE = re.compile(r" - at `\$\[(\d+)\]([^`]*)`$")
_COUNT = re.compile(r"Expected `array` of at (least|most) length (\d+), got (\d+)$")


def explain(problem: str, names: Sequence[str]) -> str:
    """msgspec's `problem` with an array of arguments, in the words of the method.

    `names` are those of the parameters. Which argument it is comes first; where their number
    is wrong, only another version of the service at the other end can be the cause, since
    each end binds what it sends to its own.
    """
    place = _PLACE.search(problem)
    if place is not None and int(place[1]) < len(names):
        return f"argument {names[int(place[1])]}{place[2]}: {problem[: place.start()]}"
    count = _COUNT.search(problem)
    if count is not None and int(count[2]) == len(names):
        return (
            f"it takes {len(names)} arguments here, and {count[3]} came: the caller has another "
            "version of the service"
        )
    return problem
