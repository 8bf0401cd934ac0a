"""What the lab needs from the system, and the Debian package that brings it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

TUN = Path("/dev/net/tun")
PACKAGES = {"ip": "iproute2", "nft": "nftables", "unshare": "util-linux"}
OPTIONAL = {"miniupnpd": "miniupnpd-nftables"}  # for the tests of port mapping


def missing_packages(*, optional: bool = True) -> list[str]:
    """Debian packages of programs that are not found."""
    wanted = PACKAGES | OPTIONAL if optional else PACKAGES
    return [package for program, package in wanted.items() if find(program) is None]


def find(program: str) -> str | None:
    """Where a program is; the system's own are looked for also when they are not on the path."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
    return shutil.which(program, path=path)


def namespaces(*, unprivileged: bool = False) -> list[str]:
    """The command that starts the next one in new namespaces, which end with it."""
    as_user = unprivileged or os.geteuid() != 0
    return [
        find("unshare") or "unshare",
        *(("--user", "--map-root-user") if as_user else ()),
        *("--net", "--mount", "--mount-proc", "--pid", "--fork", "--kill-child"),
    ]


@cache
def reason() -> str | None:
    """Why the lab cannot run here; None where it can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    packages = missing_packages(optional=False)
    if packages:
        return f"not installed: apt-get install {' '.join(packages)}"
    if not os.access(TUN, os.R_OK | os.W_OK):
        return f"{TUN} cannot be opened: run as root, or let this user open it"
    made = subprocess.run([*namespaces(), "true"], capture_output=True, text=True)
    if made.returncode != 0:
        return f"no namespaces here ({made.stderr.strip()}): run as root, or allow user namespaces"
    return None


if __name__ == "__main__":
    # For scripts: what is to be installed, and why the lab cannot run.
    if "--packages" in sys.argv:
        print(" ".join(missing_packages()))
    elif (why := reason()) is not None:
        sys.exit(f"the network lab cannot run: {why}")
