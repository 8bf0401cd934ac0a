"""The real lab proves itself: what each box is, measured from outside; what each link does.

Nothing that is found in the lab counts before this passes.
"""

from __future__ import annotations

import asyncio
import sys
import textwrap
import time
from pathlib import Path

import msgspec
import psutil
import pytest

from tests.netlab import kinds
from tests.netlab.classify import Classifier, Findings, Servers
from tests.netlab.kinds import KINDS, Kind
from tests.netlab.lab import Lab, LabHost, LabSocket
from tests.netlab.measure import delays, loss, rate
from tests.netlab.plant import played_by_kernel
from tests.netlab.processes import ROOT, LabError
from tests.processes import still_running

pytestmark = [pytest.mark.anyio, pytest.mark.netlab]

WAIT = 0.3  # seconds for what may never come
LONG = 5.0  # and for what must
BY_KERNEL = [name for name, kind in KINDS.items() if played_by_kernel(kind)]
SHORT = 3.0  # seconds; an idle mapping's life where it is measured


async def classifier(lab: Lab, host: LabHost) -> Classifier:
    one, other = await lab.host(), await lab.host()
    servers = Servers(await one.udp(1001), await one.udp(1002), await other.udp(1001))
    return Classifier(host.udp, servers, wait=WAIT)


async def seen(sender: LabSocket, receiver: LabSocket, to: tuple[str, int] | None = None):
    """The source of a datagram at its receiver; None if it does not arrive."""
    sender.send(b"@hello", to or receiver.address)
    received = await receiver.receive(WAIT)
    return None if received is None else received[1]


async def arrived(
    sender: LabSocket, receiver: LabSocket, to: tuple[str, int] | None = None
) -> tuple[str, int]:
    """The source of a datagram that must arrive, however busy the machine is."""
    sender.send(b"@hello", to or receiver.address)
    received = await receiver.receive(LONG)
    assert received is not None, "it was lost"
    return received[1]


def short_lived(name: str) -> Kind:
    kind = KINDS[name]
    layers = {
        layer: msgspec.structs.replace(made, timeout=SHORT)
        for layer in ("home", "carrier")
        if (made := getattr(kind, layer)) is not None
    }
    return msgspec.structs.replace(kind, **layers)


def test_the_kernel_plays_what_it_can() -> None:
    assert {
        kinds.PORT_RESTRICTED,
        kinds.SYMMETRIC_RANDOM,
        kinds.FIREWALL,
        kinds.CARRIER_HOME,
        kinds.CARRIER_SYMMETRIC_HOME,
        kinds.UDP_BLOCKED,
    } == set(BY_KERNEL)


@pytest.mark.parametrize(
    ("name", "kernel"), [(name, False) for name in KINDS] + [(name, True) for name in BY_KERNEL]
)
async def test_a_kind_is_what_it_is_called(name: str, kernel: bool) -> None:
    async with Lab(seed=3) as lab:
        site = await lab.site(name, kernel=kernel, delay=0.005)
        assert site.by_kernel is kernel
        assert await (await classifier(lab, await site.host())).run() == Findings.of(KINDS[name])


async def test_idle_mappings_live_as_long_as_told() -> None:
    """Of all these at the same time."""
    players = {
        kinds.FULL_CONE: False,
        kinds.SYMMETRIC_BLOCK: False,
        kinds.CARRIER_HOME: True,
        kinds.PORT_RESTRICTED: True,
        kinds.SYMMETRIC_RANDOM: True,
    }
    async with Lab() as lab:

        async def found(name: str, kernel: bool) -> tuple[float, float]:
            site = await lab.site(short_lived(name), kernel=kernel)
            return await (await classifier(lab, await site.host())).lifetime([1.0, 2.0, 5.0, 6.0])

        every = await asyncio.gather(*(found(*each) for each in players.items()))
        assert dict(zip(players, every, strict=True)) == dict.fromkeys(players, (2.0, 5.0))


async def test_a_links_delay_and_jitter_are_measured_back() -> None:
    async with Lab() as lab:
        server = await (await lab.host(delay=0.01)).udp()
        for delay, jitter in ((0.0, 0.0), (0.02, 0.0), (0.05, 0.02)):
            site = await lab.site(delay=delay, jitter=jitter)
            client = await (await site.host()).udp()
            found = sorted(await delays(client, server, count=30))
            least, middle = found[0], found[15]
            assert delay + 0.0099 <= least <= delay + 0.02
            assert middle == pytest.approx(delay + 0.01 + jitter / 2, abs=0.008)
            await site.link.set(delay=0.001, jitter=0.0)
            assert 0.0109 <= min(await delays(client, server, count=10)) < 0.02
            assert 0.0109 <= min(await delays(server, client, count=10)) < 0.02


async def test_a_links_loss_is_measured_back_each_way() -> None:
    async with Lab() as lab:
        server = await (await lab.host()).udp()
        site = await lab.site(kinds.PUBLIC)
        client = await (await site.host()).udp()
        assert await loss(client, server, count=1000) == 0.0
        await site.link.set(loss=0.1, down=False)
        assert await loss(client, server, count=3000) == pytest.approx(0.1, abs=0.03)
        assert await loss(server, client, count=1000) == 0.0


async def test_a_links_rate_is_measured_back_each_way() -> None:
    async with Lab() as lab:
        server = await (await lab.host()).udp()
        site = await lab.site(kinds.FULL_CONE)
        client = await (await site.host()).udp(5000)
        outside = await arrived(client, server)
        assert await rate(client, server, offered=4e6) > 3e6
        await site.link.set(rate=1e6, down=False)
        assert await rate(client, server, offered=4e6) == pytest.approx(1e6, rel=0.1)
        assert await rate(server, client, outside, offered=4e6) > 3e6
        await site.link.set(rate=5e5, up=False)
        assert await rate(server, client, outside, offered=4e6) == pytest.approx(5e5, rel=0.1)


@pytest.mark.parametrize("kernel", [False, True])
async def test_a_rebooted_box_has_forgotten_and_has_another_address(kernel: bool) -> None:
    async with Lab() as lab:
        server = await (await lab.host()).udp()
        site = await lab.site(kinds.PORT_RESTRICTED, kernel=kernel)
        client = await (await site.host()).udp(5000)
        before = await arrived(client, server)
        assert before[0] == site.address
        assert await arrived(server, client, before) == server.address
        await site.reboot()
        assert await seen(server, client, before) is None
        await site.reboot("new")
        after = await arrived(client, server)
        assert after[0] == site.address != before[0]
        assert await seen(server, client, before) is None
        assert await arrived(server, client, after) == server.address


async def test_a_cut_site_is_silent_until_it_is_restored() -> None:
    async with Lab() as lab:
        server = await (await lab.host()).udp()
        site = await lab.site(kinds.FULL_CONE)
        client = await (await site.host()).udp(5000)
        outside = await arrived(client, server)
        await site.cut()
        assert await seen(client, server) is None
        assert await seen(server, client, outside) is None
        assert (await site.counters())["cut"] == 2
        await site.restore()
        assert await arrived(client, server) == outside
        await site.blackout(0.5)
        began = time.monotonic()
        while await seen(client, server) is None:
            assert time.monotonic() - began < 5.0
        assert time.monotonic() - began > 0.4


async def test_sites_are_parted_and_udp_is_filtered_at_run_time() -> None:
    async with Lab() as lab:
        far, near = await lab.site(), await lab.site(kinds.PORT_RESTRICTED)
        server = await (await far.host()).udp()
        client = await (await near.host()).udp()
        await lab.partition(far, near)
        assert await seen(client, server) is None
        await lab.heal(far, near)
        await arrived(client, server)
        await near.allow(udp=False)
        assert await seen(client, server) is None


@pytest.mark.parametrize("kernel", [False, True])
async def test_a_host_moves_and_its_sockets_go_with_it(kernel: bool) -> None:
    async with Lab() as lab:
        server = await (await lab.host()).udp()
        home = await lab.site(kinds.PORT_RESTRICTED, kernel=kernel)
        mobile = await lab.site(kinds.CARRIER_HOME, kernel=kernel)
        public = await lab.site()
        host = await home.host()
        client = await host.udp(5000)
        for site in (mobile, public, home):
            await host.move(site)
            found = await arrived(client, server)
            assert found[0] == (site.address or host.address)
            assert await arrived(server, client, found) == server.address


async def test_hosts_of_a_site_meet_inside_and_the_same_lan_twice_is_two() -> None:
    async with Lab() as lab:
        one, other = [await lab.site(kinds.PORT_RESTRICTED, lan="192.168.1") for _ in "12"]
        first, second, elsewhere = await one.host(), await one.host(), await other.host()
        assert first.address == elsewhere.address
        sender, receiver = await first.udp(), await second.udp()
        assert await arrived(sender, receiver) == sender.address
        assert await seen(receiver, await elsewhere.udp(), sender.address) is None


@pytest.mark.parametrize("kernel", [False, True])
async def test_homes_behind_one_carrier_meet_by_its_hairpin(kernel: bool) -> None:
    async with Lab() as lab:
        server = await (await lab.host()).udp()
        first = await lab.site(kinds.CARRIER_HOME, kernel=kernel)
        second = await lab.site(kinds.CARRIER_HOME, kernel=kernel, behind=await first.carrier())
        one, other = [await (await site.host()).udp() for site in (first, second)]
        one_seen, other_seen = await arrived(one, server), await arrived(other, server)
        assert one_seen is not None
        assert other_seen is not None
        assert one_seen[0] == other_seen[0] == first.address == second.address
        await seen(one, other, other_seen)  # opens the way
        assert await arrived(other, one, one_seen) == other_seen


@pytest.mark.parametrize("kernel", [False, True])
async def test_ipv6_is_firewalled_and_not_translated(kernel: bool) -> None:
    async with Lab() as lab:
        far = await lab.site(ipv6=True)
        near = await lab.site(kinds.PORT_RESTRICTED, ipv6=True, kernel=kernel)
        server, client = await far.host(), await near.host()
        here, there = await server.socket(ipv6=True), await client.socket(ipv6=True)
        here.bind((server.address6, 5000))
        there.bind((client.address6, 5000))
        loop = asyncio.get_running_loop()

        async def arrives(sender, receiver) -> bool:
            sender.sendto(b"@hello", receiver.getsockname())
            try:
                _, source = await asyncio.wait_for(loop.sock_recvfrom(receiver, 100), WAIT)
            except TimeoutError:
                return False
            return source[:2] == sender.getsockname()[:2]

        assert not await arrives(here, there)
        assert await arrives(there, here)
        assert await arrives(here, there)


TCP_SERVER = """
import socket, sys
server = socket.create_server(("0.0.0.0", int(sys.argv[1])))
print("ready", flush=True)
sock, address = server.accept()
while data := sock.recv(65536):
    sock.sendall(data)
print(address[0])
"""
TCP_CLIENT = """
import os, socket, sys, threading
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3)
sent = os.urandom(300_000)
threading.Thread(target=lambda: (sock.sendall(sent), sock.shutdown(socket.SHUT_WR))).start()
got = b"".join(iter(lambda: sock.recv(65536), b""))
print(got == sent)
"""


@pytest.mark.parametrize("kernel", [False, True])
async def test_tcp_passes_a_nat_exactly_and_only_to_ports_that_are_let(kernel: bool) -> None:
    async with Lab() as lab:
        server = await lab.host(delay=0.005)
        site = await lab.site(kinds.TCP_443_ONLY, kernel=kernel, delay=0.005)
        client = await site.host()
        serving = await server.run([sys.executable, "-c", TCP_SERVER, "443"])
        assert await serving.stdout.readline() == b"ready\n"
        asking = await client.run([sys.executable, "-c", TCP_CLIENT, server.address, "443"])
        assert await asking.output() == "True\n"
        assert await serving.output() == f"{site.address}\n"
        barred = await client.run([sys.executable, "-c", TCP_CLIENT, server.address, "80"])
        with pytest.raises(LabError, match="timed out"):
            await barred.output()


async def test_processes_have_pipes_codes_signals_and_the_hosts_network() -> None:
    async with Lab() as lab:
        host = await (await lab.site(kinds.FULL_CONE)).host()
        echo = await host.run(["sh", "-c", "cat; echo $WORD >&2; exit 3"], env={"WORD": "mesh"})
        echo.stdin.write(b"through\n")
        echo.stdin.write_eof()
        assert await echo.stdout.read() == b"through\n"
        assert await echo.stderr.read() == b"mesh\n"
        assert await echo.wait() == 3
        sleeper = await host.run(["sleep", "60"])
        assert sleeper.returncode is None
        await sleeper.terminate()
        assert await sleeper.wait() == -15
        shown = await (await host.run(["ip", "-brief", "address"])).output()
        assert host.address in shown
        with pytest.raises(LabError, match="FileNotFoundError"):
            await host.run(["no-such-program"])


async def test_a_lab_works_in_a_user_namespace_as_for_other_users() -> None:
    async with Lab(unprivileged=True) as lab:
        for kernel in (False, True):
            site = await lab.site(kinds.PORT_RESTRICTED, kernel=kernel)
            found = await (await classifier(lab, await site.host())).run()
            assert found == Findings.of(KINDS[kinds.PORT_RESTRICTED])


async def test_nothing_of_a_lab_is_left_behind() -> None:
    async with Lab() as lab:
        host = await (await lab.site(kinds.PORT_RESTRICTED)).host()
        await host.run(["sh", "-c", "setsid sleep 300 & sleep 300"])
        family = await grown(lab.keeper_pid, 3)
    assert still_running(family) == []


async def test_nothing_is_left_behind_when_the_test_is_killed() -> None:
    program = """
    import asyncio
    from tests.netlab.lab import Lab

    async def main():
        async with Lab() as lab:
            host = await (await lab.site("port-restricted")).host()
            await host.run(["sh", "-c", "setsid sleep 300 & sleep 300"])
            print(lab.keeper_pid, lab.folder, flush=True)
            await asyncio.sleep(300)

    asyncio.run(main())
    """
    killed = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(program), stdout=-1, cwd=ROOT
    )
    assert killed.stdout is not None
    pid, folder = (await killed.stdout.readline()).split()
    family = await grown(int(pid), 3)
    assert Path(folder.decode()).exists()
    killed.kill()
    await killed.wait()
    assert still_running(family) == []
    assert not Path(folder.decode()).exists()


async def grown(pid: int, least: int) -> list[psutil.Process]:
    """A process and all below it, once there are so many."""
    process = psutil.Process(pid)
    for _ in range(200):
        family = [process, *process.children(recursive=True)]
        if len(family) > least:
            return family
        await asyncio.sleep(0.02)
    raise AssertionError(f"{family} have not become more than {least}")
