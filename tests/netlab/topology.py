"""Sites joined to an internet through their boxes and links; the same for both labs.

The internet is the root of a tree. A site hangs below it, or below another site (a home
below its carrier). What is sent inside a site either meets a member there or goes up
through the site's box and link; at each level the owner of the target's address is asked.
Times and timers are those of the `Timers` given: a virtual loop's or a real one's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import count
from typing import Any, Protocol

import msgspec

from lattica.path.emulator import Conditions, Direction
from tests.netlab.kinds import Kind, Policy
from tests.netlab.nat import TCP, UDP, Box, Dependence, Firewall, Nat, Packet

LAN = Conditions(latency=0.0001, mtu=65_535)


class Timers(Protocol):
    """The part of an event loop that moves packets."""

    def time(self) -> float: ...

    def call_at(self, when: float, callback: Callable[..., Any], *args: Any) -> Any: ...


class Member(Protocol):
    """Who has an address inside a site: a host, or the outside of another site."""

    def arrived(self, packet: Packet, data: bytes) -> None: ...


class Link:
    """The two directions between a site's box and what it hangs below."""

    def __init__(self, conditions: Conditions, seed: str) -> None:
        self.up = Direction(conditions, f"{seed} up")
        self.down = Direction(conditions, f"{seed} down")

    def set(self, *, up: bool = True, down: bool = True, **changes: Any) -> None:
        """Other conditions from now on: `delay`, `jitter`, `rate`, … (see `conditions`)."""
        for wanted, direction in ((up, self.up), (down, self.down)):
            if wanted:
                direction.conditions = conditions(direction.conditions, **changes)


def conditions(base: Conditions | None = None, **changes: Any) -> Conditions:
    """`Conditions` with changes; `delay` is another word for `latency` (seconds, one way)."""
    if "delay" in changes:
        changes["latency"] = changes.pop("delay")
    return msgspec.structs.replace(base or Conditions(), **changes)


class Site:
    """An inside network, the box before it and the link beyond. Made by `Topology.site`."""

    def __init__(self, topology: Topology, name: str, parent: Site | None, lan: str) -> None:
        self.name = name
        self.parent = parent
        self.lan = lan  # the first three numbers of inside addresses
        self.box: Box = Firewall(open_to_all=True)
        self.box6: Box = Firewall(open_to_all=True)
        self.policy = Policy()
        self.link = Link(Conditions(), f"{topology.seed} {name}")
        self.members: dict[str, Member] = {}
        self.counters: Counter[str] = Counter()
        self.is_cut = False
        self.prefix6: str | None = None  # "2001:db8:…:" before the host's number
        self._topology = topology
        self._lan = Direction(topology.lan or LAN, f"{topology.seed} {name} lan")
        self._hosts = count(2)

    @property
    def address(self) -> str | None:
        """The address that others see; None for sites that translate nothing."""
        return self.box.address

    @property
    def translates(self) -> bool:
        return self.box.address is not None

    def join(self, member: Member) -> str:
        """A new inside address for a member."""
        address = (
            f"{self.lan}.{next(self._hosts)}"
            if self.translates or self.parent is None
            else self._topology.public_address()
        )
        self.add(address, member)
        return address

    def join6(self, member: Member) -> str:
        """A new global IPv6 address for a member.

        Raises:
            ValueError: the site has no IPv6.
        """
        if self.prefix6 is None:
            raise ValueError(f"{self.name} has no IPv6; make it with ipv6=True")
        address = f"{self.prefix6}{next(self._hosts):x}"
        self.add(address, member)
        return address

    def add(self, address: str, member: Member) -> None:
        """Make a member known at an address, above too where nothing translates it."""
        self.members[address] = member
        if self.parent is not None and (":" in address or not self.translates):
            self.parent.add(address, self)

    def remove(self, address: str) -> None:
        """Undo `add`."""
        self.members.pop(address, None)
        if self.parent is not None and (":" in address or not self.translates):
            self.parent.remove(address)

    def new_outer_address(self) -> str:
        """One that nobody has yet, for the outside of this site's box."""
        if self.parent is None or self.parent.parent is None:
            return self._topology.public_address()
        return f"{self.parent.lan}.{next(self.parent._hosts)}"

    def reboot(self, address: str | None = None) -> None:
        """Lose all mappings; get `address` outside ("new": any other one)."""
        if address == "new":
            address = self.new_outer_address()
        before = self.box.address
        self.box.reboot(address)
        self.box6.reboot()
        if self.parent is not None and before is not None and self.box.address is not None:
            self.parent.remove(before)
            self.parent.add(self.box.address, self)

    def cut(self) -> None:
        """Pull the cable: nothing passes the link, also what is under way."""
        self.is_cut = True

    def restore(self) -> None:
        """Undo `cut`."""
        self.is_cut = False

    def blackout(self, seconds: float) -> None:
        """`cut` now and `restore` after so long."""
        self.cut()
        timers = self._topology.timers
        timers.call_at(timers.time() + seconds, self.restore)

    def send(self, packet: Packet, data: bytes) -> None:
        """Take a packet from a member, or from above once it has passed the box."""
        member = self.members.get(packet.target[0])
        if self.parent is None:
            self._topology.cross(packet, data, member)
        elif member is None:
            self._leave(packet, data)
        else:
            self._carry(self._lan, data, member.arrived, packet)

    def arrived(self, packet: Packet, data: bytes) -> None:
        """Take a packet from the network above (see `Member`)."""
        self._carry(self.link.down, data, self._enter, packet)

    def _leave(self, packet: Packet, data: bytes) -> None:
        if not self._lets(packet.protocol, packet.target[1]):
            return
        timers = self._topology.timers
        box = self.box6 if ":" in packet.source[0] else self.box
        out = box.outbound(packet, timers.time())
        if out is None:
            self.counters["not_translated"] += 1
        elif out.target[0] != box.address:
            assert self.parent is not None
            self._carry(self.link.up, data, self.parent.send, out)
        elif box.hairpin:
            self._let_in(box.inbound(out, timers.time()), data)
        else:
            self.counters["no_hairpin"] += 1

    def _enter(self, packet: Packet, data: bytes) -> None:
        if self._lets(packet.protocol, packet.source[1]):
            box = self.box6 if ":" in packet.source[0] else self.box
            self._let_in(box.inbound(packet, self._topology.timers.time()), data)

    def _let_in(self, packet: Packet | None, data: bytes) -> None:
        if packet is None:
            self.counters["kept_out"] += 1
            return
        member = self.members.get(packet.target[0])
        if member is None:
            self.counters["nobody"] += 1
        else:
            self._carry(self._lan, data, member.arrived, packet)

    def _lets(self, protocol: str, remote_port: int) -> bool:
        allowed = not self.is_cut
        if protocol == UDP:
            allowed &= self.policy.udp
        elif protocol == TCP and self.policy.tcp_ports is not None:
            allowed &= remote_port in self.policy.tcp_ports
        if not allowed:
            self.counters["cut" if self.is_cut else "blocked"] += 1
        return allowed

    def _carry(
        self,
        direction: Direction,
        data: bytes,
        step: Callable[[Packet, bytes], None],
        packet: Packet,
    ) -> None:
        if self.is_cut and direction is not self._lan:
            self.counters["cut"] += 1
            return
        if direction is self._lan and self._topology.lan is None:
            step(packet, data)
            return
        timers = self._topology.timers
        for at, contents in direction.carry(data, timers.time()):
            if direction is self.link.up:
                timers.call_at(at, self._up, step, packet, contents)
            else:
                timers.call_at(at, step, packet, contents)

    def _up(self, step: Callable[[Packet, bytes], None], packet: Packet, data: bytes) -> None:
        if self.is_cut:
            self.counters["cut"] += 1
        else:
            step(packet, data)


class Topology:
    """The tree of sites, and the addresses it gives out.

    Public ones are from 198.18.0.0/15 (RFC 2544) and 2001:db8::/32 (RFC 3849), those between
    a carrier and its homes from 100.64.0.0/10 (RFC 6598).
    """

    def __init__(self, timers: Timers, *, seed: int = 0, lan: Conditions | None = LAN) -> None:
        self.timers = timers
        self.seed = seed
        self.lan = lan  # of all inside networks; None: what arrives inside is handed on at once
        self.counters: Counter[str] = Counter()
        self._parted: set[frozenset[Member]] = set()
        self._sites = count(1)
        self._publics = count(1)
        self.internet = Site(self, "internet", None, "")

    def site(
        self,
        kind: Kind,
        *,
        behind: Site | None = None,
        lan: str | None = None,
        ipv6: bool = False,
        link: Conditions | None = None,
    ) -> Site:
        """A new site, with a carrier's site above it where the kind has one and none is given."""
        if behind is None and kind.carrier is not None:
            behind = self._new("carrier", self.internet, None)
            self._translate(behind, Nat(kind.carrier, behind.new_outer_address(), seed=behind.name))
        site = self._new("site", behind or self.internet, lan)
        if kind.home is not None:
            self._translate(site, Nat(kind.home, site.new_outer_address(), seed=site.name))
        elif kind.firewall is not None:
            site.box = Firewall(kind.firewall)
        if ipv6:
            site.prefix6 = f"2001:db8:{int(site.name.split('-')[1]):x}::"
            open_to_all = kind.home is None and kind.firewall is None
            site.box6 = Firewall(Dependence.ADDRESS_AND_PORT, open_to_all=open_to_all)
        site.policy = kind.policy
        site.link.set(**msgspec.structs.asdict(link or Conditions()))
        return site

    def public_address(self) -> str:
        """One that nobody has yet."""
        number = next(self._publics)
        return f"198.{18 + number // 65_024}.{number // 254 % 256}.{number % 254 + 1}"

    def partition(self, one: Site, other: Site) -> None:
        """Drop everything that two sites send each other through the internet."""
        self._parted.add(frozenset((_top(one), _top(other))))

    def heal(self, one: Site, other: Site) -> None:
        """Undo `partition`."""
        self._parted.discard(frozenset((_top(one), _top(other))))

    def cross(self, packet: Packet, data: bytes, member: Member | None) -> None:
        """Bring a packet from one site at the internet to another."""
        if member is None:
            self.counters["nobody"] += 1
            return
        if self._parted:
            sender = self.internet.members.get(packet.source[0])
            if sender is not None and frozenset((sender, member)) in self._parted:
                self.counters["partitioned"] += 1
                return
        member.arrived(packet, data)

    def _new(self, role: str, parent: Site, lan: str | None) -> Site:
        number = next(self._sites)
        if lan is None:
            first = "100.64" if role == "carrier" else f"10.{number // 256}"
            lan = f"{first}.{number % 256}"
        return Site(self, f"{role}-{number}", parent, lan)

    def _translate(self, site: Site, nat: Nat) -> None:
        site.box = nat
        assert site.parent is not None
        assert nat.address is not None
        site.parent.add(nat.address, site)


def _top(site: Site) -> Site:
    while site.parent is not None and site.parent.parent is not None:
        site = site.parent
    return site
