"""The real lab, as tests use it: namespaces, real sockets and processes, real NATs.

    async with Lab() as lab:
        site = await lab.site("port-restricted", delay=0.01)
        host = await site.host()
        process = await host.run([sys.executable, "-c", "print('hello')"])
        print(await process.output())

All of it lives in a keeper process (`tests.netlab.keeper`) and ends with it, also when the
test is killed.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec

from lattica.path.udp import UdpPath
from tests.netlab.keeper import MESSAGE
from tests.netlab.kinds import KINDS, PUBLIC, Kind
from tests.netlab.nat import Address
from tests.netlab.processes import ROOT, LabError, LabProcess
from tests.netlab.requirements import namespaces

START = 30.0  # seconds that the keeper may take
ANSWER = 20.0


class Lab:
    """A network of its own. `seed` decides the NATs' ports and the links' losses.

    `unprivileged` has root do as other users must: take a user namespace.
    """

    def __init__(self, *, seed: int = 0, unprivileged: bool = False) -> None:
        self._seed = seed
        self._command = namespaces(unprivileged=unprivileged)
        self._next = 0
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._exits: dict[int, asyncio.Future[int]] = {}
        self._given: list[socket.socket] = []
        self._channel: socket.socket | None = None
        self.folder = Path()  # for files of processes; the keeper removes it
        self.processes: list[LabProcess] = []

    async def __aenter__(self) -> Self:
        self._control, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._control, other):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MESSAGE)
        self._control.setblocking(False)
        self.folder = Path(tempfile.mkdtemp(prefix="lattica-lab-"))
        with other:
            fd = other.fileno()
            self._keeper = await asyncio.create_subprocess_exec(
                *self._command,
                *(sys.executable, "-m", "tests.netlab.keeper", str(fd), str(self._seed)),
                str(self.folder),
                pass_fds=[fd],
                cwd=ROOT,
                start_new_session=True,
            )
        loop = asyncio.get_running_loop()
        self._asked[0] = loop.create_future()
        loop.add_reader(self._control, self._answered)
        try:
            await asyncio.wait_for(self._asked[0], START)
            self._channel, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._channel.settimeout(ANSWER)
            with other:
                await self.ask("channel", fds=[other.fileno()])
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stop()

    async def site(
        self,
        kind: str | Kind = PUBLIC,
        *,
        behind: LabSite | None = None,
        lan: str | None = None,
        ipv6: bool = False,
        kernel: bool = True,
        **link: Any,
    ) -> LabSite:
        """A new site.

        `behind` puts it below another one, such as `carrier()` of a site with a carrier.
        `lan` is the first three numbers of inside addresses. `kernel` lets the kernel
        translate where it can play the kind. `link` as in `topology.conditions`: `delay`,
        `jitter` (seconds, one way), `loss` (0 to 1), `rate` (bytes/s), `queue`, `mtu` (bytes).
        """
        if "delay" in link:
            link["latency"] = link.pop("delay")
        told = KINDS[kind] if isinstance(kind, str) else kind
        made = await self.ask(
            "site",
            kind=msgspec.to_builtins(told),
            behind=None if behind is None else behind.number,
            lan=lan,
            ipv6=ipv6,
            kernel=kernel,
            **link,
        )
        return LabSite(self, **made)

    async def host(self, **link: Any) -> LabHost:
        """A public host with a site of its own."""
        return await (await self.site(PUBLIC, **link)).host()

    async def partition(self, one: LabSite, other: LabSite) -> None:
        """Drop everything that two sites send each other through the internet."""
        await self.ask("partition", one=one.number, other=other.number)

    async def heal(self, one: LabSite, other: LabSite) -> None:
        """Undo `partition`."""
        await self.ask("heal", one=one.number, other=other.number)

    async def ask(self, what: str, *, fds: Sequence[int] = (), **arguments: Any) -> Any:
        """Have the keeper do something.

        Raises:
            LabError: it could not; the message is the keeper's.
        """
        self._next += 1
        future = self._asked[self._next] = asyncio.get_running_loop().create_future()
        socket.send_fds(self._control, [msgspec.json.encode([self._next, what, arguments])], fds)
        return await asyncio.wait_for(future, ANSWER)

    def ask_now(self, what: str, **arguments: Any) -> Any:
        """As `ask`, where nothing can be awaited: the event loop stands still meanwhile."""
        assert self._channel is not None
        self._channel.send(msgspec.json.encode([0, what, arguments]))
        data, fds, _, _ = socket.recv_fds(self._channel, MESSAGE, 8)
        _, error, result = msgspec.json.decode(data)
        if error is not None:
            raise LabError(error)
        return socket.socket(fileno=fds[0]) if fds else result

    def socket_now(self, host: int, family: int, kind: int) -> socket.socket:
        """See `LabHost.open_socket`."""
        made: socket.socket = self.ask_now(
            "socket",
            host=host,
            version=6 if family == socket.AF_INET6 else 4,
            kind="tcp" if kind == socket.SOCK_STREAM else "udp",
        )
        made.setblocking(False)
        return made

    @property
    def keeper_pid(self) -> int:
        """Of the process that all else hangs on."""
        return self._keeper.pid

    def exit_of(self, pid: int) -> asyncio.Future[int]:
        """Resolves to the exit code of a process, negative for a signal."""
        if pid not in self._exits:
            self._exits[pid] = asyncio.get_running_loop().create_future()
        return self._exits[pid]

    def _answered(self) -> None:
        data, fds, _, _ = socket.recv_fds(self._control, MESSAGE, 8)
        if not data:
            asyncio.get_running_loop().remove_reader(self._control)
            for future in (*self._asked.values(), *self._exits.values()):
                if not future.done():
                    future.set_exception(LabError("the lab's keeper has ended"))
                    future.exception()  # nobody may be waiting
            return
        number, error, result = msgspec.json.decode(data)
        if number < 0:
            self.exit_of(-number).set_result(result)
            return
        future = self._asked.pop(number)
        if future.done():
            return
        if error is not None:
            future.set_exception(LabError(error))
        else:
            future.set_result(self._give(fds[0]) if fds else result)

    def _give(self, fd: int) -> socket.socket:
        self._given.append(socket.socket(fileno=fd))
        return self._given[-1]

    async def _stop(self) -> None:
        for sock in self._given:
            sock.close()
        for process in self.processes:
            process.close()
        asyncio.get_running_loop().remove_reader(self._control)
        self._control.close()
        if self._channel is not None:
            self._channel.close()
        try:
            await asyncio.wait_for(self._keeper.wait(), ANSWER)
        except TimeoutError:
            os.killpg(self._keeper.pid, signal.SIGKILL)
            await self._keeper.wait()  # a killed process ends
        shutil.rmtree(self.folder, ignore_errors=True)  # where the keeper never came to it


class LabLink:
    """What a site's link does to packets."""

    def __init__(self, site: LabSite) -> None:
        self._site = site

    async def set(self, *, up: bool = True, down: bool = True, **changes: Any) -> None:
        """Other conditions from now on, in one direction or both: see `Lab.site`."""
        await self._site.lab.ask("link", site=self._site.number, up=up, down=down, changes=changes)


class LabSite:
    """A site: hosts behind a box, and a link to the internet."""

    def __init__(
        self, lab: Lab, number: int, address: str | None, by_kernel: bool, router: str | None
    ) -> None:
        self.lab = lab
        self.router = router  # its inside address; None where there is no router
        self.number = number
        self.address = address  # that others see; None where nothing is translated
        self.by_kernel = by_kernel
        self.link = LabLink(self)

    async def host(self) -> LabHost:
        """A new host inside."""
        return LabHost(self.lab, self, **await self.lab.ask("host", site=self.number))

    async def carrier(self) -> LabSite:
        """The carrier's network above, to put other homes `behind` it."""
        return LabSite(self.lab, **await self.lab.ask("carrier", site=self.number))

    async def reboot(self, new_address: str | None = None) -> None:
        """The box forgets all mappings, and has another address ("new": any other)."""
        self.address = await self.lab.ask("reboot", site=self.number, address=new_address)

    async def cut(self) -> None:
        """Pull the cable."""
        await self.lab.ask("cut", site=self.number)

    async def restore(self) -> None:
        """Undo `cut`."""
        await self.lab.ask("restore", site=self.number)

    async def blackout(self, seconds: float) -> None:
        """`cut` now and `restore` after so long."""
        await self.lab.ask("blackout", site=self.number, seconds=seconds)

    async def allow(self, *, udp: bool = True, tcp_ports: Sequence[int] | None = None) -> None:
        """What is let out from now on: UDP, and TCP to some ports (None: all)."""
        ports = None if tcp_ports is None else list(tcp_ports)
        await self.lab.ask("policy", site=self.number, udp=udp, tcp_ports=ports)

    async def run_on_router(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | Path = ROOT,
    ) -> LabProcess:
        """Start a process on the site's router, such as a port mapping daemon."""
        return await LabProcess.start(
            self.lab, "run_on_router", argv, site=self.number, env=env, cwd=cwd
        )

    async def nft(self, rules: str) -> None:
        """Load rules of nftables on the site's router; its devices are `lan` and `wan`."""
        await self.lab.ask("nft", site=self.number, rules=rules)

    async def counters(self) -> dict[str, int]:
        """What became of packets here, and why some were dropped."""
        told: dict[str, int] = await self.lab.ask("counters", site=self.number)
        return told


class LabHost:
    """A network namespace with an interface in a site."""

    def __init__(
        self, lab: Lab, site: LabSite, number: int, address: str, address6: str | None
    ) -> None:
        self.lab = lab
        self.site = site
        self.number = number
        self.address = address
        self.address6 = address6

    async def socket(self, kind: str = "udp", *, ipv6: bool = False) -> socket.socket:
        """A socket of this process whose network is the host's, closed with the lab at last.

        `kind`: `udp` or `tcp`.
        """
        made: socket.socket = await self.lab.ask(
            "socket", host=self.number, version=6 if ipv6 else 4, kind=kind
        )
        made.setblocking(False)
        return made

    async def udp(self, port: int = 0) -> LabSocket:
        """A datagram socket, for tests of the lab itself."""
        sock = await self.socket()
        sock.bind(("0.0.0.0", port))
        return LabSocket(sock, self.address)

    async def path(self, port: int = 0, *, ipv6: bool = False) -> UdpPath:
        """A path of a peer in this process whose socket, and so whose network, is the host's."""
        sock = await self.socket(ipv6=ipv6)
        sock.bind((self.address6 if ipv6 else self.address, port))
        return UdpPath(sock)

    def open_socket(self, family: int, kind: int) -> Any:
        """As `socket`, but at once, and whoever asks closes it. See `Lab.ask_now`."""
        return self.lab.socket_now(self.number, family, kind)

    async def lose_ipv6(self) -> None:
        """The interface has no IPv6 address any more, as when a provider takes it away."""
        flush = ["ip", "-6", "address", "flush", "dev", "eth0", "scope", "global"]
        await (await self.run(flush)).output()
        self.address6 = None

    async def move(self, site: LabSite) -> None:
        """Go to another site: the interface goes and another comes; sockets stay."""
        moved = await self.lab.ask("move", host=self.number, site=site.number)
        self.site, self.address, self.address6 = site, moved["address"], moved["address6"]

    async def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | Path = ROOT,
    ) -> LabProcess:
        """Start a process with pipes."""
        return await LabProcess.start(self.lab, "run", argv, host=self.number, env=env, cwd=cwd)


class LabSocket:
    """See `classify.Socket`."""

    def __init__(self, sock: socket.socket, address: str) -> None:
        self.sock = sock
        self.address: Address = (address, sock.getsockname()[1])
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)

    def send(self, data: bytes, target: Address) -> None:
        self.sock.sendto(data, target)

    async def receive(self, timeout: float) -> tuple[bytes, Address] | None:
        loop = asyncio.get_running_loop()
        try:
            return await asyncio.wait_for(loop.sock_recvfrom(self.sock, 65_535), timeout)
        except TimeoutError:
            return None

    def close(self) -> None:
        self.sock.close()
