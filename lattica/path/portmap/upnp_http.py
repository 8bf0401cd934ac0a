"""HTTP for UPnP, to one gateway and nobody else, with bounds on what it may answer."""

from __future__ import annotations

from urllib.parse import urlsplit

import aiohttp
from async_upnp_client.client import UpnpRequester
from async_upnp_client.const import HttpRequest, HttpResponse
from async_upnp_client.exceptions import UpnpCommunicationError

from lattica.config import PortMapConfig
from lattica.path.portmap.network import Route


class GatewayRequester(UpnpRequester):
    """What the UPnP library makes its requests with.

    Descriptions come from whoever answers on the LAN and name further addresses to ask. So nothing
    but the gateway itself is asked, redirects are not followed, and sizes and numbers are bounded.

    Attributes:
        left: requests that may still be made; None: any number.
    """

    def __init__(self, route: Route, config: PortMapConfig) -> None:
        self._route = route
        self._config = config
        self.left: int | None = config.max_requests

    async def async_http_request(self, http_request: HttpRequest) -> HttpResponse:
        """See `UpnpRequester`.

        Raises:
            UpnpCommunicationError: no answer, too large an answer, or one from elsewhere asked for.
        """
        url = urlsplit(http_request.url)
        if url.scheme != "http" or url.hostname != self._route.gateway:
            raise UpnpCommunicationError("it names an address that is not its own")
        if self.left is not None:
            if self.left <= 0:
                raise UpnpCommunicationError("its description never ends")
            self.left -= 1
        try:
            return await self._request(http_request)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            reason = str(error) or type(error).__name__
            raise UpnpCommunicationError(f"no proper answer: {reason}") from error

    async def _request(self, request: HttpRequest) -> HttpResponse:
        headers = {**(request.headers or {}), "Accept-Encoding": "identity"}
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(local_addr=(self._route.local, 0), limit=1),
                timeout=aiohttp.ClientTimeout(total=self._config.upnp_timeout),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,  # a few bytes could become gigabytes
            ) as session,
            session.request(
                request.method,
                request.url,
                headers=headers,
                data=request.body,
                allow_redirects=False,
            ) as response,
        ):
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > self._config.max_document:
                    raise UpnpCommunicationError("its answer is too large")
            # Some routers end their documents with zeros.
            text = body.decode("utf-8", "replace").strip("\0 \t\r\n")
            return HttpResponse(response.status, response.headers, text)
