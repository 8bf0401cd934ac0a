"""What is missing is named with the package that brings it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netlab import requirements

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    requirements.reason.cache_clear()
    yield
    requirements.reason.cache_clear()


def test_a_missing_program_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "find", lambda program: None if program == "nft" else "/x")
    assert requirements.missing_packages() == ["nftables"]
    assert requirements.reason() == "not installed: apt-get install nftables"


def test_port_mapping_is_no_reason_not_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        requirements, "find", lambda program: None if program == "miniupnpd" else "/x"
    )
    assert requirements.missing_packages() == ["miniupnpd-nftables"]
    assert requirements.missing_packages(optional=False) == []


def test_without_tunnels_the_cure_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(requirements, "find", lambda program: "/x")
    monkeypatch.setattr(requirements, "TUN", tmp_path / "no-tun")
    assert "run as root" in str(requirements.reason())
    assert "no-tun" in str(requirements.reason())


def test_without_namespaces_the_systems_words_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    refusing = tmp_path / "unshare"
    refusing.write_text("#!/bin/sh\necho Operation not permitted >&2\nexit 1\n")
    refusing.chmod(0o755)
    monkeypatch.setattr(requirements, "find", lambda program: str(refusing))
    monkeypatch.setattr(requirements, "TUN", Path("/dev/null"))
    assert "Operation not permitted" in str(requirements.reason())
    assert "user namespaces" in str(requirements.reason())
