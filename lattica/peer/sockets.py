"""The sockets of a peer: UDP, TCP and TLS, as asked for or as the home's last run had them."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Sequence

from lattica.errors import AddressError, PathError, PortInUseError
from lattica.identity.tickets import Contact
from lattica.path import addresses as address_text
from lattica.path.combined import CombinedPath
from lattica.path.tcp import TcpPath
from lattica.path.tls import PORT as TLS_PORT
from lattica.path.tls import TlsPath
from lattica.path.udp import UdpPath
from lattica.peer.options import PeerOptions

log = logging.getLogger("lattica.peer")

LOOPBACK = "127.0.0.1:0"


def bind(options: PeerOptions, contacts: Sequence[Contact], last_port: int) -> CombinedPath:
    """As asked, or on loopback unless one of `contacts` is elsewhere.

    `last_port` is the UDP port of the last run, where others look for this peer first; 0: none.

    Raises:
        PortInUseError, AddressError, PathError: what was asked for cannot be bound.
    """
    listen = options.listen or (everywhere() if _any_remote(contacts) else LOOPBACK)
    buffer = options.config.link.socket_buffer
    with contextlib.ExitStack() as opened:  # closed again where a later one fails
        udp = _bind_udp(listen, last_port, buffer)
        opened.callback(udp.close)
        tcp = _bind_tcp(options, listen, address_text.split(udp.addresses[0])[1])
        opened.callback(tcp.close)
        tls = _bind_tls(options, listen)
        opened.pop_all()
    further = address_text.join(address_text.split(listen)[0], 0)
    return CombinedPath(
        {address_text.UDP: udp, address_text.TCP: tcp, address_text.TLS: tls},
        make_extra=lambda: UdpPath.bind(further, socket_buffer=buffer // 16),
    )


def everywhere() -> str:
    """What to listen on for peers elsewhere: every interface, with IPv6 where there is any."""
    return "[::]:0" if socket.has_dualstack_ipv6() else "0.0.0.0:0"


def ports(addresses: Sequence[str]) -> tuple[int, int | None]:
    """The UDP port, and the TCP port if there is one."""
    found: dict[str, int] = {}
    for address in addresses:
        scheme, where = address_text.split_scheme(address)
        found.setdefault(scheme, address_text.split(where)[1])
    return found[address_text.UDP], found.get(address_text.TCP)


def dialable(addresses: Sequence[str]) -> tuple[str, ...]:
    """The addresses, if others can dial each.

    Raises:
        AddressError: one is not of the form host:port.
    """
    for address in addresses:
        if address_text.split(address_text.strip_scheme(address))[1] == 0:
            raise AddressError(f"{address!r}: others cannot dial port 0; name the outside port")
    return tuple(addresses)


def _bind_udp(listen: str, last_port: int, buffer: int) -> UdpPath:
    host, port = address_text.split(listen)
    if port == 0 and last_port:
        try:
            return UdpPath.bind(address_text.join(host, last_port), socket_buffer=buffer)
        except PortInUseError:
            log.info("port %d of the last run is taken now", last_port)
    return UdpPath.bind(listen, socket_buffer=buffer)


def _bind_tcp(options: PeerOptions, listen: str, udp_port: int) -> TcpPath:
    """The TCP side; without the option it can dial only."""
    asked, proxy = options.tcp, options.config.link.proxy
    if asked is None:
        return TcpPath(proxy=proxy)
    if asked:
        return TcpPath.bind(asked, proxy=proxy)
    host, port = address_text.split(listen)
    try:
        return TcpPath.bind(address_text.join(host, udp_port), proxy=proxy)
    except PortInUseError:
        if port:
            raise
        log.info("TCP port %d is taken; another is used", udp_port)
        return TcpPath.bind(address_text.join(host, 0), proxy=proxy)


def _bind_tls(options: PeerOptions, listen: str) -> TlsPath:
    """The TLS side; without the option it can dial only."""
    asked, proxy = options.tls, options.config.link.proxy
    if asked is None:
        return TlsPath(proxy=proxy)
    if asked:
        return TlsPath.bind(asked, proxy=proxy)
    host, _ = address_text.split(listen)
    try:
        return TlsPath.bind(address_text.join(host, TLS_PORT), proxy=proxy)
    except PathError as error:
        path = TlsPath.bind(address_text.join(host, 0), proxy=proxy)
        log.warning(
            "%s; TLS listens at %s, where networks that let out only web traffic do not reach "
            "it. Permit port %d (run as root, or sysctl net.ipv4.ip_unprivileged_port_start), "
            "or forward it there and tell with --address",
            error,
            ", ".join(path.addresses),
            TLS_PORT,
        )
        return path


def _any_remote(contacts: Sequence[Contact]) -> bool:
    """Whether some contact has an address off this machine."""
    for contact in contacts:
        for address in contact.addresses:
            try:
                host, _ = address_text.split(address_text.strip_scheme(address))
            except AddressError:
                continue  # not dialled either
            if not address_text.is_loopback(host):
                return True
    return False
