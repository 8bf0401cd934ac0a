"""A home in network namespaces: a host, its router with a real `miniupnpd`, and a host outside.

The namespaces have no names: each lives as long as a process that waits for its input to end, so
nothing is left behind however a test ends. No packet leaves them.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

OUTSIDE = "5.5.5.9"  # not one of those for documentation: miniupnpd knows and refuses them
WAN = "5.5.5.5"
GATEWAY = "192.168.77.1"
HOST = "192.168.77.2"
NEIGHBOUR = "192.168.77.3"
_DAEMON = "miniupnpd"
_HTTP_PORT = 5000
_RULES = """
table inet filter {{
    chain forward {{
        type filter hook forward priority 0; policy drop;
        iifname "lan" accept
        ct state established,related accept
        jump miniupnpd
    }}
    chain miniupnpd {{ }}
    chain prerouting {{
        type nat hook prerouting priority -100; policy accept;
        jump prerouting_miniupnpd
    }}
    chain postrouting {{
        type nat hook postrouting priority 100; policy accept;
        oifname "wan" masquerade
        jump postrouting_miniupnpd
    }}
    chain prerouting_miniupnpd {{ }}
    chain postrouting_miniupnpd {{ }}
}}
"""
_CONFIG = """
ext_ifname=wan
listening_ip=lan
http_port={port}
enable_natpmp={natpmp}
enable_upnp={upnp}
force_igd_desc_v1={v1}
secure_mode=yes
system_uptime=no
min_lifetime=2
max_lifetime=86400
upnp_table_name=filter
upnp_nat_table_name=filter
upnp_forward_chain=miniupnpd
upnp_nat_chain=prerouting_miniupnpd
upnp_nat_postrouting_chain=postrouting_miniupnpd
uuid=6e7c2f4e-0b8d-4f43-9d4c-1f5a4c1b2a3d
allow 1024-65535 192.168.77.0/24 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
"""


def why_not() -> str:
    """Why no home can be built here; empty: it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs Linux and root"
    for program, package in (("ip", "iproute2"), ("unshare", "util-linux"), ("nft", "nftables")):
        if shutil.which(program) is None:
            return f"needs {program}: apt-get install {package}"
    if subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode:
        return "this kernel lets nobody make network namespaces"
    return ""


def why_no_router() -> str:
    """Why there is no miniupnpd here; empty: there is."""
    if shutil.which(_DAEMON) is None:
        return f"needs {_DAEMON}: apt-get install miniupnpd-nftables"
    return ""


class Place:
    """One namespace."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo; exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"\n"
        self.pid = self._holder.pid
        self.run("ip", "link", "set", "lo", "up")

    def command(self, *args: str) -> list[str]:
        """`args`, to be run here."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", *args]

    def run(self, *args: str, given: str | None = None) -> str:
        done = subprocess.run(
            self.command(*args), input=given, capture_output=True, text=True, timeout=10
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def address(self, device: str, address: str) -> None:
        self.run("ip", "address", "add", address, "dev", device)
        self.run("ip", "link", "set", device, "up")

    def close(self) -> None:
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        self._holder.stdin.close()
        self._holder.wait(5)
        self._holder.stdout.close()


def cable(one: Place, device: str, other: Place, far: str) -> None:
    """A veth pair between two places."""
    one.run(
        "ip", "link", "add", device, "type", "veth", "peer", "name", far, "netns", str(other.pid)
    )


class Child:
    """A Python program of ours in a place: lines of JSON come from it, lines go to it."""

    def __init__(self, place: Place, module: str, *args: str) -> None:
        self._errors: Any = None
        self._process = subprocess.Popen(
            place.command(sys.executable, "-X", "dev", "-m", module, *args),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[3],
        )

    def read(self, timeout: float = 15.0) -> Any:
        """The next line."""
        assert self._process.stdout is not None
        assert select.select([self._process.stdout], [], [], timeout)[0], "the program is silent"
        line = self._process.stdout.readline()
        assert line, "the program has ended"
        return json.loads(line)

    def until(self, key: str, value: Any, timeout: float = 15.0) -> Any:
        """The next line where `key` has this value, or any value but none for `...`."""
        end = time.monotonic() + timeout
        while True:
            line = self.read(max(end - time.monotonic(), 0.01))
            if line.get(key) == value or (value is ... and line.get(key)):
                return line

    def say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def end(self, timeout: float = 10.0) -> None:
        """Let it leave in order."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(timeout) == 0
        assert self._process.stdout is not None
        self._process.stdout.close()

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(5)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


class Home:
    """A host and a neighbour on a bridge, a router that translates, and a host outside."""

    def __init__(self, directory: Path) -> None:
        self.host, self.neighbour, self.router, self.outside = (Place() for _ in range(4))
        self._directory = directory
        self._daemon: subprocess.Popen[bytes] | None = None
        self._children: list[Child] = []
        router = self.router
        router.run("ip", "link", "add", "lan", "type", "bridge")
        router.address("lan", f"{GATEWAY}/24")
        for index, (place, address) in enumerate(((self.host, HOST), (self.neighbour, NEIGHBOUR))):
            cable(router, f"port{index}", place, "eth0")
            router.run("ip", "link", "set", f"port{index}", "master", "lan", "up")
            place.address("eth0", f"{address}/24")
            place.run("ip", "route", "add", "default", "via", GATEWAY)
        cable(router, "wan", self.outside, "eth0")
        router.address("wan", f"{WAN}/24")
        self.outside.address("eth0", f"{OUTSIDE}/24")
        router.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        router.run("nft", "-f", "-", given=_RULES.format())

    def move_wan(self, old: str, new: str) -> None:
        """The provider gives the router another address."""
        self.router.run("ip", "address", "del", f"{old}/24", "dev", "wan")
        self.router.run("ip", "address", "add", f"{new}/24", "dev", "wan")

    def start_router(self, *, natpmp: bool = True, upnp: bool = True, v1: bool = False) -> None:
        """Start miniupnpd, with the protocols given; `natpmp` stands for PCP as well."""
        assert self._daemon is None
        config = self._directory / "miniupnpd.conf"
        said = {True: "yes", False: "no"}
        config.write_text(
            _CONFIG.format(port=_HTTP_PORT, natpmp=said[natpmp], upnp=said[upnp], v1=said[v1])
        )
        pid_file = str(self._directory / "miniupnpd.pid")
        args = [_DAEMON, "-d", "-f", str(config), "-P", pid_file]
        with (self._directory / "miniupnpd.log").open("ab") as log:
            self._daemon = subprocess.Popen(self.router.command(*args), stdout=log, stderr=log)
        self._until_listening(5351 if natpmp else 1900)

    def stop_router(self) -> None:
        """End miniupnpd in order, or do nothing."""
        if self._daemon is not None:
            self._daemon.terminate()
            self._daemon.wait(5)
            self._daemon = None

    def forget_mappings(self) -> None:
        """What a router without a memory does when its power fails."""
        for chain in ("miniupnpd", "prerouting_miniupnpd", "postrouting_miniupnpd"):
            self.router.run("nft", "flush", "chain", "inet", "filter", chain)

    def mapped(self) -> str:
        """The router's own rules for mapped ports."""
        return self.router.run("nft", "list", "chain", "inet", "filter", "prerouting_miniupnpd")

    def start(self, place: Place, module: str, *args: str) -> Child:
        child = Child(place, module, *args)
        self._children.append(child)
        return child

    def close(self) -> None:
        for child in self._children:
            child.kill()
        self.stop_router()
        for place in (self.host, self.neighbour, self.router, self.outside):
            place.close()

    def _until_listening(self, port: int) -> None:
        end = time.monotonic() + 10
        while f":{port} " not in self.router.run("ss", "-Hlun"):
            assert self._daemon is not None
            assert self._daemon.poll() is None, (self._directory / "miniupnpd.log").read_text()
            assert time.monotonic() < end, "miniupnpd does not start"
            time.sleep(0.02)


@contextlib.contextmanager
def home(directory: Path) -> Iterator[Home]:
    """A home without its miniupnpd; see `Home.start_router`."""
    made = Home(directory)
    try:
        yield made
    finally:
        made.close()


def needs(*reasons: str) -> Sequence[pytest.MarkDecorator]:
    """Marks for tests that need a home; `reasons` from `why_not` and the like."""
    reason = next((each for each in reasons if each), "")
    return [pytest.mark.skipif(bool(reason), reason=reason)]
