"""The process that holds a lab: it is the first of its process namespace, so all ends with it.

A test asks over a socket, one message a question: `[number, what, arguments]` with the
descriptors that go along, and gets `[number, error or null, result]`. When the test's end
of the socket closes, the keeper ends, and with it every process, namespace and device.
"""

from __future__ import annotations

import asyncio
import os
import resource
import select
import selectors
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import msgspec

from tests.netlab.kinds import Kind, Policy
from tests.netlab.namespaces import Namespace
from tests.netlab.plant import Plant, RealHost, RealSite

MESSAGE = 200_000  # bytes
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_TYPES = {"udp": socket.SOCK_DGRAM, "tcp": socket.SOCK_STREAM}


class Keeper:
    """Answers questions, moves packets, starts processes and tells of their ends."""

    def __init__(self, control: socket.socket, seed: int) -> None:
        self._control = control
        self._plant = Plant(seed=seed)
        self._sites: dict[int, RealSite] = {}
        self._hosts: dict[int, RealHost] = {}
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._over = asyncio.Event()

    async def run(self) -> None:
        """Until the other end closes."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        loop.add_reader(self._control, self._asked, self._control)
        self._say(self._control, [0, None, None])
        await self._over.wait()  # as long as the test lives

    def _asked(self, control: socket.socket) -> None:
        data, fds, _, _ = socket.recv_fds(control, MESSAGE, 8)
        if not data:
            asyncio.get_running_loop().remove_reader(control)
            control.close()
            if control is self._control:
                self._over.set()
            return
        number, what, arguments = msgspec.json.decode(data)
        try:
            result, answered = getattr(self, f"do_{what}")(*fds, **arguments), None
        except Exception as error:
            result, answered = None, f"{type(error).__name__}: {error}"
        finally:
            for fd in fds:
                os.close(fd)
        if isinstance(result, socket.socket):
            with result:
                self._say(control, [number, answered, None], result.fileno())
        else:
            self._say(control, [number, answered, result])

    def _say(self, control: socket.socket, message: list[Any], *fds: int) -> None:
        try:
            socket.send_fds(control, [msgspec.json.encode(message)], fds)
        except OSError:
            self._over.set()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            process = self._processes.pop(pid, None)
            if process is not None:
                process.returncode = os.waitstatus_to_exitcode(status)
                self._say(self._control, [-pid, None, process.returncode])

    def do_channel(self, fd: int) -> None:
        """Questions may come over another socket as well."""
        other = socket.socket(fileno=os.dup(fd))
        asyncio.get_running_loop().add_reader(other, self._asked, other)

    def do_site(self, kind: Any, behind: int | None, **options: Any) -> dict[str, Any]:
        site = self._plant.site(
            msgspec.convert(kind, Kind),
            behind=None if behind is None else self._sites[behind],
            **options,
        )
        return self._told(site)

    def do_carrier(self, site: int) -> dict[str, Any]:
        above = self._sites[site].site.parent
        assert above is not None
        return self._told(RealSite(above, Kind(), by_kernel=False))

    def _told(self, site: RealSite) -> dict[str, Any]:
        number = len(self._sites) + 1
        self._sites[number] = site
        return {
            "number": number,
            "address": site.address,
            "by_kernel": site.by_kernel,
            "router": site.router_address,
        }

    def do_host(self, site: int) -> dict[str, Any]:
        host = self._sites[site].host()
        number = len(self._hosts) + 1
        self._hosts[number] = host
        return {"number": number, "address": host.address, "address6": host.address6}

    def do_move(self, host: int, site: int) -> dict[str, Any]:
        moved = self._hosts[host]
        moved.move(self._sites[site])
        return {"number": host, "address": moved.address, "address6": moved.address6}

    def do_socket(self, host: int, version: int, kind: str) -> socket.socket:
        with self._hosts[host].namespace.inside():
            return socket.socket(_FAMILIES[version], _TYPES[kind])

    def do_run(self, *fds: int, argv: list[str], host: int, **options: Any) -> int:
        return self._start(self._hosts[host].namespace, fds, argv, **options)

    def do_run_on_router(self, *fds: int, argv: list[str], site: int, **options: Any) -> int:
        return self._start(self._router(site), fds, argv, **options)

    def do_nft(self, site: int, rules: str) -> None:
        self._router(site).nft(rules)

    def _router(self, site: int) -> Namespace:
        router = self._sites[site].router
        if router is None:
            raise ValueError("a public site has no router")
        return router

    def _start(
        self, namespace: Namespace, fds: Sequence[int], argv: list[str], **options: Any
    ) -> int:
        stdin, stdout, stderr = fds
        with namespace.inside():
            process = subprocess.Popen(
                argv,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
                **options,
            )
        self._processes[process.pid] = process
        return process.pid

    def do_signal(self, pid: int, number: int) -> None:
        if pid in self._processes:
            os.killpg(pid, number)

    def do_reboot(self, site: int, address: str | None) -> str | None:
        self._sites[site].reboot(address)
        return self._sites[site].address

    def do_cut(self, site: int) -> None:
        self._sites[site].site.cut()

    def do_restore(self, site: int) -> None:
        self._sites[site].site.restore()

    def do_blackout(self, site: int, seconds: float) -> None:
        self._sites[site].site.blackout(seconds)

    def do_link(self, site: int, up: bool, down: bool, changes: dict[str, Any]) -> None:
        self._sites[site].site.link.set(up=up, down=down, **changes)

    def do_policy(self, site: int, udp: bool, tcp_ports: list[int] | None) -> None:
        ports = None if tcp_ports is None else frozenset(tcp_ports)
        self._sites[site].site.policy = Policy(udp=udp, tcp_ports=ports)

    def do_partition(self, one: int, other: int) -> None:
        self._plant.topology.partition(self._sites[one].site, self._sites[other].site)

    def do_heal(self, one: int, other: int) -> None:
        self._plant.topology.heal(self._sites[one].site, self._sites[other].site)

    def do_counters(self, site: int) -> dict[str, int]:
        told = self._sites[site].site
        total = told.counters + told.box.counters + told.link.up.counters + told.link.down.counters
        tunnel = self._sites[site].tunnel
        return dict(total + tunnel.counters if tunnel is not None else total)


class FineSelector(selectors.EpollSelector):
    """Waits to the microsecond: epoll's whole milliseconds are as long as a short link's delay."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """See `selectors.BaseSelector.select`."""
        if timeout is not None and timeout > 0:
            select.select([self.fileno()], [], [], timeout)
            timeout = 0
        return super().select(timeout)


def main() -> None:
    """`python -m tests.netlab.keeper DESCRIPTOR SEED FOLDER`; the folder is removed at the end."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    loop = asyncio.SelectorEventLoop(FineSelector())
    try:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(_keep(control, int(sys.argv[2])))
    finally:
        shutil.rmtree(sys.argv[3], ignore_errors=True)


async def _keep(control: socket.socket, seed: int) -> None:
    await Keeper(control, seed).run()


if __name__ == "__main__":
    main()
