"""Where this peer may be reached: its interfaces, what others see of it, mapped ports."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from lattica.config import NatConfig, ReachConfig
from lattica.errors import AddressError
from lattica.path import addresses as text
from lattica.path.scopes import Scope, scope_of
from lattica.path.way import Way, WayKind
from lattica.reach.contacts import MANY
from lattica.reach.messages import MAX_ADDRESSES, News
from lattica.reach.nat import NatObserver
from lattica.reach.report import Mapping, NatReport, public_endpoint

MAIN_SOCKET = "udp"
MAX_HOSTS = 4
MAX_TRIED = 8  # addresses in one attempt,
MAX_PER_HOST = 2  # and ports of one host by one protocol
MAX_PUBLISHED = 8  # a record of the DHT holds no more
_AT_HOME = (Scope.CABLE, Scope.HOME)


class Candidates:
    """One peer's addresses, kept up to date. Times in seconds of the event loop's clock."""

    def __init__(
        self,
        bound: Callable[[], Sequence[str]],
        config: ReachConfig,
        nat: NatConfig,
        *,
        now: Callable[[], float],
    ) -> None:
        """`bound` are the addresses of the sockets, the main one's first."""
        self._bound = bound
        self._config = config
        self._now = now
        self.observer = NatObserver(nat)
        self._hosts: dict[str, None] = {}  # the newest last
        self.configured: tuple[str, ...] = ()  # told by whoever runs this peer
        self.mapped: tuple[str, ...] = ()
        self.relays: tuple[str, ...] = ()

    @property
    def is_quiet(self) -> bool:
        """Whether the sockets are bound to this machine only: nobody else is to hear of them."""
        return all(_scope(address) in (Scope.MACHINE, Scope.NOBODY) for address in self._bound())

    @property
    def report(self) -> NatReport:
        """What is known of the network between this peer and others."""
        self.observer.interfaces([_host(each) for each in self._bound()])
        return self.observer.report(self._now())

    def note(self, way: Way, remote: str) -> None:
        """The other end of a way, which is at `remote`, has told where it sees this peer."""
        self.seen_from(way.observed)
        if way.kind is WayKind.DIRECT and way.address.scheme == MAIN_SOCKET and self._bound():
            local = self._bound()[0]
            self.observer.observed(remote, way.observed, local, self._now())

    def confirm(self, way: Way, remote: str) -> None:
        """A way still works, so this peer is where its other end last saw it."""
        if way.is_alive and way.observed:
            self.observer.confirmed(remote, way.observed, self._now())

    def seen_from(self, observed: str) -> None:
        """Somebody sees this peer at a `host:port`, by whatever protocol."""
        host = _host(observed)
        if scope_of(host) is Scope.EVERYBODY:
            self._hosts.pop(host, None)
            self._hosts[host] = None
            while len(self._hosts) > MAX_HOSTS:
                del self._hosts[next(iter(self._hosts))]

    def contacted(self, address: str) -> None:
        """Something was sent to an address: whoever answers from there is no stranger."""
        scheme, where = text.split_scheme(address)
        if scheme == text.UDP and public_endpoint(where) is not None:
            self.observer.contacted(where, self._now())

    def sprayed(self, host: str) -> None:
        """Something was sent to many ports of a host: none of them is a stranger's."""
        self.observer.contacted(text.join(host, MANY), self._now())

    def reached(self, address: str) -> None:
        """A direct way leads to an address; if it is our own, the router turns packets round."""
        if _host(address) in _hosts(self.report.public) and not self._is_own(_host(address)):
            self.observer.hairpinned(True)

    def _is_own(self, host: str) -> bool:
        return host in _hosts(self._bound())

    def direct(self) -> tuple[str, ...]:
        """All that may be tried directly, best first."""
        report = self.report
        outside: Sequence[str] = ()
        if report.mapping is not Mapping.DEPENDENT:
            outside = report.public
        own = self._bound()
        if not self._config.publish_lan:
            own = [address for address in own if _scope(address) not in _AT_HOME]
        if not self.is_quiet:
            own = [address for address in own if _scope(address) is not Scope.MACHINE]
        return tuple(dict.fromkeys((*self.configured, *outside, *self.mapped, *own)))[
            :MAX_ADDRESSES
        ]

    def published(self) -> tuple[str, ...]:
        """What strangers are told: also the ways through relays, before those at home."""
        direct = self.direct()
        wide = [each for each in direct if _scope(each) is Scope.EVERYBODY]
        rest = [each for each in direct if _scope(each) is not Scope.EVERYBODY]
        return tuple(dict.fromkeys((*wide, *self.relays, *rest)))[:MAX_PUBLISHED]

    def news(self) -> News:
        """For the other end of a link."""
        hosts = tuple(reversed(self._hosts))
        return News(self.direct(), self.relays[:MAX_ADDRESSES], hosts, self.report)

    def worth_trying(self, theirs: News) -> tuple[str, ...]:
        """Those of the other end's addresses that packets from here may reach, best first.

        An address of somebody's home or carrier means another machine elsewhere, so it is
        tried only where both ends seem to be in one place. And few are tried in all: they are
        the other end's word, and may be somebody else's.
        """
        here = self.report
        is_neighbour = not _hosts(here.public).isdisjoint(_hosts(theirs.report.public))
        own = [_host(address) for address in self._bound()]
        near: list[str] = []
        wide: list[str] = []
        by_host: Counter[str] = Counter()
        for address in dict.fromkeys((*theirs.addresses, *theirs.report.public)):
            kind = f"{text.split_scheme(address)[0]} {_host(address)}"
            by_host[kind] += 1
            if by_host[kind] > MAX_PER_HOST:
                continue
            scope = _scope(address)
            if scope is Scope.EVERYBODY:
                wide.append(address)
            elif scope in (Scope.HOME, Scope.CARRIER, Scope.CABLE) and (
                is_neighbour or _shares_a_net(_host(address), own)
            ):
                near.append(address)
        return (*near, *wide)[:MAX_TRIED]


def _host(address: str) -> str:
    try:
        return text.split(text.strip_scheme(address))[0]
    except AddressError:
        return ""


def _hosts(addresses: Iterable[str]) -> set[str]:
    return {_host(address) for address in addresses} - {""}


def _scope(address: str) -> Scope:
    return scope_of(_host(address))


def _shares_a_net(host: str, own: Iterable[str]) -> bool:
    """Whether one of our own addresses is in the same /24, or /64: most homes have one."""
    try:
        ip = ipaddress.ip_address(host.partition("%")[0])
        net = ipaddress.ip_network((ip, 24 if ip.version == 4 else 64), strict=False)
        return any(ipaddress.ip_address(each.partition("%")[0]) in net for each in own if each)
    except ValueError:
        return False
