"""Port mapping by a real daemon on a lab's router, and a proxy as the only way out."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys

import pytest

from tests.netlab import kinds
from tests.netlab.gateways import cannot_map_ports, with_miniupnpd, with_proxy
from tests.netlab.lab import Lab, LabSocket
from tests.netlab.processes import LabError
from tests.netlab.test_lab import arrived

pytestmark = [pytest.mark.anyio, pytest.mark.netlab]
needs_miniupnpd = pytest.mark.skipif(cannot_map_ports() is not None, reason=str(cannot_map_ports()))

WAIT = 0.3  # seconds for what may never come
NAT_PMP = 5351
UDP = 17


async def seen(sender: LabSocket, receiver: LabSocket, to: tuple[str, int]):
    sender.send(b"@hello", to)
    received = await receiver.receive(WAIT)
    return None if received is None else received[1]


async def asked(sock: LabSocket, router: str, request: bytes) -> bytes:
    sock.send(request, (router, NAT_PMP))
    received = await sock.receive(5.0)
    assert received is not None, "the router does not answer"
    return received[0]


@needs_miniupnpd
async def test_nat_pmp_maps_and_unmaps_a_port() -> None:
    """RFC 6886."""
    async with Lab() as lab:
        outside = await (await lab.host()).udp()
        site = await lab.site(kinds.SYMMETRIC_RANDOM)
        await with_miniupnpd(site)
        host = await site.host()
        inside, control = await host.udp(5000), await host.udp()
        told = await asked(control, site.router, bytes(2))
        assert socket.inet_ntoa(told[8:12]) == site.address
        told = await asked(control, site.router, struct.pack("!BBHHHI", 0, 1, 0, 5000, 6000, 60))
        _, _, result, _, port, outer, _ = struct.unpack("!BBHIHHI", told)
        assert (result, port, outer) == (0, 5000, 6000)
        mapped = (site.address, outer)
        assert await arrived(outside, inside, mapped) == outside.address
        assert await arrived(inside, outside, outside.address) == mapped
        told = await asked(control, site.router, struct.pack("!BBHHHI", 0, 1, 0, 5000, 0, 0))
        assert struct.unpack_from("!H", told, 2) == (0,)
        stranger = await (await lab.host()).udp()
        assert await seen(stranger, inside, mapped) is None


@needs_miniupnpd
async def test_pcp_maps_a_port() -> None:
    """RFC 6887."""
    async with Lab() as lab:
        outside = await (await lab.host()).udp()
        site = await lab.site(kinds.PORT_RESTRICTED)
        await with_miniupnpd(site, upnp=False)
        host = await site.host()
        inside, control = await host.udp(5000), await host.udp()
        mine = b"\0" * 10 + b"\xff\xff" + socket.inet_aton(host.address)
        request = struct.pack("!BBHI16s", 2, 1, 0, 60, mine) + struct.pack(
            "!12sB3xHH16s", b"a nonce here", UDP, 5000, 6000, b"\0" * 10 + b"\xff\xff" + bytes(4)
        )
        told = await asked(control, site.router, request)
        assert told[3] == 0, f"PCP result {told[3]}"
        port, outer, address = struct.unpack_from("!HH16s", told, 40)
        assert port == 5000
        assert socket.inet_ntoa(address[12:]) == site.address
        assert await arrived(outside, inside, (site.address, outer)) == outside.address


UPNP = """
import re, socket, sys, urllib.request

mine, port = sys.argv[1], sys.argv[2]
kind = "urn:schemas-upnp-org:service:WANIPConnection:1"
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(5)
lines = ["M-SEARCH * HTTP/1.1", "HOST: 239.255.255.250:1900", 'MAN: "ssdp:discover"', "MX: 1",
         f"ST: {kind}", "", ""]
sock.sendto("\\r\\n".join(lines).encode(), ("239.255.255.250", 1900))
root = re.search(r"(?i)location: *(\\S+)", sock.recv(4096).decode())[1]
page = urllib.request.urlopen(root, timeout=5).read().decode()
service = r"(urn:[^<]*:WANIPConnection:\\d).*?<controlURL>(.*?)</controlURL>"
kind, path = re.search(service, page, re.S).groups()
fields = {"NewRemoteHost": "", "NewExternalPort": port, "NewProtocol": "UDP",
          "NewInternalPort": port, "NewInternalClient": mine, "NewEnabled": 1,
          "NewPortMappingDescription": "lab", "NewLeaseDuration": 60}
inner = "".join(f"<{name}>{value}</{name}>" for name, value in fields.items())
envelope = "http://schemas.xmlsoap.org/soap/"
body = (f'<?xml version="1.0"?><s:Envelope xmlns:s="{envelope}envelope/" '
        f's:encodingStyle="{envelope}encoding/"><s:Body><u:AddPortMapping xmlns:u="{kind}">{inner}'
        "</u:AddPortMapping></s:Body></s:Envelope>")
request = urllib.request.Request("/".join(root.split("/")[:3]) + path, body.encode(), {
    "Content-Type": "text/xml", "SOAPAction": f'"{kind}#AddPortMapping"'})
print(urllib.request.urlopen(request, timeout=5).status)
"""


@needs_miniupnpd
async def test_upnp_is_discovered_and_maps_a_port() -> None:
    async with Lab() as lab:
        outside = await (await lab.host()).udp()
        site = await lab.site(kinds.PORT_RESTRICTED)
        await with_miniupnpd(site)
        host = await site.host()
        inside = await host.udp(5000)
        assert await seen(outside, inside, (site.address, 5000)) is None
        asking = await host.run([sys.executable, "-c", UPNP, host.address, "5000"])
        assert await asking.output() == "200\n"
        assert await arrived(outside, inside, (site.address, 5000)) == outside.address


@needs_miniupnpd
async def test_ports_are_mapped_only_where_the_kernel_translates() -> None:
    async with Lab() as lab:
        with pytest.raises(LabError, match="kernel"):
            await with_miniupnpd(await lab.site(kinds.FULL_CONE))


@pytest.mark.parametrize("kernel", [False, True])
async def test_a_proxy_is_the_only_way_out(kernel: bool) -> None:
    async with Lab() as lab:
        server = await lab.host()
        listener = await server.socket("tcp")
        listener.bind((server.address, 443))
        listener.listen()
        site = await lab.site(kinds.PORT_RESTRICTED, kernel=kernel)
        proxy = await with_proxy(site, only=True, credentials="me:secret")
        host = await site.host()
        loop = asyncio.get_running_loop()

        async def answer(*headers: str) -> tuple[socket.socket, bytes]:
            sock = await host.socket("tcp")
            await asyncio.wait_for(loop.sock_connect(sock, proxy), 5.0)
            head = [f"CONNECT {server.address}:443 HTTP/1.1", *headers, "", ""]
            await loop.sock_sendall(sock, "\r\n".join(head).encode())
            return sock, await asyncio.wait_for(loop.sock_recv(sock, 1000), 5.0)

        direct = await host.socket("tcp")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(loop.sock_connect(direct, (server.address, 443)), WAIT)
        assert (await answer())[1].startswith(b"HTTP/1.1 407")
        sock, told = await answer("Proxy-Authorization: Basic bWU6c2VjcmV0")
        assert told == b"HTTP/1.1 200 Connected\r\n\r\n"
        far, source = await asyncio.wait_for(loop.sock_accept(listener), 5.0)
        with far:
            assert source[0] == site.address
            await loop.sock_sendall(sock, b"through")
            assert await asyncio.wait_for(loop.sock_recv(far, 100), 5.0) == b"through"
            await loop.sock_sendall(far, b"and back")
            assert await asyncio.wait_for(loop.sock_recv(sock, 100), 5.0) == b"and back"
