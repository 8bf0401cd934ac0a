"""Sites and hosts of the real lab: namespaces, and the tunnels between them and the topology.

A host at the internet has a tunnel for its interface. Other sites have a router: a
namespace with a bridge for the hosts and a tunnel to the topology. The kernel of the
router translates where it can play the site's kind; else the topology does.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections import Counter
from itertools import count

import msgspec

from lattica.path.emulator import Conditions
from tests.netlab.ip_packets import parse, rewrite
from tests.netlab.kinds import Kind
from tests.netlab.namespaces import Namespace
from tests.netlab.nat import Dependence, Packet, Ports
from tests.netlab.topology import Site, Topology

MTU = 1500  # bytes of an IP packet
ROUTER_ON_LINK = "169.254.1.1"  # of routers before public addresses
_MULTICAST = ("224.", "239.", "ff0")  # and what follows
_DRAIN = 64  # packets per wake-up, so that all tunnels get their turn
_NETLINK_NETFILTER = 12
_NFNL_CT_DELETE = 0x0102
_NLM_REQUEST_ACK = 0x5


class Tunnel:
    """The end of a tunnel device: a member of a site, and what is sent into it."""

    def __init__(self, fd: int, site: Site) -> None:
        self.site = site
        self.counters: Counter[str] = Counter()
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(fd, self._drain)

    def arrived(self, packet: Packet, data: bytes) -> None:
        """See `topology.Member`."""
        try:
            os.write(self._fd, rewrite(data, packet))
        except BlockingIOError:
            self.counters["overflowed"] += 1
        except OSError:  # the interface is down
            self.counters["down"] += 1

    def close(self) -> None:
        """Let go of a device that has been removed."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _drain(self) -> None:
        for _ in range(_DRAIN):
            try:
                data = os.read(self._fd, 65_535)
            except OSError:
                return
            packet = parse(data)
            if packet is None:
                self.counters["no_ip"] += 1
            elif packet.target[0].startswith(_MULTICAST):
                self.counters["multicast"] += 1  # stays in the site, as at any router
            else:
                self.site.send(packet, data)


class Plant:
    """All of a lab's namespaces."""

    def __init__(self, *, seed: int = 0) -> None:
        self.topology = Topology(asyncio.get_running_loop(), seed=seed, lan=None)

    def site(
        self,
        kind: Kind,
        *,
        behind: RealSite | None = None,
        lan: str | None = None,
        ipv6: bool = False,
        kernel: bool = True,
        **link: object,
    ) -> RealSite:
        """A new site. `kernel` has the kernel play its box where it can."""
        by_kernel = kernel and played_by_kernel(kind)
        in_topology = msgspec.structs.replace(kind, home=None, firewall=None) if by_kernel else kind
        above = behind.site if behind is not None else None
        conditions = msgspec.structs.replace(Conditions(mtu=MTU), **link)
        site = self.topology.site(in_topology, behind=above, lan=lan, ipv6=ipv6, link=conditions)
        return RealSite(site, kind, by_kernel=by_kernel)


def played_by_kernel(kind: Kind) -> bool:
    """Whether Linux translates or filters as the kind's box does.

    A plain masquerade keeps the port and the mapping for all remotes (it looks for one that
    the source has already), and lets in what a connection expects: port-restricted. With
    `fully-random` each connection gets a port of its own: symmetric. A stateful firewall is
    one. Wider filters, other mappings, sequences and blocks are not among what it does.
    """
    if kind.firewall is not None:
        return kind.firewall is Dependence.ADDRESS_AND_PORT
    home = kind.home
    if home is None or home.hairpin or home.filtering is not Dependence.ADDRESS_AND_PORT:
        return False
    return (home.mapping, home.ports) in (
        (Dependence.ENDPOINT_INDEPENDENT, Ports.PRESERVE),
        (Dependence.ADDRESS_AND_PORT, Ports.RANDOM),
    )


class RealSite:
    """A site of the topology with its router."""

    def __init__(self, site: Site, kind: Kind, *, by_kernel: bool) -> None:
        self.site = site
        self.kind = kind
        self.by_kernel = by_kernel
        self.has_router = kind.home is not None or kind.firewall is not None
        self.router: Namespace | None = None
        self.tunnel: Tunnel | None = None
        self.outer: str | None = None  # the kernel's outside address
        self._numbers = count(2)
        self._cables = count(1)
        if self.has_router:
            self._build_router()

    @property
    def address(self) -> str | None:
        """The address that others see."""
        top = self.site
        if top.parent is not None and top.parent.translates:
            return top.parent.address
        return self.outer or self.site.address

    @property
    def router_address(self) -> str | None:
        """Of the router, inside."""
        if not self.has_router:
            return None
        return f"{self.site.lan}.1" if self.translating else ROUTER_ON_LINK

    @property
    def translating(self) -> bool:
        return self.kind.home is not None

    def host(self) -> RealHost:
        """A new host inside."""
        return RealHost(self)

    def inside_address(self) -> str:
        """A new IPv4 address for a host."""
        assert self.tunnel is not None
        if not self.translating:
            return self.site.join(self.tunnel)
        if self.by_kernel:
            return f"{self.site.lan}.{next(self._numbers)}"
        return self.site.join(self.tunnel)

    def plug(self, host: Namespace) -> None:
        """Lead a cable from the router's bridge to a new `eth0` of the host."""
        assert self.router is not None
        name = f"p{next(self._cables)}"
        self.router.cable(name, host, "eth0")
        self.router.ip(f"link set {name} master lan up")

    def reboot(self, address: str | None = None) -> None:
        """Lose all mappings; get `address` outside ("new": any other one)."""
        if not self.by_kernel:
            self.site.reboot(address)
            return
        assert self.router is not None
        assert self.tunnel is not None
        if address is not None and self.outer is not None:
            before = self.outer
            self.outer = self.site.new_outer_address() if address == "new" else address
            self.site.remove(before)
            self.site.add(self.outer, self.tunnel)
            self.router.ip(
                f"addr add {self.outer}/32 dev wan",
                f"addr del {before}/32 dev wan",
                f"route replace default dev wan src {self.outer}",
            )
        self.forget_connections()

    def forget_connections(self) -> None:
        """Empty the kernel's table of connections."""
        assert self.router is not None
        with self.router.inside():
            netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        with netlink:
            body = struct.pack("=BBH", socket.AF_UNSPEC, 0, 0)
            netlink.send(
                struct.pack("=IHHII", 16 + len(body), _NFNL_CT_DELETE, _NLM_REQUEST_ACK, 1, 0)
                + body
            )
            error = struct.unpack_from("=i", netlink.recv(4096), 16)[0]
        if error:
            raise OSError(-error, os.strerror(-error))

    def _build_router(self) -> None:
        router = self.router = Namespace()
        self.tunnel = Tunnel(router.tun("wan"), self.site)
        router.sysctl("net/ipv4/ip_forward", 1)
        inner = f"{self.router_address}/{24 if self.translating else 32}"
        router.ip(
            f"link set wan mtu {MTU} txqueuelen 2000 up",
            "link add lan type bridge mcast_snooping 0",
            "link set lan up",
            f"addr add {inner} dev lan",
            "route add default dev wan",
        )
        if self.site.prefix6 is not None:
            router.sysctl("net/ipv6/conf/all/forwarding", 1)
            router.ip(
                f"addr add {self.site.prefix6}1/64 dev lan nodad",
                "route add ::/0 dev wan",
            )
        if self.by_kernel:
            self._let_the_kernel_play(router, self.tunnel)
        elif self.translating:
            self.site.add(str(self.router_address), self.tunnel)  # the router's own traffic

    def _let_the_kernel_play(self, router: Namespace, tunnel: Tunnel) -> None:
        home = self.kind.home
        timeout = 120.0 if home is None else home.timeout
        if home is not None:
            self.outer = self.site.new_outer_address()
            self.site.add(self.outer, tunnel)
            router.ip(
                f"addr add {self.outer}/32 dev wan",
                f"route replace default dev wan src {self.outer}",
            )
            how = " fully-random" if home.ports is Ports.RANDOM else ""
            router.nft(
                "table ip lattica_nat {\n"
                "  chain out { type nat hook postrouting priority 100;\n"
                f'    oifname "wan" masquerade{how};\n  }}\n}}\n'
            )
        # Also what is for the router itself is dropped, as routers do: else the table remembers
        # the unasked, and what answers it later gets another port than the mapping's.
        router.nft(
            "table inet lattica_filter {\n"
            "  chain own { type filter hook input priority 0; policy drop;\n"
            '    iifname != "wan" accept;\n'
            "    ct state established,related accept;\n  }\n"
            "  chain through { type filter hook forward priority 0; policy drop;\n"
            '    iifname "lan" accept;\n'
            "    ct status dnat accept;\n"
            "    ct state established,related accept;\n  }\n}\n"
        )
        for key in ("nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"):
            router.sysctl(f"net/netfilter/{key}", int(timeout))


class RealHost:
    """A namespace with one interface, `eth0`."""

    def __init__(self, site: RealSite) -> None:
        self.namespace = Namespace()
        self.address = ""
        self.address6: str | None = None
        self._tunnel: Tunnel | None = None
        self._join(site)

    def move(self, site: RealSite) -> None:
        """Go to another site: the interface goes, and another comes."""
        self._leave()
        self._join(site)

    def _join(self, site: RealSite) -> None:
        self.site = site
        if site.has_router:
            self.address = site.inside_address()
            member = site.tunnel
            site.plug(self.namespace)
        else:
            member = self._tunnel = Tunnel(self.namespace.tun("eth0"), site.site)
            self.address = site.site.join(member)
        assert member is not None
        self.address6 = site.site.join6(member) if site.site.prefix6 is not None else None
        self.namespace.ip(*self._configuration())
        if site.has_router and not site.translating:
            assert site.router is not None
            site.router.ip(f"route add {self.address}/32 dev lan")

    def _configuration(self) -> list[str]:
        up = f"link set eth0 mtu {MTU} txqueuelen 2000 up"
        if not self.site.has_router:
            lines = [f"addr add {self.address}/32 dev eth0", up, "route add default dev eth0"]
        elif self.site.translating:
            lines = [
                f"addr add {self.address}/24 dev eth0",
                up,
                f"route add default via {self.site.site.lan}.1",
            ]
        else:
            lines = [
                f"addr add {self.address}/32 dev eth0",
                up,
                f"route add default via {ROUTER_ON_LINK} dev eth0 onlink",
            ]
        if self.address6 is not None:
            lines.append(f"addr add {self.address6}/64 dev eth0 nodad")
            way = f"via {self.site.site.prefix6}1" if self.site.has_router else "dev eth0"
            lines.append(f"route add ::/0 {way}")
        return lines

    def _leave(self) -> None:
        for address in (self.address, self.address6):
            if address is not None and address in self.site.site.members:
                self.site.site.remove(address)
        self.namespace.ip("link delete eth0")
        if self._tunnel is not None:
            self._tunnel.close()
            self._tunnel = None
