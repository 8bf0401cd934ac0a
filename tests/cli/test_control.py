"""The socket through which commands ask the peer of a home."""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import pytest

from lattica.cli import control
from lattica.errors import ControlError


class Echo:
    """Answers with what was asked."""

    async def __call__(self, question: control.Ask) -> control.Report:
        return "here"  # type: ignore[return-value]

    async def work(self, question: control.Ask, tell: control.Tell) -> control.Report:
        return await self(question)


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    """A home whose path a socket's address has no room for."""
    home = tmp_path / ("x" * 90) / "home"
    home.mkdir(parents=True)
    return home


@pytest.mark.anyio
async def test_a_home_with_a_long_path_is_found_whatever_tmpdir_says(
    deep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(deep))  # as long as the home itself
    async with anyio.create_task_group() as tasks:
        await tasks.start(control.serve, deep, Echo())
        assert await control.ask(deep, control.Ask("status"), str) == "here"
        monkeypatch.setattr("tempfile.tempdir", None)  # as another command's may be
        assert await control.ask(deep, control.Ask("status"), str) == "here"
        tasks.cancel_scope.cancel()
    assert not control.socket_path(deep).exists()


@pytest.mark.anyio
async def test_a_strangers_folder_in_its_place_is_refused(
    deep: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(control, "SHORT", tmp_path)
    stranger = os.getuid() + 1
    monkeypatch.setattr("os.getuid", lambda: stranger)
    (tmp_path / f"lattica-{stranger}").mkdir()  # by whom the tests run as
    with pytest.raises(ControlError, match="belongs to another user"):
        await control.serve(deep, Echo())
    with pytest.raises(ControlError, match="belongs to another user"):
        await control.ask(deep, control.Ask("status"), str)
