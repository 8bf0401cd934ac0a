"""Whom a peer has sent to, and so what it means when a packet comes in or does not."""

from __future__ import annotations

from collections import OrderedDict
from enum import Enum

from lattica.config import NatConfig
from lattica.path import addresses as text
from lattica.reach.report import Filtering

MANY = 0  # in place of ports: too many to tell
_NEVER = float("-inf")


class Standing(Enum):
    """How well the filter of a NAT may know somebody."""

    UNSURE = "unsure"
    STRANGER = "stranger"  # nothing was sent to that host
    SAME_HOST = "same host"  # something was, to another port
    CONTACT = "contact"


class Contacts:
    """Hosts and ports that were sent to, for as long as a filter may remember them."""

    def __init__(self, config: NatConfig) -> None:
        self._config = config
        self._hosts: OrderedDict[str, tuple[float, frozenset[int]]] = OrderedDict()
        self._sure_from = _NEVER  # some contacts made before are forgotten

    def add(self, remote: str, now: float) -> None:
        """We sent to `remote` (`host:port`)."""
        host, port = text.split(remote)
        ports = self._ports(host, now) | {port}
        if len(ports) > self._config.max_contact_ports:
            ports = frozenset({MANY})
        self._hosts[host] = (now, ports)
        self._hosts.move_to_end(host)
        if len(self._hosts) > self._config.max_contacts:
            _, (at, _) = self._hosts.popitem(last=False)
            self._sure_from = at + self._config.contact_ttl

    def knows(self, remote: str, now: float) -> Standing:
        """What `remote` is to a filter that remembers as long as this."""
        host, port = text.split(remote)
        ports = self._ports(host, now)
        if port in ports:
            return Standing.CONTACT
        if MANY in ports:
            return Standing.UNSURE
        if ports:
            return Standing.SAME_HOST
        return Standing.STRANGER if now > self._sure_from else Standing.UNSURE

    def _ports(self, host: str, now: float) -> frozenset[int]:
        at, ports = self._hosts.get(host, (_NEVER, frozenset()))
        return ports if now - at <= self._config.contact_ttl else frozenset()


class Filters:
    """Who was let in and who was kept out; the newest finding of a kind counts."""

    def __init__(self, ttl: float) -> None:
        """A finding counts for `ttl` seconds."""
        self._ttl = ttl
        self._let_in = {Standing.STRANGER: _NEVER, Standing.SAME_HOST: _NEVER}
        self._kept_out = dict(self._let_in)

    def let_in(self, standing: Standing, now: float) -> None:
        """A packet came in from somebody of that standing."""
        if standing in self._let_in:
            self._let_in[standing] = now

    def kept_out(self, standing: Standing, now: float) -> None:
        """A packet did not."""
        if standing in self._kept_out:
            self._kept_out[standing] = now

    def judge(self, now: float) -> Filtering:
        """Address-dependence is only known if both sides of it are; else the stricter is said."""
        oldest = now - self._ttl
        for standing, filtering in (
            (Standing.STRANGER, Filtering.OPEN),
            (Standing.SAME_HOST, Filtering.ADDRESS),
        ):
            if self._let_in[standing] >= max(oldest, self._kept_out[standing]):
                return filtering
        if max(self._kept_out.values()) >= oldest:
            return Filtering.RESTRICTED
        return Filtering.UNKNOWN
