"""The fuzz targets without a fuzzer: valid inputs, their damaged kin, and any bytes at all."""

from __future__ import annotations

import base64
import logging
import random
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.fuzz.seeds import seeds
from tests.fuzz.targets import TARGETS

SEEDS = seeds()


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    """Each refused frame would be a line; the tests that follow want theirs."""
    logger = logging.getLogger("lattica")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(before)


def test_there_is_a_seed_for_every_target() -> None:
    assert SEEDS.keys() == TARGETS.keys()


@pytest.mark.parametrize("name", TARGETS)
def test_valid_input_and_what_damage_makes_of_it(name: str) -> None:
    target, chance = TARGETS[name], random.Random(name)
    for seed in SEEDS[name]:
        target(seed)
        for _ in range(100):
            target(_damaged(seed, chance))


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=60, deadline=None)
@example(data=b"")
@given(data=st.binary(max_size=600))
def test_any_bytes(name: str, data: bytes) -> None:
    TARGETS[name](data)


def test_an_outcome_in_a_chunk_that_breaks_the_protocol_reaches_its_reader() -> None:
    """Found by the fuzzer: the reader of these items waited for ever."""
    TARGETS["session_of_a_server"](
        base64.b64decode(
            "AAAOAAAACpGUAAHOAAEABBAQABEAAAAEkwECwwAAAAWUAAGQwhEA2QAAACaSApYDArNidWlsdGlucy5WYWx1"
            "ZUVycm9yom5voMsAAAAAAABnAAAAAAAAAAAAAAAA"
        )
    )


def test_the_fuzzer_runs() -> None:
    pytest.importorskip("atheris", reason="atheris has no wheel for this platform")
    command = [sys.executable, "-m", "tests.fuzz", "--seconds", "1", "--only", "link_header"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "link_header" in done.stdout


def _damaged(data: bytes, chance: random.Random) -> bytes:
    """Some bytes changed, cut out or doubled."""
    spoilt = bytearray(data)
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(spoilt) + 1)
        kind = chance.randrange(4)
        if kind == 0 and at < len(spoilt):
            spoilt[at] ^= 1 << chance.randrange(8)
        elif kind == 1 and at < len(spoilt):
            spoilt[at] = chance.choice((0, 0x7F, 0x80, 0xC1, 0xFF))
        elif kind == 2:
            del spoilt[at : at + chance.randrange(9)]
        else:
            spoilt[at:at] = spoilt[at : at + chance.randrange(20)]
    return bytes(spoilt)
