"""Where a gateway describes itself in UPnP: the search by SSDP (UPnP Device Architecture §1.3)."""

from __future__ import annotations

import asyncio
from collections import Counter
from urllib.parse import urlsplit

import anyio
from aiohttp.http_exceptions import InvalidHeader
from async_upnp_client.ssdp import (
    SSDP_TARGET_V4,
    build_ssdp_search_packet,
    decode_ssdp_packet,
    is_valid_ssdp_packet,
)

from lattica.config import PortMapConfig
from lattica.path.portmap.network import Network, Route

TARGETS = tuple(
    f"urn:schemas-upnp-org:device:InternetGatewayDevice:{version}" for version in (1, 2)
)
_MAX_DATAGRAM = 2048  # bytes
_MAX_LOCATION = 512
_REPEAT = 1.0  # seconds
_MX = 1  # seconds in which devices spread their answers


def location_of(datagram: bytes, source: tuple[str, int], gateway: str) -> str | None:
    """The description's URL in an answer of `gateway`; None: it is no such answer."""
    if source[0] != gateway or len(datagram) > _MAX_DATAGRAM:
        return None
    if not is_valid_ssdp_packet(datagram):
        return None
    try:
        _, headers = decode_ssdp_packet(datagram, None, source)
        location = str(headers.get_lower("location") or "")
        is_its_own = urlsplit(location).hostname == gateway and urlsplit(location).port != 0
    except (InvalidHeader, ValueError):
        return None
    is_gateway = headers.get_lower("st") in TARGETS
    if not (is_gateway and is_its_own) or len(location) > _MAX_LOCATION:
        return None
    return location if location.startswith("http://") else None


async def find(
    route: Route, network: Network, config: PortMapConfig, counters: Counter[str]
) -> str | None:
    """Ask everybody on the LAN and the gateway by itself; only its answer counts.

    Raises:
        OSError: there is no socket at our address any more.
    """
    found: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def received(datagram: bytes, source: tuple[str, int]) -> None:
        location = location_of(datagram, source, route.gateway)
        if location is None:
            counters["portmap:foreign" if source[0] != route.gateway else "portmap:malformed"] += 1
        elif not found.done():
            found.set_result(location)

    sock = await network.open(route.local, received)
    try:
        with anyio.move_on_after(config.upnp_timeout):
            while not found.done():
                for target in TARGETS:
                    packet = build_ssdp_search_packet(SSDP_TARGET_V4, _MX, target)
                    for address in (SSDP_TARGET_V4, (route.gateway, SSDP_TARGET_V4[1])):
                        sock.send(packet, (str(address[0]), int(address[1])))
                with anyio.move_on_after(_REPEAT):
                    await asyncio.shield(found)
    finally:
        sock.close()
    if found.done():
        return found.result()
    found.cancel()
    return None
