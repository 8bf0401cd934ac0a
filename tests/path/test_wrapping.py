"""TLS and proxies around frames: any chunking, hostile ends, and errors that say what to do."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.errors import AddressError, PathError
from lattica.path import addresses as text
from lattica.path.proxy import MAX_HEAD, ConnectWrapping, Proxy, proxy_for
from lattica.path.tls import TlsPath, _client_context, _server_context
from lattica.path.wrapping import Chain, TlsWrapping, WrappingError

CLIENT, SERVER = _client_context(), _server_context()
PROXY = Proxy("192.0.2.9", 3128, "me:secret word")
GRANTED = b"HTTP/1.1 200 Connected\r\nVia: x\r\n\r\n"


def talk(client: Chain, server: Chain, sizes: list[int]) -> None:
    """Carry bytes between two ends in pieces of the given sizes, until both are ready."""
    up, down = client.begin(), server.begin()
    turns = iter([*sizes, *[65_536] * 100])
    while not (client.is_ready and server.is_ready):
        size = next(turns)
        piece, up = up[:size], up[size:]
        down += server.received(piece)[1] if piece else b""
        piece, down = down[:size], down[size:]
        up += client.received(piece)[1] if piece else b""
    assert not up or server.received(up) == (b"", b"")
    if down:
        assert client.received(down)[0] == b""


@given(sizes=st.lists(st.integers(1, 3000), max_size=20), data=st.binary(min_size=1, max_size=5000))
def test_what_one_end_seals_the_other_gets_however_it_is_cut(sizes: list[int], data: bytes) -> None:
    client = Chain([TlsWrapping(CLIENT, is_server=False)])
    server = Chain([TlsWrapping(SERVER, is_server=True)])
    talk(client, server, sizes)
    sealed, got = client.seal(data), b""
    assert data not in sealed or len(data) < 4
    for size in [*sizes, len(sealed)]:
        piece, sealed = sealed[:size], sealed[size:]
        got += server.received(piece)[0] if piece else b""
    assert got == data


def test_it_is_tls_1_3_with_the_alpn_of_the_web_and_a_name_if_there_is_one() -> None:
    hello = TlsWrapping(CLIENT, is_server=False, name="mesh.example.org").begin()
    assert hello[0] == 22  # a handshake record
    assert b"mesh.example.org" in hello
    assert b"http/1.1" in hello
    server = TlsWrapping(SERVER, is_server=True)
    talk(Chain([TlsWrapping(CLIENT, is_server=False)]), Chain([server]), [])
    assert server._tls.version() == "TLSv1.3"
    assert server._tls.selected_alpn_protocol() == "http/1.1"


def test_older_tls_is_refused() -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    hello = TlsWrapping(old, is_server=False).begin()
    with pytest.raises(WrappingError, match="no TLS there"):
        TlsWrapping(SERVER, is_server=True).received(hello)


@given(garbage=st.binary(min_size=6, max_size=300))
def test_garbage_is_an_error_or_waits_for_more(garbage: bytes) -> None:
    server = TlsWrapping(SERVER, is_server=True)
    try:
        contents, _ = server.received(garbage)
    except WrappingError:
        return
    assert contents == b""
    assert not server.is_ready


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_a_proxy_is_asked_first_and_then_out_of_the_way(step: int) -> None:
    server = Chain([TlsWrapping(SERVER, is_server=True)])
    client = Chain(
        [ConnectWrapping(PROXY, "198.51.100.7:443"), TlsWrapping(CLIENT, is_server=False)]
    )
    asked = client.begin()
    assert asked.startswith(b"CONNECT 198.51.100.7:443 HTTP/1.1\r\nHost: 198.51.100.7:443\r\n")
    assert b"Proxy-Authorization: Basic bWU6c2VjcmV0IHdvcmQ=\r\n" in asked
    sending = b""
    for start in range(0, len(GRANTED), step):
        sending += client.received(GRANTED[start : start + step])[1]
    assert sending[0] == 22
    answer = server.received(sending)[1]
    server.received(client.received(answer)[1])
    assert client.is_ready
    assert server.is_ready
    assert server.received(client.seal(b"hello"))[0] == b"hello"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 407 Who?\r\n\r\n", "answered 407: give it credentials"),
        (b"HTTP/1.0 403 No\r\n\r\n", "answered 403: it does not allow"),
        (b"HTTP/1.1 502 No\r\n\r\n", "does not reach the peer"),
        (b"HTTP/1.1 999 No\r\n\r\n", "answered 999"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 20\r\n\r\n", "does not speak HTTP"),
        (b"x" * (MAX_HEAD + 1), "answers without end"),
    ],
)
def test_a_proxy_that_says_no_is_told_by_its_address_and_never_the_password(
    answer: bytes, said: str
) -> None:
    wrapping = ConnectWrapping(PROXY, "198.51.100.7:443")
    with pytest.raises(WrappingError, match=said) as caught:
        wrapping.received(answer)
    assert "192.0.2.9:3128" in str(caught.value)
    assert "secret" not in str(caught.value) + repr(PROXY) + str(PROXY)


def test_a_proxys_interim_answer_is_not_its_word() -> None:
    wrapping = ConnectWrapping(PROXY, "198.51.100.7:443")
    assert wrapping.received(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 H\r\n\r\n") == (b"", b"")
    assert not wrapping.is_ready
    assert wrapping.received(GRANTED + b"rest") == (b"rest", b"")
    assert wrapping.is_ready


@pytest.mark.parametrize(
    "address",
    [
        "[x HTTP/1.1\r\nX-Evil: 1\r\n\r\n]:443",
        "[2606:4700::1% HTTP/1.1\r\nX-Evil: 1]:443",
        "a b:443",
        "a\x00b:443",
    ],
)
def test_what_is_no_host_gets_into_no_request(address: str) -> None:
    with pytest.raises(AddressError):
        text.split(address)


def test_without_room_for_its_certificate_a_listener_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(**_: object) -> tuple[int, str]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lattica.path.tls.tempfile.mkstemp", full)
    with pytest.raises(PathError, match="No space left"):
        TlsPath.bind("127.0.0.1:0")


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("LATTICA_PROXY", "https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_which_proxy_is_used(clean: pytest.MonkeyPatch) -> None:
    assert proxy_for("198.51.100.7", "") is None
    clean.setenv("https_proxy", "http://proxy.example:8080")
    clean.setenv("no_proxy", "intern.example")
    assert proxy_for("198.51.100.7", "") == Proxy("proxy.example", 8080)
    assert proxy_for("127.0.0.1", "") is None
    assert proxy_for("::1", "") is None
    assert proxy_for("a.intern.example", "") is None
    clean.setenv("LATTICA_PROXY", "http://me:a%20b@own.example:1")
    assert proxy_for("127.0.0.1", "") == Proxy("own.example", 1, "me:a b")
    assert proxy_for("198.51.100.7", "other.example:2") == Proxy("other.example", 2)


@pytest.mark.parametrize("url", ["https://x:1", "socks5://x:1", "http://", "http://x:99999", "x:y"])
def test_a_proxy_told_wrongly_is_an_error_that_says_the_form(url: str) -> None:
    with pytest.raises(AddressError, match="http://HOST:PORT"):
        Proxy.parse(url)
