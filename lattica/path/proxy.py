"""HTTP proxies that let TCP out where nothing else does (CONNECT, RFC 9110 §9.3.6)."""

from __future__ import annotations

import base64
import os
import urllib.parse
import urllib.request

import msgspec

from lattica.errors import AddressError
from lattica.path import addresses as text
from lattica.path.wrapping import WrappingError

VARIABLE = "LATTICA_PROXY"
MAX_HEAD = 16_384  # bytes of an answer before its end
_END = b"\r\n\r\n"
_CURES = {
    401: "give it credentials: http://USER:PASSWORD@HOST:PORT",
    403: "it does not allow that address; try one with port 443",
    407: "give it credentials: http://USER:PASSWORD@HOST:PORT",
    502: "it does not reach the peer",
    503: "it does not reach the peer",
    504: "it does not reach the peer",
}


class Proxy(msgspec.Struct, frozen=True):
    """Where a proxy is, and what it asks for."""

    host: str
    port: int
    credentials: str = ""  # user:password; in no message and no log

    def __str__(self) -> str:
        return text.join(self.host, self.port)

    __repr__ = __str__

    @classmethod
    def parse(cls, url: str) -> Proxy:
        """From `http://[USER:PASSWORD@]HOST:PORT`.

        Raises:
            AddressError: not of that form.
        """
        parts = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
        try:
            port = parts.port or 80
        except ValueError:
            port = 0
        if parts.scheme != "http" or not parts.hostname or not port:
            raise AddressError("a proxy is told as http://HOST:PORT; others are not supported")
        secret = ""
        if parts.username is not None:
            user, word = parts.username, parts.password or ""
            secret = f"{urllib.parse.unquote(user)}:{urllib.parse.unquote(word)}"
        return cls(parts.hostname, port, secret)


def proxy_for(host: str, configured: str) -> Proxy | None:
    """The proxy for a connection to `host`: `configured`, or what the environment says.

    LATTICA_PROXY comes before HTTPS_PROXY, which heeds NO_PROXY and is not used for this machine.

    Raises:
        AddressError: the proxy is told wrongly.
    """
    url = configured or os.environ.get(VARIABLE, "")
    if not url and not text.is_loopback(host) and host != "localhost":
        url = urllib.request.getproxies_environment().get("https", "")
        if url and urllib.request.proxy_bypass(host):
            url = ""
    return Proxy.parse(url) if url else None


class ConnectWrapping:
    """Asks a proxy to connect onwards; then it is not there any more."""

    def __init__(self, proxy: Proxy, target: str) -> None:
        """`target` is `host:port`."""
        self._proxy = proxy
        self._target = target
        self._head = b""
        self.is_ready = False

    def begin(self) -> bytes:
        lines = [f"CONNECT {self._target} HTTP/1.1", f"Host: {self._target}"]
        if self._proxy.credentials:
            secret = base64.b64encode(self._proxy.credentials.encode()).decode()
            lines.append(f"Proxy-Authorization: Basic {secret}")
        return "\r\n".join((*lines, "", "")).encode()

    def received(self, data: bytes) -> tuple[bytes, bytes]:
        if self.is_ready:
            return data, b""
        self._head += data
        head, end, rest = self._head.partition(_END)
        while end and 100 <= (_status(head) or 0) < 200:  # there is more to come: RFC 9110 §15.2
            self._head = rest
            head, end, rest = self._head.partition(_END)
        if not end:
            if len(self._head) > MAX_HEAD:
                raise WrappingError(f"the proxy {self._proxy} answers without end; is it one?")
            return b"", b""
        status = _status(head)
        if status is None:
            raise WrappingError(f"the proxy {self._proxy} does not speak HTTP; is it one?")
        if not 200 <= status < 300:
            cure = _CURES.get(status, "ask whoever runs it")
            raise WrappingError(f"the proxy {self._proxy} answered {status}: {cure}")
        self._head = b""
        self.is_ready = True
        return rest, b""

    def seal(self, contents: bytes) -> bytes:
        return contents


def _status(head: bytes) -> int | None:
    version, _, rest = head.split(b"\r\n", 1)[0].partition(b" ")
    number = rest[:3]
    if not version.startswith(b"HTTP/1.") or not number.isdigit() or len(number) != 3:
        return None
    return int(number)
