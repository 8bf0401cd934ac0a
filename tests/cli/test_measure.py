"""`lattica ping` and `lattica bench` between real processes, and their words about limits."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lattica.cli import limits, measure
from lattica.cli.paths import DIRECT, RELAY
from lattica.cli.reports import LinkReport, PingReport, ReplyReport, SpeedReport
from tests.cli.daemons import Daemon, Daemons, lattica, running


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemons, Daemon, Daemon]]:
    with running(tmp_path_factory.mktemp("pair")) as daemons:
        alpha = daemons.start("alpha", "up")
        yield daemons, alpha, daemons.start("beta", "join", alpha.up["ticket"])


Pair = tuple[Daemons, Daemon, Daemon]


def test_ping_tells_each_answer_and_sums_up(pair: Pair) -> None:
    _, alpha, _ = pair
    words = ("--count", "3", "--interval", "0", "--size", "1k")
    answer = lattica("ping", "beta", *words, home=alpha.home)
    assert answer.returncode == 0, answer.stderr
    lines = answer.stdout.splitlines()
    assert [line.split()[:4] for line in lines[:3]] == [["1024", "bytes", "from", "beta:"]] * 3
    assert [line.split()[4] for line in lines[:3]] == ["seq=1", "seq=2", "seq=3"]
    assert "3 sent, 3 answered, 0% lost" in lines
    assert any(line.startswith("min/median/p95/max ") for line in lines)
    assert "link: beta at 127.0.0.1:" in answer.stdout
    assert "datagrams of" in answer.stdout


@pytest.mark.parametrize("digits", [4, 8, 52])
def test_ping_by_id_in_flight_as_json(pair: Pair, digits: int) -> None:
    _, alpha, beta = pair
    who = beta.up["peer"][:digits]
    words = ("--count", "5", "--inflight", "3", "--interval", "0", "--json")
    answer = lattica("ping", who, *words, home=alpha.home)
    assert answer.returncode == 0, answer.stderr
    report = json.loads(answer.stdout)
    assert (report["sent"], report["answered"]) == (5, 5)
    assert 0 < report["ms"]["min"] <= report["ms"]["median"] <= report["ms"]["max"]
    assert report["link"]["peer"] == beta.up["peer"]
    assert report["link"]["rtt_ms"] > 0


def test_bench_measures_four_figures_and_says_what_limits_them(pair: Pair) -> None:
    _, alpha, _ = pair
    answer = lattica("bench", "beta", "--time", "0.2s", "--json", home=alpha.home)
    assert answer.returncode == 0, answer.stderr
    figures = json.loads(answer.stdout)["figures"]
    assert list(figures) == ["latency", "calls", "upload", "download"]
    for figure in figures.values():
        assert figure["value"] > 0
        assert figure["limited_by"]
    text = lattica("bench", "beta", "--time", "0.1s", home=alpha.home).stdout
    assert "limited by" in text
    assert "MB/s" in text
    assert "\r" not in text


@pytest.mark.parametrize("command", ["ping", "bench"])
def test_an_unknown_peer_is_told_with_who_is_there(pair: Pair, command: str) -> None:
    _, alpha, beta = pair
    answer = lattica(command, "gamma", home=alpha.home)
    assert answer.returncode == 1
    assert f"no peer 'gamma' in this mesh; there are: beta ({beta.up['peer'][:8]})" in answer.stderr


def test_this_peer_itself_is_no_link(pair: Pair) -> None:
    _, alpha, _ = pair
    answer = lattica("ping", "alpha", home=alpha.home)
    assert answer.returncode == 1
    assert "is this machine's own peer; name another: beta" in answer.stderr


def test_out_of_bounds_is_refused(pair: Pair) -> None:
    _, alpha, _ = pair
    assert "at most 8 s" in lattica("bench", "beta", "--time", "1m", home=alpha.home).stderr
    assert "at most 4 MiB" in lattica("ping", "beta", "--size", "1G", home=alpha.home).stderr
    assert "at least 1" in lattica("ping", "beta", "--count", "0", home=alpha.home).stderr


def test_without_a_peer_here_a_ticket_is_enough(pair: Pair, tmp_path: Path) -> None:
    _, alpha, _ = pair
    nobody = tmp_path / "nobody"
    assert "lattica up" in lattica("ping", "beta", home=nobody).stderr
    words = ("--ticket", alpha.up["ticket"], "--count", "1")
    answer = lattica("ping", "alpha", *words, home=nobody)
    assert answer.returncode == 0, answer.stderr
    assert "1 sent, 1 answered" in answer.stdout
    assert not nobody.exists(), "the joined peer leaves nothing behind"


def test_a_peer_that_went_away_is_an_error_not_a_hang(pair: Pair) -> None:
    daemons, alpha, _ = pair
    gone = daemons.start("gone", "join", alpha.up["ticket"])
    assert lattica("ping", "gone", "--count", "1", home=alpha.home).returncode == 0
    gone.process.kill()
    gone.process.wait()
    answer = lattica("ping", "gone", "--count", "1", home=alpha.home)
    assert answer.returncode == 1
    assert "no peer 'gone'" in answer.stderr or "no ping of 1 was answered" in answer.stderr


# ---------------------------------------------------------------------- changes


@pytest.mark.anyio
@pytest.mark.parametrize("as_json", [False, True])
async def test_ping_says_when_the_link_takes_another_way(
    as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    relayed, direct = "relay:abc@9.9.9.9:4242", "9.9.9.7:4242"
    ways = iter([relayed, relayed, direct, direct])

    @contextlib.asynccontextmanager
    async def asking(_: argparse.Namespace) -> AsyncIterator[Any]:
        async def ask(_: object, __: object) -> PingReport:
            link = msgspec.structs.replace(speed(1.0).link, path=next(ways))
            return PingReport(replies=[ReplyReport(ms=1.0)], link=link)

        yield ask

    monkeypatch.setattr(measure, "_asking", asking)
    await measure._ping(
        argparse.Namespace(
            peer="beta", count=4, inflight=1, interval=0.0, size=64, json=as_json, ticket=None
        )
    )
    said = capsys.readouterr().out
    if as_json:
        ((before, after),) = msgspec.json.decode(said)["changes"]
        assert (before["path"], after["path"]) == (relayed, direct)
    else:
        told = [line for line in said.splitlines() if line.startswith("now ")]
        assert told == [f"now {DIRECT}: {direct} (was {RELAY}: {relayed})"]
        assert said.index("seq=2") < said.index(told[0]) < said.index("seq=3")


# ------------------------------------------------------------------------- words


def speed(value: float, **other: Any) -> SpeedReport:
    link = LinkReport(
        name="beta",
        peer="p",
        path="192.0.2.1:1",
        engine="aioquic",
        rtt_ms=other.pop("rtt", 1.0),
        rtt_min_ms=other.pop("rtt_min", 1.0),
        datagram=other.pop("datagram", 16_384),
        window=other.pop("window", 1 << 30),
        packets_out=0,
        packets_lost=0,
    )
    report = SpeedReport(value=value, unit="", seconds=1, cpu=0.1, lost=0, sent=1000, link=link)
    return msgspec.structs.replace(report, **other)


def test_what_limits_a_call() -> None:
    assert limits.of_latency(speed(101, rtt_min=100)).startswith("the round trip")
    assert limits.of_latency(speed(0.5, rtt_min=0.1)).startswith("the work of both ends")


def test_a_call_never_takes_less_than_what_is_said_of_its_path() -> None:
    text = limits.of_latency(speed(0.5, rtt_min=1.0))
    assert text.startswith("the work of both ends")
    assert "at most 0.5 ms" in text
    assert limits.of_calls(speed(60_000, cpu=0.4, rtt_min=1.0), 64).startswith("the other end")


def test_what_limits_many_calls() -> None:
    text = limits.of_calls(speed(600, rtt_min=100), 64)
    assert text.startswith("the round trip")
    assert "640 calls/s" in text
    assert limits.of_calls(speed(30_000, cpu=0.97), 64).startswith("this end's CPU")
    assert limits.of_calls(speed(30_000, cpu=0.4, rtt_min=0.1), 64).startswith("the other end")


def test_what_limits_an_upload() -> None:
    window = speed(0.9, rtt=100, rtt_min=100, window=100_000)
    assert limits.of_upload(window).startswith("the congestion window")
    assert limits.of_upload(speed(10, lost=20)).startswith("loss: 2.0%")
    busy = limits.of_upload(speed(50, cpu=1.0, datagram=1452))
    assert busy.startswith("this end's CPU")
    assert "1452 B" in busy
    assert "datagram" not in limits.of_upload(speed(50, cpu=1.0, datagram=16_384))
    assert limits.of_upload(speed(12, rtt=80, rtt_min=20)).startswith("the path's rate")
    assert limits.of_upload(speed(12)).startswith("the other end")


def test_what_limits_a_download() -> None:
    assert limits.of_download(speed(50, cpu=0.99)).startswith("this end's CPU")
    assert limits.of_download(speed(12, rtt=80, rtt_min=20)).startswith("the path's rate")
    assert limits.of_download(speed(12)).startswith("the other end")
