"""The profile sorts what it samples by layer."""

from __future__ import annotations

import time

import pytest

from bench import profile
from lattica.link import engine_aioquic, quic_link
from lattica.path import udp
from lattica.rpc import calls


@pytest.mark.parametrize(
    ("file", "layer"),
    [
        (engine_aioquic.__file__, "QUIC engine"),
        (engine_aioquic.congestion.__file__, "QUIC engine"),
        (quic_link.__file__, "link and socket"),
        (udp.__file__, "link and socket"),
        (calls.__file__, "calls"),
        (profile.anyio.__file__, "event loop"),
        (__file__, "caller"),
    ],
)
def test_a_file_has_its_layer(file: str, layer: str) -> None:
    assert profile.layer(file) == layer


def test_time_is_counted_for_the_layer_that_spends_it() -> None:
    with profile.sampled() as counts:
        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass
    assert counts["caller"] > 20
    assert counts["caller"] > 0.9 * counts.total()
    before = counts.total()
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass
    assert counts.total() == before, "sampling ends with the block"
