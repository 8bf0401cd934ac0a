"""A span: a run of consecutive layers."""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from serving.errors import SpanError


class Span(msgspec.Struct, frozen=True, order=True, array_like=True, forbid_unknown_fields=True):
    """Layers `start` up to but not including `end`."""

    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start

    def __contains__(self, layer: int) -> bool:
        return self.start <= layer < self.end

    def __str__(self) -> str:
        return f"{self.start}:{self.end}"

    def covers(self, other: Span) -> bool:
        """Whether every layer of `other` is in this span."""
        return self.start <= other.start and other.end <= self.end

    def check(self, layers: int) -> Span:
        """This span, if a model of `layers` layers has it.

        Raises:
            SpanError: empty, negative or past the model's end.
        """
        if not 0 <= self.start < self.end <= layers:
            raise SpanError(f"layers {self} are not a span of a model with layers 0:{layers}")
        return self

    @classmethod
    def parse(cls, text: str) -> Span:
        """Read `A:B`.

        Raises:
            SpanError: not two numbers around a colon.
        """
        match = re.fullmatch(r"\s*(\d{1,6})\s*:\s*(\d{1,6})\s*", text)
        if match is None:
            raise SpanError(f"{text!r} is not a span; write it as A:B, for example 0:4")
        return cls(int(match[1]), int(match[2]))


def missing(layers: int, spans: Iterable[Span]) -> list[Span]:
    """The runs of layers that none of `spans` has, in order."""
    gaps, reached = [], 0
    for span in sorted(spans):
        if span.start > reached:
            gaps.append(Span(reached, min(span.start, layers)))
        reached = max(reached, span.end)
    if reached < layers:
        gaps.append(Span(reached, layers))
    return gaps
