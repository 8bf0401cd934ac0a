"""Network namespaces without names: held by a descriptor, gone when its process is."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from tests.netlab.requirements import TUN, find

_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_SELF = "/proc/thread-self/ns/net"


@cache
def _home() -> int:
    """Where this process was when it made its first namespace."""
    return os.open(_SELF, os.O_RDONLY | os.O_CLOEXEC)


class Namespace:
    """A new network namespace with its loopback up. Enter it on one thread at a time."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._home = _home()
        self._check(self._libc.unshare(_CLONE_NEWNET))
        self.fd = os.open(_SELF, os.O_RDONLY | os.O_CLOEXEC)
        self._check(self._libc.setns(self._home, 0))
        self.ip("link set lo up")

    @contextmanager
    def inside(self) -> Iterator[None]:
        """This thread is in the namespace for a while."""
        self._check(self._libc.setns(self.fd, 0))
        try:
            yield
        finally:
            self._check(self._libc.setns(self._home, 0))

    def ip(self, *commands: str) -> None:
        """Run commands of `ip` here. `{fd}` of another namespace is written as its path."""
        self._run([find("ip") or "ip", "-batch", "-"], "\n".join(commands))

    def nft(self, rules: str) -> None:
        """Load rules of nftables here."""
        self._run([find("nft") or "nft", "-f", "-"], rules)

    def sysctl(self, key: str, value: object) -> None:
        """Set one of the namespace's own settings, such as `net/ipv4/ip_forward`."""
        with self.inside():
            Path("/proc/sys", key).write_text(str(value))

    def tun(self, name: str) -> int:
        """A new tunnel device; what is sent out of it is read from the descriptor."""
        with self.inside():
            fd = os.open(TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            request = struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI)
            fcntl.ioctl(fd, _TUNSETIFF, request)
            # Else each is removed as its descriptor closes, 50 ms one after the other; so they
            # go with their namespaces, all at once.
            fcntl.ioctl(fd, _TUNSETPERSIST, 1)
        return fd

    def cable(self, name: str, other: Namespace, other_name: str) -> None:
        """A pair of devices, one here and one in another namespace."""
        path = f"/proc/self/fd/{other.fd}"
        command = f"link add {name} type veth peer name {other_name} netns {path}"
        self._run([find("ip") or "ip", "-batch", "-"], command, other.fd)

    def close(self) -> None:
        """Let go: the namespace ends with its last process and socket."""
        os.close(self.fd)

    def _run(self, argv: list[str], text: str, *fds: int) -> None:
        with self.inside():
            done = subprocess.run(argv, input=text, capture_output=True, text=True, pass_fds=fds)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip()} in:\n{text}")

    def _check(self, result: int) -> None:
        if result != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
