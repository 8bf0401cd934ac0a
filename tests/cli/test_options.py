"""Text on the command line and what it means."""

from __future__ import annotations

import argparse

import pytest

from lattica.cli.options import amount, duration, label, size


@pytest.mark.parametrize(
    ("text", "value"),
    [("1024", 1024), ("2G", 2 << 30), ("512MiB", 512 << 20), ("1.5k", 1536), ("3 TB", 3 << 40)],
)
def test_sizes(text: str, value: int) -> None:
    assert size(text) == value


@pytest.mark.parametrize(
    ("text", "value"), [("45", 45), ("30m", 1800), ("12h", 43200), ("7d", 604800)]
)
def test_durations(text: str, value: float) -> None:
    assert duration(text) == value


def test_resources_and_labels() -> None:
    assert amount("camera=2") == ("camera", 2.0)
    assert amount("camera") == ("camera", 1.0)
    assert label("zone=attic") == ("zone", "attic")


@pytest.mark.parametrize(
    ("parse", "text"),
    [(size, "much"), (duration, "soon"), (amount, "=1"), (amount, "camera=-1"), (label, "attic")],
)
def test_nonsense_is_named_with_an_example(parse: object, text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="such as") as error:
        parse(text)  # type: ignore[operator]
    assert repr(text) in str(error.value)
