"""The measurements of blocks run."""

from __future__ import annotations

from functools import partial

import anyio
import pytest

from bench.blocks import version
from bench.swarm import MBIT, Line, simulate, spread
from bench.targets import choose

SMALL = 2_000_000


def test_measures_are_chosen_by_their_beginnings() -> None:
    assert choose(["blocks_s", "blocks_resume"], "blocks") == ["blocks_swarm", "blocks_resume"]
    assert len(choose([], "blocks")) == 6
    with pytest.raises(SystemExit, match="no measure begins with 'dht_get'"):
        choose(["dht_get"], "blocks")


def test_an_emulated_line_is_as_fast_as_it_says() -> None:
    line = Line(100 * MBIT, 100 * MBIT)
    took, sent = simulate(partial(spread, "aioquic", line, peers=1, size=SMALL))
    assert sent == SMALL / 1e6
    assert 1.0 < took / (SMALL / line.up) < 2.5


def test_a_new_version_moves_what_changed() -> None:
    came, tensor = anyio.run(version, "aioquic", 24 * 200_000)
    assert tensor <= came < 1.1 * tensor
