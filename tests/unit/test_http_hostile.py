"""Answers that no honest server gives: each is an error of ours, at once and in little memory."""

from __future__ import annotations

import contextlib
import functools
import socket
import traceback
import tracemalloc
from collections.abc import Callable, Iterator

import pytest

from tests.loopback import answer, read_request, serving, wait_gone
from tests.patience import PATIENCE
from tierstore.errors import (
    ConfigError,
    StorageError,
    TransientError,
    TruncatedFileError,
    UnreachableError,
)
from tierstore.http import Deadlines, Response, Transport
from tierstore.http import transport as transport_module
from tierstore.http.transport import WHOLE_BODY

pytestmark = pytest.mark.usefixtures("no_leaks")

PATIENT = Deadlines(connect=PATIENCE, stall=PATIENCE, total=PATIENCE)
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(autouse=True, scope="module")
def _one_trust() -> Iterator[None]:
    """Read the system's certificates once: it takes 30 ms."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transport_module, "_trust", functools.cache(transport_module._trust))
        yield


def ask(said: bytes, *, method: str = "GET", into: int = -1, ends: bool = True) -> Response:
    """Return what a server is understood to say; one that does not end holds the connection."""

    def serve(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(said)
        if not ends:
            wait_gone(sock)

    views = [memoryview(bytearray(into))] if into >= 0 else None
    transport = Transport(pool_size=1, deadlines=PATIENT)
    with contextlib.closing(transport), serving(serve) as url:
        try:
            return transport.request(method, f"{url}/k?delegation=s3cret", headers={}, into=views)
        finally:
            transport.close()


def headed(*lines: bytes, body: bytes = b"") -> bytes:
    return OK + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


BROKEN: dict[str, bytes] = {
    "superscript": headed("Content-Length: ²".encode("latin-1")),
    "digits of others": headed("Content-Length: \u0661".encode()),
    "endless": headed(b"Content-Length: " + b"9" * 5000),
    "negative": headed(b"Content-Length: -1"),
    "signed": headed(b"Content-Length: +1", body=b"x"),
    "underscored": headed(b"Content-Length: 1_0", body=b"x" * 10),
    "hexadecimal": headed(b"Content-Length: 0x1", body=b"x"),
    "empty": headed(b"Content-Length:"),
    "two lengths": headed(b"Content-Length: 1", b"Content-Length: 2", body=b"xx"),
    "too large": headed(b"Content-Length: 60000000000"),
    "just too large": headed(b"Content-Length: %d" % (WHOLE_BODY + 1)),
    "gzip": headed(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"),
    "chunked twice": headed(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    "identity": headed(b"Transfer-Encoding: identity", body=b"x"),
    "no size": CHUNKED + b"\r\nx",
    "negative size": CHUNKED + b"-1\r\nx",
    "prefixed size": CHUNKED + b"0x1\r\nx\r\n0\r\n\r\n",
    "underscored size": CHUNKED + b"1_0\r\nx",
    "size of words": CHUNKED + b"many\r\nx",
    "huge size": CHUNKED + b"f" * 400 + b"\r\nx",
    "chunk too long": CHUNKED + b"1\r\nxyz\r\n0\r\n\r\n",
    "endless trailers": CHUNKED + b"0\r\n" + b"A: b\r\n" * 5000,
    "no colon": headed(b"Content-Length: 1", b"nonsense", body=b"x"),
    "blank before colon": headed(b"Content-Length : 1", body=b"x"),
    "folded": headed(b"A: b", b" c", b"Content-Length: 1", body=b"x"),
    "no name": headed(b": b", b"Content-Length: 1", body=b"x"),
    "nul": headed(b"A: \0", b"Content-Length: 1", body=b"x"),
    "escape": headed(b"A: \x1b[2J", b"Content-Length: 1", body=b"x"),
    "return alone": headed(b"A: b\rContent-Length: 5", b"Content-Length: 1", body=b"x"),
    "switching": b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    "interim without end": b"HTTP/1.1 103 Early Hints\r\n\r\n" * 5000,
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("ends", [True, False], ids=["leaves", "stays"])
def test_what_cannot_be_read_is_said_at_once(name: str, *, ends: bool) -> None:
    """Nobody waits for more of it, and nothing repeats it: it would come again."""
    with pytest.raises(StorageError) as caught:
        ask(BROKEN[name], ends=ends)
    assert not isinstance(caught.value, TransientError)
    assert "see what answers at this address" in caught.value.hint
    assert "/k" in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "said",
    [
        "HTTP/1.1 ²²² OK\r\n\r\n".encode("latin-1"),
        b"HTTP/1.1 099 No\r\n\r\n",
        b"HTTP/1.1 600 No\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 20\r\n\r\n",
        b"HTTP/1.1200 OK\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.x 200 OK\r\n\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46",
        b"\x1b]0;owned\x07\r\n\r\n",
    ],
)
def test_what_is_no_http(said: bytes) -> None:
    with pytest.raises(UnreachableError, match="BadStatusLine") as caught:
        ask(said)
    assert "see what answers" in caught.value.hint
    assert str(caught.value.__cause__).isprintable()


@pytest.mark.parametrize("ends", [True, False])
def test_equal_lengths_are_one(*, ends: bool) -> None:
    """A stall once: two equal headers of one length hid the body's end."""
    for said in ([b"Content-Length: 4"] * 2, [b"Content-Length: 4, 4"]):
        got = ask(headed(*said, body=b"body"), ends=ends)
        assert (got.body, got.told) == (b"body", 4)


def test_a_head_tells_a_length_or_nothing() -> None:
    assert ask(headed(b"Content-Length: 0"), method="HEAD").told == 0
    assert ask(headed(), method="HEAD").told is None
    with pytest.raises(StorageError, match="bytes long, it says"):
        ask(BROKEN["two lengths"], method="HEAD")


def test_a_body_without_a_length_is_no_longer_than_memory() -> None:
    def flood(begin: bytes, piece: bytes) -> Callable[[socket.socket], None]:
        def serve(sock: socket.socket) -> None:
            read_request(sock)
            sock.sendall(begin)
            while True:
                sock.sendall(piece)

        return serve

    chunk = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
    for begin, piece in ((CHUNKED, chunk), (OK + b"\r\n", bytes(1 << 20))):
        transport = Transport(pool_size=1, deadlines=PATIENT)
        with contextlib.closing(transport), serving(flood(begin, piece)) as url:
            tracemalloc.start()
            with pytest.raises(StorageError, match=f"over {WHOLE_BODY} bytes"):
                transport.request("GET", url, headers={})
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            transport.close()
        assert peak < 4 * WHOLE_BODY


@pytest.mark.parametrize(
    "said", [headed(body=b"four5"), CHUNKED + b"4\r\nfour\r\n1\r\n5\r\n0\r\n\r\n"]
)
def test_more_than_was_asked_for_is_another_object(said: bytes) -> None:
    with pytest.raises(TruncatedFileError, match="more than the 4 bytes"):
        ask(said, into=4)
    assert ask(said, into=5).status == 200


@pytest.mark.parametrize("body", [b"4\r\nfour\r\n", b"4\r\nfo", b"4\r\nfour\r\n0\r\n", b""])
def test_chunks_that_are_cut_off(body: bytes) -> None:
    for into in (-1, 4):
        with pytest.raises(UnreachableError):
            ask(CHUNKED + body, into=into)


def test_chunks_of_every_kind() -> None:
    body = b'1;name="a;b"\r\na\r\n0002 \r\nbc\r\n' + b"".join(b"1\r\nd\r\n" for _ in range(5000))
    got = ask(CHUNKED + body + b"000\r\nX-Trailer: yes\r\n\r\n", ends=False)
    assert got.body == b"abc" + b"d" * 5000


def test_chunks_hide_no_second_answer() -> None:
    """With both, something in between may have read a length: nothing may follow there."""
    opened = []

    def serve(sock: socket.socket) -> None:
        opened.append(sock)
        with contextlib.suppress(ConnectionResetError):
            for _ in range(2):
                read_request(sock)
                sock.sendall(headed(b"Transfer-Encoding: chunked", b"Content-Length: 3"))
                sock.sendall(b"1\r\nx\r\n0\r\n\r\n")

    transport = Transport(pool_size=1, deadlines=PATIENT)
    with serving(serve) as url:
        assert [transport.request("GET", url, headers={}).body for _ in range(2)] == [b"x"] * 2
        transport.close()
    assert len(opened) == 2


def test_an_error_that_cannot_be_read_is_still_that_error() -> None:
    said = b"HTTP/1.1 503 Slow Down\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n"
    transport = Transport(pool_size=1, deadlines=PATIENT)

    def serve(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(said)

    with contextlib.closing(transport), serving(serve) as url:
        assert transport.request("GET", url, headers={}).status == 503


def test_a_server_that_repeats_the_request_tells_no_secret() -> None:
    token = "FwoGZXIvYXdzEJr//////////wEaDKx+Zz=="
    cookie = 'hadoop.auth="u=alice&p=alice&t=kerberos&e=1&s=c2lnbmF0dXJl+/x="'
    proof = "AWS4-HMAC-SHA256 Credential=AK/1/us/s3/aws4_request, SignedHeaders=h, Signature=0a1b2c"
    headers = {"Cookie": cookie, "Authorization": proof, "x-amz-security-token": token}
    secrets = [token, "c2lnbmF0dXJl", "0a1b2c", "KAAKSm9i", "KAAKSm9i-x_Y"]

    def serve(sock: socket.socket) -> None:
        head, _ = read_request(sock)
        escaped = head.replace(b"/", b"\\/") + head.replace(b"/", b"%2F") + token[:20].encode()
        sock.sendall(answer(head + escaped, "403 Forbidden"))

    transport = Transport(pool_size=1, deadlines=PATIENT)
    with serving(serve) as url:
        got = transport.request("GET", f"{url}/k?delegation=KAAKSm9i-x_Y&op=A", headers=headers)
        transport.close()
    text = got.body.decode()
    assert [secret for secret in (*secrets, token[:20]) if secret in text + repr(got)] == []
    assert "op=A" in text
    assert "SignedHeaders=h" in text


@pytest.mark.parametrize("url", ["http://a b/k", "http://[bad/k", "http://host:99999/k"])
def test_a_url_that_is_none_is_not_repeated(url: str) -> None:
    transport, secret = Transport(pool_size=1, deadlines=PATIENT), "hunter" + str(2)
    with contextlib.closing(transport), pytest.raises(StorageError, match="no address") as caught:
        transport.request("GET", f"{url}?delegation={secret}", headers={})
    assert secret not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("proxy", ["socks5://me:hunter2@p:1", "http://me:hunter2@[bad", "://"])
def test_a_proxy_that_is_none_is_not_repeated(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("HTTP_PROXY", proxy), ("NO_PROXY", ""), ("no_proxy", "")):
        monkeypatch.setenv(name, value)
    transport = Transport(pool_size=1, deadlines=PATIENT)
    with contextlib.closing(transport), pytest.raises(ConfigError, match="proxy") as caught:
        transport.request("GET", "http://h/k", headers={})
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))
