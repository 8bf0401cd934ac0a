"""`lattica docs` of a real process, whose documents another peer writes."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from anyio import to_thread

from lattica.cli.docs import _show
from lattica.cli.reports import DocumentReport
from lattica.errors import GrantError
from lattica.peer import Peer, PeerOptions
from tests.cli.daemons import Daemon, lattica, running

pytestmark = pytest.mark.anyio
LATTICA = (sys.executable, "-m", "lattica")


async def docs(home: Path, *words: str) -> Any:
    """What an operation says; the writing peer lives on meanwhile, in this process."""
    answer = await to_thread.run_sync(partial(lattica, "docs", *words, "--json", home=home))
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)["documents"]


def writer(folder: Path, to: Daemon) -> PeerOptions:
    """A peer in this process, of the daemon's mesh."""
    return PeerOptions(
        home=folder / "writer",
        ticket=to.up["ticket"],
        name="writer",
        listen="127.0.0.1:0",
        cpus=0,
    )


async def test_what_another_peer_writes_is_listed_shown_watched_and_verified(
    tmp_path: Path,
) -> None:
    with running(tmp_path) as daemons:
        alpha = daemons.start("alpha", "up")
        async with Peer.open(writer(tmp_path, alpha)) as peer:
            document = await peer.document("shopping")
            document.map("list")["milk"] = 2
            await document.flush()
            (shown,) = await docs(alpha.home, "show", "shopping")
            assert shown["content"] == {"list": {"milk": 2}}
            assert shown["digest"] == document.digest()
            with subprocess.Popen(
                [*LATTICA, "docs", "watch", "shopping", "--json", "--home", str(alpha.home)],
                stdout=subprocess.PIPE,
                text=True,
            ) as watching:
                try:
                    assert watching.stdout is not None
                    line = await to_thread.run_sync(watching.stdout.readline)
                    assert json.loads(line)["content"] == shown["content"]
                    document.map("list")["bread"] = 1
                    await document.synced()
                    line = await to_thread.run_sync(watching.stdout.readline)
                    assert json.loads(line)["content"] == {"list": {"milk": 2, "bread": 1}}
                finally:
                    watching.kill()
            (listed,) = await docs(alpha.home, "ls")
            ((author, count),) = listed["updates"].items()
            assert author == f"writer {peer.identity.peer_id.short}"
            assert (listed["name"], count, listed["forks"]) == ("shopping", 2, 0)
            assert await docs(alpha.home, "verify", "shopping") == [listed]
        text = lattica("docs", "show", "shopping", home=alpha.home).stdout
        assert "milk" in text
        assert text.startswith("shopping")


async def test_a_document_that_was_tampered_with_on_disk_does_not_verify(tmp_path: Path) -> None:
    with running(tmp_path) as daemons:
        alpha = daemons.start("alpha", "up")
        async with Peer.open(writer(tmp_path, alpha)) as peer:
            document = await peer.document("votes")
            assert await docs(alpha.home, "show", "votes")  # from now on alpha keeps it
            document.map("for")["alice"] = True
            await document.synced()
            (before,) = await docs(alpha.home, "verify", "votes")  # waits until it is on disk
            assert sum(before["updates"].values()) == 1
        file = alpha.home / "store" / "documents" / "documents.sqlite"
        with sqlite3.connect(file) as database:
            ((envelope,),) = database.execute("SELECT envelope FROM envelopes").fetchall()
            at = envelope.index(b"alice")
            forged = envelope[:at] + b"mallo" + envelope[at + 5 :]
            database.execute("UPDATE envelopes SET envelope = ?", (forged,))
        answer = lattica("docs", "verify", "votes", home=alpha.home)
        assert answer.returncode == 1
        assert "votes" in answer.stderr


async def test_errors_say_what_to_do(tmp_path: Path) -> None:
    answer = lattica("docs", "ls", home=tmp_path)
    assert answer.returncode == 1
    assert "lattica up" in answer.stderr
    with running(tmp_path) as daemons:
        alpha = daemons.start("alpha", "up")
        answer = lattica("docs", "show", "No Name!", home=alpha.home)
        assert answer.returncode == 1
        assert "use a-z" in answer.stderr
        assert await docs(alpha.home, "ls") == []


def test_show_prints_every_kind(capsys: pytest.CaptureFixture[str]) -> None:
    content = {"ages": {"ann": 41}, "todo": ["tea", [1]], "notes": "one\ntwo", "likes": 3}
    _show(DocumentReport(name="d", digest="0" * 64, updates={}, refused=0, content=content))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    for line in (
        ["ages", "ann", "41"],
        ["todo", "0", '"tea"'],
        ["todo", "1", "[1]"],
        ["notes", "1", "one"],
        ["notes", "2", "two"],
        ["likes", "3"],
    ):
        assert line in lines


async def test_the_machine_that_founded_the_mesh_revokes_a_writer_and_its_peer_is_told(
    tmp_path: Path,
) -> None:
    with running(tmp_path) as daemons:
        alpha = daemons.start("alpha", "up")
        async with Peer.open(writer(tmp_path, alpha)) as peer:
            document = await peer.document("shopping")
            document.map("list")["milk"] = 2
            await document.flush()
            await docs(alpha.home, "show", "shopping")
            nobody = await to_thread.run_sync(
                partial(lattica, "docs", "revoke", "shopping", "nobody", home=alpha.home)
            )
            assert nobody.returncode != 0
            assert "lattica peers" in nobody.stderr
            await docs(alpha.home, "grant", "shopping", "writer", "--days", "2")
            await document.synced()
            document.map("list")["milk"] = 2
            await docs(alpha.home, "revoke", "shopping", "writer")
            await document.synced()
            with pytest.raises(GrantError, match="revoked"):
                document.map("list")["milk"] = 3
            with pytest.raises(GrantError, match="founded"):
                await document.revoke(peer.identity.peer_id)
            (shown,) = await docs(alpha.home, "show", "shopping")
            assert shown["content"] == {"list": {"milk": 2}}
