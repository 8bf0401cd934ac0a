"""Traces of connections: one file each, bounded, without secrets, and nothing when off."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lattica.config import LinkConfig
from lattica.link import qlog
from lattica.link.engines import trace_directory
from lattica.path.memory import PacketNetwork
from tests.link.helpers import exchange, two

SECRET = b"nobody's business " * 40


async def traced(where: Path, engine: str = "aioquic") -> str:
    """The text of all traces of one link that has carried `SECRET`."""
    config = LinkConfig(engine=engine, qlog=str(where))
    async with two(PacketNetwork(), config) as (alice, bob):
        link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        await bob.until_linked(alice)
        await exchange(link, bob.to(alice), SECRET)
    return "".join(each.read_text() for each in where.glob("*.qlog"))


@pytest.mark.anyio
async def test_each_end_writes_one_trace_that_holds_no_secret(tmp_path: Path) -> None:
    text = await traced(tmp_path / "traces")
    traces = [json.loads(each.read_text()) for each in (tmp_path / "traces").iterdir()]
    sides = sorted(each["traces"][0]["vantage_point"]["type"] for each in traces)
    assert sides == ["client", "server"]
    for each in traces:
        names = {event["name"] for event in each["traces"][0]["events"]}
        assert {"transport:packet_sent", "transport:packet_received"} <= names
    assert "token" not in text.replace("new_token", "")
    assert SECRET[:8].hex() not in text
    assert SECRET[:8].decode() not in text


@pytest.mark.anyio
async def test_of_qh3_datagrams_metrics_and_the_end_are_told(tmp_path: Path) -> None:
    pytest.importorskip("qh3")
    text = await traced(tmp_path, "qh3")
    traces = [json.loads(each.read_text())["traces"][0] for each in tmp_path.iterdir()]
    assert sorted(each["vantage_point"]["type"] for each in traces) == ["client", "server"]
    assert len({each["common_fields"]["ODCID"] for each in traces}) == 1
    for trace in traces:
        events = {event["name"]: event["data"] for event in trace["events"]}
        assert events["connectivity:connection_state_updated"] == {"new": "handshake_complete"}
        assert events["connectivity:connection_closed"]["reason"]
        sent, received = (
            sum(
                raw["length"]
                for event in trace["events"]
                if event["name"] == f"transport:datagrams_{what}"
                for raw in event["data"]["raw"]
            )
            for what in ("sent", "received")
        )
        assert max(sent, received) > len(SECRET)
        rtts = [
            event["data"]["smoothed_rtt"]
            for event in trace["events"]
            if "smoothed_rtt" in event["data"]
        ]
        assert rtts[-1] > 0
    assert SECRET[:8].decode() not in text


@pytest.mark.anyio
async def test_traces_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qlog, "MAX_EVENTS", 20)
    monkeypatch.setattr(qlog, "MAX_FILES", 3)
    for _ in range(3):
        await traced(tmp_path)
    files = list(tmp_path.iterdir())
    assert len(files) == 3
    for each in files:
        assert len(json.loads(each.read_text())["traces"][0]["events"]) <= 20


@pytest.mark.anyio
async def test_a_directory_that_cannot_be_written_costs_no_link(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert await traced(tmp_path / "file" / "traces") == ""


def test_the_configuration_comes_before_the_environment() -> None:
    environment = {"LATTICA_QLOG": "from the environment"}
    assert trace_directory(None, environment) == Path("from the environment")
    assert trace_directory("configured", environment) == Path("configured")
    assert trace_directory("", environment) is None
    assert trace_directory(None, {}) is None
    assert "LATTICA_QLOG" not in os.environ
