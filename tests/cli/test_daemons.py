"""`lattica up`, `join`, `invite`, `status`, `peers` between real processes on loopback."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from lattica.identity.tickets import PREFIX
from tests.cli.daemons import Daemon, Daemons, lattica, running
from tests.processes import still_running

SETTLE = 10.0  # seconds


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[Daemons]:
    with running(tmp_path) as result:
        yield result


def names(home: Path) -> set[str]:
    answer = lattica("peers", "--json", home=home)
    assert answer.returncode == 0, answer.stderr
    return {peer["name"] for peer in json.loads(answer.stdout)}


def wait_for_names(home: Path, wanted: set[str]) -> float:
    start = time.monotonic()
    while (seen := names(home)) != wanted:
        assert time.monotonic() - start < SETTLE, f"still {seen}"
    return time.monotonic() - start


def test_two_machines_see_each_other_and_a_killed_one_is_gone(daemons: Daemons) -> None:
    alpha = daemons.start("alpha", "up")
    beta = daemons.start("beta", "join", alpha.up["ticket"], "--resource", "camera=1")
    assert beta.up["mesh"] == alpha.up["mesh"]
    assert beta.up["ticket"] is None, "only the founder's machine can invite"
    wait_for_names(alpha.home, {"alpha", "beta"})
    wait_for_names(beta.home, {"alpha", "beta"})

    table = lattica("peers", home=alpha.home).stdout
    assert "alpha (this)" in table
    assert "1/1 camera" in table

    beta.process.kill()
    wait_for_names(alpha.home, {"alpha"})


def test_leaving_is_seen_and_coming_back_needs_no_ticket(daemons: Daemons) -> None:
    alpha = daemons.start("alpha", "up")
    beta = daemons.start("beta", "join", alpha.up["ticket"])
    wait_for_names(alpha.home, {"alpha", "beta"})
    beta.process.send_signal(signal.SIGINT)
    assert beta.process.wait(10) == 0
    wait_for_names(alpha.home, {"alpha"})
    again = daemons.start("beta", "up")
    assert again.up["peer"] == beta.up["peer"]
    assert again.up["mesh"] == alpha.up["mesh"]
    wait_for_names(alpha.home, {"alpha", "beta"})


def test_status_and_invite(daemons: Daemons) -> None:
    alpha = daemons.start("alpha", "up")
    status = json.loads(lattica("status", "--json", home=alpha.home).stdout)
    assert status["peer"] == alpha.up["peer"]
    assert status["total"]["CPU"] == 1.0
    assert status["path"]["receive_buffer"] > 0
    text = lattica("status", home=alpha.home).stdout
    assert "founded here" in text
    assert "overran the buffer of" in " ".join(text.split())

    invite = json.loads(lattica("invite", "--valid-for", "1h", "--json", home=alpha.home).stdout)
    assert invite["ticket"].startswith(PREFIX)
    assert invite["expires"] == pytest.approx(time.time() + 3600, abs=60)
    beta = daemons.start("beta", "join", invite["ticket"])
    refused = lattica("invite", home=beta.home)
    assert refused.returncode == 1
    assert "where the mesh was founded" in refused.stderr


def test_nothing_is_left_behind_by_a_killed_peer(daemons: Daemons) -> None:
    alpha = daemons.start("alpha", "up")
    children = psutil.Process(alpha.process.pid).children(recursive=True)
    os.kill(alpha.process.pid, signal.SIGKILL)
    assert not still_running(children)


# --------------------------------------------------------------------- what goes wrong


def refusal(daemon: Daemon) -> str:
    assert daemon.up == {}
    text = daemon.failure()
    assert daemon.process.returncode == 1
    assert text.startswith("lattica: "), text
    assert "Traceback" not in text
    return text


def test_mistyped_ticket(daemons: Daemons) -> None:
    ticket = daemons.start("alpha", "up").up["ticket"]
    middle = len(ticket) // 2
    other = "A" if ticket[middle] != "A" else "B"
    mistyped = ticket[:middle] + other + ticket[middle + 1 :]
    assert "checksum does not match" in refusal(daemons.start("beta", "join", mistyped))


def test_expired_ticket(daemons: Daemons) -> None:
    alpha = daemons.start("alpha", "up")
    answer = lattica("invite", "--valid-for", "1s", "--json", home=alpha.home)
    report = json.loads(answer.stdout)
    while time.time() < report["expires"]:
        time.sleep(0.1)  # until the ticket's own expiry, which is a wall-clock time
    text = refusal(daemons.start("beta", "join", report["ticket"]))
    assert "expired" in text
    assert "lattica invite" in text


def test_foreign_ticket(daemons: Daemons) -> None:
    alpha = daemons.start("alpha", "up")
    other = daemons.start("other", "up")
    other.process.terminate()
    other.process.wait(10)
    text = refusal(daemons.start("other", "join", alpha.up["ticket"]))
    assert "belongs to mesh" in text
    assert "--home" in text


def test_contact_that_is_gone(daemons: Daemons) -> None:
    alpha = daemons.start("alpha", "up")
    alpha.process.kill()
    alpha.process.wait()
    text = refusal(daemons.start("beta", "join", alpha.up["ticket"]))
    assert "none of 1 contacts answered" in text


def test_port_in_use(daemons: Daemons) -> None:
    alpha = daemons.start("alpha", "up")
    taken = alpha.up["addresses"][0]
    text = refusal(daemons.start("beta", "up", listen=taken))
    assert taken.rpartition(":")[2] in text


def test_home_in_use(daemons: Daemons) -> None:
    daemons.start("alpha", "up")
    assert "--home" in refusal(daemons.start("alpha", "up"))


def test_key_that_others_can_read(daemons: Daemons) -> None:
    alpha = daemons.start("alpha", "up")
    alpha.process.terminate()
    alpha.process.wait(10)
    (alpha.home / "identity.key").chmod(0o640)
    assert "chmod 600" in refusal(daemons.start("alpha", "up"))


def test_no_peer_running(tmp_path: Path) -> None:
    answer = lattica("status", home=tmp_path / "nobody")
    assert answer.returncode == 1
    assert "lattica up" in answer.stderr


@pytest.mark.parametrize("command", ["up", "join", "invite", "status", "peers"])
def test_help(command: str, tmp_path: Path) -> None:
    answer = lattica(command, "--help", home=tmp_path)
    assert answer.returncode == 0
    assert "--json" in answer.stdout
