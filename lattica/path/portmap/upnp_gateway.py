"""A gateway's mapping service by UPnP: its description and its actions, one method each."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping as Arguments
from typing import Any

from async_upnp_client.client import UpnpAction, UpnpDevice, UpnpRequester, UpnpService
from async_upnp_client.client_factory import UpnpFactory
from async_upnp_client.const import HttpResponse
from async_upnp_client.exceptions import UpnpActionError, UpnpError

from lattica.errors import PortMapError
from lattica.path.portmap.mapping import Want
from lattica.path.scopes import Scope, scope_of

SERVICES = ("WANIPConnection:2", "WANIPConnection:1", "WANPPPConnection:1")
DESCRIPTION = "lattica"  # what the router's page shows
CONFLICT = 718  # ConflictInMappingEntry: somebody else's
NO_SUCH_ENTRY = 714
SAME_PORT = 724  # SamePortValuesRequired
ONLY_PERMANENT = 725  # OnlyPermanentLeasesSupported
# What old routers say in place of the last: invalid arguments, action failed, bad value.
MAYBE_ONLY_PERMANENT = (ONLY_PERMANENT, 402, 501, 600, 601)

_ADD_ANY = "AddAnyPortMapping"
_RESERVED, _MISNAMED = "NewReservedPort", "NewExternalPort"


class RefusedError(PortMapError):
    """The gateway answered with an error of UPnP, whose number is `code`."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the router refuses: UPnP error {code}")
        self.code = code


class UpnpGateway:
    """One WANIPConnection or WANPPPConnection. Errors of all methods: `PortMapError`."""

    def __init__(self, service: UpnpService) -> None:
        self._service = service
        self.can_choose = service.has_action(_ADD_ANY)

    @classmethod
    async def describe(cls, requester: UpnpRequester, location: str) -> UpnpGateway:
        """Read what the device at `location` offers, and take the connection that is up.

        Raises:
            PortMapError: it offers none, or its description is not one.
        """
        factory = UpnpFactory(requester, non_strict=True, on_post_call_action=_as_declared)
        try:
            device = await factory.async_create_device(location)
        except Exception as error:  # what the library raises on odd documents is no fixed set
            raise PortMapError(f"its description cannot be used: {_say(error)}") from error
        gateways = [cls(service) for service in _services(device)]
        if not gateways:
            raise PortMapError("it has no service that maps ports")
        for gateway in gateways[:-1]:
            if await gateway.is_connected():
                return gateway
        return gateways[-1]

    async def is_connected(self) -> bool:
        """Whether the connection is up, as far as the gateway says."""
        try:
            status = (await self._call("GetStatusInfo")).get("NewConnectionStatus")
        except PortMapError:
            return False
        return status == "Connected"

    async def outside(self) -> str:
        """The gateway's IPv4 address outside."""
        host = str((await self._call("GetExternalIPAddress")).get("NewExternalIPAddress")).strip()
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            raise PortMapError("it has no address outside") from None
        if scope_of(host) is Scope.NOBODY:
            raise PortMapError("it has no address outside")
        return host

    async def add(self, want: Want, client: str, *, outside: int, lifetime: int) -> None:
        """Map the port `outside`, or renew it; lifetime in seconds, 0 for ever."""
        await self._call("AddPortMapping", _mapping(want, client, outside, lifetime))

    async def add_any(self, want: Want, client: str, *, outside: int, lifetime: int) -> int:
        """Map the port `outside` or, if it is taken, another, and say which (IGD:2)."""
        arguments = _mapping(want, client, outside, lifetime)
        answer = await self._call(_ADD_ANY, arguments)
        port = answer.get(_RESERVED, answer.get(_MISNAMED))
        if not isinstance(port, int) or not 0 < port < 65_536:
            raise PortMapError("it does not say which port it gave")
        return port

    async def has(self, want: Want, client: str, *, outside: int) -> bool:
        """Whether the port is still mapped to ours."""
        try:
            entry = await self._call("GetSpecificPortMappingEntry", _entry(want, outside))
        except RefusedError as error:
            if error.code == NO_SUCH_ENTRY:
                return False
            raise
        there = (entry.get("NewInternalClient"), entry.get("NewInternalPort"))
        return there == (client, want.port)

    async def remove(self, want: Want, *, outside: int) -> None:
        """Unmap the port."""
        await self._call("DeletePortMapping", _entry(want, outside))

    async def _call(
        self, name: str, arguments: Arguments[str, Any] | None = None
    ) -> dict[str, Any]:
        if not self._service.has_action(name):
            raise PortMapError(f"it does not know {name}")
        try:
            answer = await self._service.action(name).async_call(**(arguments or {}))
        except UpnpActionError as error:
            raise RefusedError(error.error_code or 0) from error
        except Exception as error:  # as above
            raise PortMapError(f"{name}: {_say(error)}") from error
        return dict(answer)


def _as_declared(action: UpnpAction, response: HttpResponse) -> HttpResponse:
    """miniupnpd answers with the argument that the standard names and declares another.

    The library reads declared arguments only.
    """
    is_declared = action.argument(_RESERVED, "out") is not None
    if action.name != _ADD_ANY or is_declared or response.body is None:
        return response
    body = response.body.replace(_RESERVED, _MISNAMED)
    return HttpResponse(response.status_code, response.headers, body)


def _services(device: UpnpDevice) -> list[UpnpService]:
    """Those that map ports, newest kind first."""
    found: list[UpnpService] = []
    for kind in SERVICES:
        wanted = f"urn:schemas-upnp-org:service:{kind}"
        found += [each for each in device.all_services if each.service_type == wanted]
    return found[:4]


def _entry(want: Want, outside: int) -> dict[str, Any]:
    return {
        "NewRemoteHost": "",
        "NewExternalPort": outside,
        "NewProtocol": want.transport.name,
    }


def _mapping(want: Want, client: str, outside: int, lifetime: int) -> dict[str, Any]:
    return _entry(want, outside) | {
        "NewInternalPort": want.port,
        "NewInternalClient": client,
        "NewEnabled": True,
        "NewPortMappingDescription": DESCRIPTION,
        "NewLeaseDuration": lifetime,
    }


def _say(error: Exception) -> str:
    """Short, whatever a gateway put into it."""
    known = isinstance(error, UpnpError | PortMapError)
    return (str(error) if known else type(error).__name__)[:200]
