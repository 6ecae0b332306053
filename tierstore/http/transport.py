"""Requests: from the caller's memory to the caller's memory, and every failure in plain words."""

from __future__ import annotations

import http.client
import logging
import os
import ssl
import threading
import urllib.request
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, NoReturn
from urllib.parse import urlsplit

import urllib3
from urllib3.exceptions import EmptyPoolError, HTTPError, ProxyError
from urllib3.util import make_headers, parse_url

from tierstore.errors import (
    AccessError,
    ConfigError,
    DeadlineError,
    StorageError,
    TierstoreError,
    TruncatedFileError,
    UnreachableError,
)
from tierstore.http.clock import CLOCK, LUMP, Clock, Deadlines
from tierstore.http.connection import Body, Pool, TLSPool
from tierstore.http.head import BROKEN
from tierstore.http.masking import without_echo
from tierstore.http.response import Answer
from tierstore.logs import logger
from tierstore.regular import open_regular
from tierstore.waiting import moved, on

_log = logger(__name__)

ERROR_BODY = 64 * 1024
"""Bytes of an error answer that are kept; what follows is not worth waiting for."""
WHOLE_BODY = 16 * 1024 * 1024
"""Bytes of an answer that nobody has given memory for; a page of a listing has one, or two."""

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Response:
    """An answer.

    Attributes:
        status: the HTTP status.
        headers: looked up without regard to case.
        body: what was not received into the caller's memory; of an error, its first 64 KiB, without
            the secrets of the request.
        told: the length that its head tells, also of an answer to HEAD; None if it tells none.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)  # cookies, and places that hold tokens
    body: bytes = field(repr=False)
    told: int | None = None


class _Route(NamedTuple):
    """How a server is reached.

    Attributes:
        pool: the connections to it, or to a proxy.
        host: what requests say whom they are for.
        proxied: a proxy has to be told the whole URL.
        headers: what the proxy wants beside.
    """

    pool: Pool | TLSPool
    host: str
    proxied: bool
    headers: Mapping[str, str]


class Transport:
    """Connections to any number of servers, shared by all threads of a backend.

    Args:
        pool_size: connections to one server at most; a request waits for a free one.
        deadlines: of every request.
        ca_bundle: a file of trusted certificates; None trusts what the system trusts.
        verify: False accepts any certificate.
        lump: bytes of a large body to be woken for: the more, the less CPU. A server that sends
            only what its peer has acknowledged waits 40 ms for each lump of over 64 KiB.

    Raises:
        ConfigError: `ca_bundle` cannot be read.

    Proxies come from the environment (`HTTP_PROXY`, `HTTPS_PROXY`, `NO_PROXY`), which is read when
    a server is first met.
    """

    def __init__(
        self,
        *,
        pool_size: int,
        deadlines: Deadlines | None = None,
        ca_bundle: str | None = None,
        verify: bool = True,
        lump: int = LUMP,
    ) -> None:
        self._lump = lump
        self.deadlines = deadlines or Deadlines()
        self._pool_size = pool_size
        self._tls = _trust(ca_bundle, verify=verify)
        self._lock = threading.Lock()
        self._managers: dict[str, urllib3.PoolManager] = {}
        self._routes: dict[tuple[str, str], _Route] = {}
        self._proxies: dict[tuple[str, str], str] = {}  # reading the environment takes 0.2 ms
        self._pid = os.getpid()
        self._closed = False

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: Body | None = None,
        into: Sequence[memoryview] | None = None,
        ok: Container[int] = range(200, 300),
        total: float | None = None,
    ) -> Response:
        """Send one request and receive its answer.

        Args:
            method: the HTTP method.
            url: absolute and percent-encoded; its query never appears in an error.
            headers: all but Host and, unless the body comes in pieces, Content-Length.
            body: sent from where it is.
            into: filled exactly, one behind the other, with the body of an answer whose status is
                in `ok`.
            ok: the statuses that mean success. Any other is returned too, with what the server
                says in `Response.body`, and `into` is left alone.
            total: seconds for this request, if not those of the transport's deadlines.

        Raises:
            UnreachableError: no connection, or it was lost before all bytes had moved.
            DeadlineError: a deadline passed.
            TruncatedFileError: the server holds fewer, or more, bytes than `into` asks for.
            AccessError: the server's certificate is not trusted.
            StorageError: the answer can be read in no way, or in two, or is too long.
        """
        deadlines = self.deadlines if total is None else replace(self.deadlines, total=total)
        clock = Clock(deadlines, self._lump)
        token = CLOCK.set(clock)
        try:
            route = self._route(url)
            if route.proxied:
                target, headers = url.partition("#")[0], {**headers, **route.headers}
            else:
                target = "/" + url.partition("://")[2].partition("/")[2]
            with on(_server(url), method, most=deadlines.total):
                given = _over(route, deadlines, (method, target, headers, body), (into, ok))
            if given.status not in ok:
                given = replace(given, body=without_echo(given.body, url, headers))
            if _log.isEnabledFor(logging.DEBUG):
                _log.debug("%s %s: %d", method, _place(url), given.status)
            return given
        except TierstoreError as error:
            if isinstance(error, StorageError) and not error.url:
                error.url = _place(url)
            raise
        except (HTTPError, http.client.HTTPException, OSError) as error:
            _explain(error, clock, method, _place(url))
        finally:
            CLOCK.reset(token)

    def _route(self, url: str) -> _Route:
        scheme, _, rest = url.partition("://")
        server = rest.partition("/")[0]
        route = self._routes.get((scheme, server)) if self._pid == os.getpid() else None
        if route is None or route.pool.pool is None:  # evicted, and closed, where servers are many
            try:
                asked = parse_url(f"{scheme}://{server}")
            except HTTPError:
                hint = "check the host and the port"
                raise StorageError("this is no address", hint=hint) from None
            manager = self._manager(url)
            pool = manager.connection_from_url(asked.url)
            if not isinstance(pool, Pool | TLSPool):
                raise StorageError(f"no requests can be sent by {scheme}")
            host = asked.host or ""
            if asked.port not in (None, _PORTS.get(scheme)):
                host = f"{host}:{asked.port}"
            proxied = manager.proxy is not None and scheme == "http"
            route = _Route(pool, host, proxied, pool.proxy_headers if proxied else {})
            self._routes[scheme, server] = route
        return route

    def close(self) -> None:
        """Close all idle connections; one in use is closed when its request ends. Idempotent."""
        with self._lock:
            self._closed = True
            managers, self._managers = self._managers, {}
            self._routes = {}
        for manager in managers.values():
            manager.clear()

    def _proxy(self, scheme: str, server: str) -> str:
        if (scheme, server) not in self._proxies:
            bypass = urllib.request.proxy_bypass(server)
            found = "" if bypass else urllib.request.getproxies().get(scheme, "")
            self._proxies[scheme, server] = found
        return self._proxies[scheme, server]

    def _manager(self, url: str) -> urllib3.PoolManager:
        parsed = urlsplit(url)
        proxy = self._proxy(parsed.scheme, parsed.netloc.rpartition("@")[2])
        with self._lock:
            if self._closed:
                raise StorageError("the transport is closed", url=_place(url))
            if self._pid != os.getpid():
                # After a fork the sockets are the parent's: two may not talk on one.
                self._pid, self._managers, self._routes = os.getpid(), {}, {}
            if proxy not in self._managers:
                self._managers[proxy] = self._new_manager(proxy)
            return self._managers[proxy]

    def _new_manager(self, proxy: str) -> urllib3.PoolManager:
        manager: urllib3.PoolManager
        if proxy:
            try:
                parsed = parse_url(proxy if "://" in proxy else f"http://{proxy}")
            except HTTPError:
                parsed = parse_url("")
            if parsed.scheme not in ("http", "https") or not parsed.host:
                text = "the proxy that the environment names is no http or https URL"
                raise ConfigError(text, hint="correct HTTP_PROXY, HTTPS_PROXY, or NO_PROXY")
            secret = make_headers(proxy_basic_auth=parsed.auth) if parsed.auth else None
            manager = urllib3.ProxyManager(
                parsed._replace(auth=None).url,
                num_pools=64,
                proxy_headers=secret,
                maxsize=self._pool_size,
                block=True,
                ssl_context=self._tls,
            )
        else:
            manager = urllib3.PoolManager(
                64, maxsize=self._pool_size, block=True, ssl_context=self._tls
            )
        manager.pool_classes_by_scheme = {"http": Pool, "https": TLSPool}
        return manager


def _trust(ca_bundle: str | None, *, verify: bool) -> ssl.SSLContext:
    try:
        if ca_bundle is not None:
            os.close(open_regular(ca_bundle))  # OpenSSL would wait for a named pipe
        context = ssl.create_default_context(cafile=ca_bundle)
    except OSError as error:  # an SSLError, of a file without certificates, is one too
        text = f"ca_bundle {ca_bundle!r} holds no certificates: {error.strerror or error}"
        raise ConfigError(text, hint="name a file of PEM certificates") from error
    if not verify:
        _log.warning("certificates are not verified: anyone in between can read and change")
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _over(
    route: _Route,
    deadlines: Deadlines,
    request: tuple[str, str, Mapping[str, str], Body | None],
    wanted: tuple[Sequence[memoryview] | None, Container[int]],
) -> Response:
    """Send a request over a connection of the pool, receive its answer, and give it back."""
    pool = route.pool
    connection, answer = pool.lend(deadlines.total), None
    try:
        if connection.sock is None:
            connection.timeout = min(deadlines.connect, deadlines.total)
            pool.open(connection)
        answer = _taken(connection.exchange(route.host, *request), *wanted)
        return answer
    finally:
        connection.settle(clean=answer is not None and not CLOCK.get().body_cut)
        pool.give_back(connection)


def _taken(answer: Answer, into: Sequence[memoryview] | None, ok: Container[int]) -> Response:
    status, headers, told = answer.status, answer.headers, answer.told
    if status not in ok:
        try:
            said = answer.read(ERROR_BODY)
        except (http.client.HTTPException, OSError, StorageError):
            said = b""  # the status is what matters
        return Response(status, headers, said, told)
    if CLOCK.get().body_cut:
        raise UnreachableError(f"answered {status} before the body was sent")
    if into is None:
        return Response(status, headers, _whole(answer), told)
    wanted = sum([view.nbytes for view in into])
    if answer.length is not None and answer.length != wanted:
        raise TruncatedFileError(
            f"the server sends {answer.length} bytes where {wanted} were asked for"
        )
    measured = answer.length is not None
    got = sum([_fill(answer, view.cast("B")) for view in into])
    if got < wanted:
        raise UnreachableError(f"the connection was lost after {got} of {wanted} bytes")
    if not measured and answer.readinto(bytearray(1)):
        raise TruncatedFileError(f"the server sends more than the {wanted} bytes asked for")
    return Response(status, headers, b"", told)


def _whole(answer: Answer) -> bytes:
    """Return a body that nobody has given memory for."""
    length = answer.length or 0
    body = answer.read(WHOLE_BODY + 1) if length <= WHOLE_BODY else b""
    if length > WHOLE_BODY or len(body) > WHOLE_BODY:
        raise StorageError(f"the answer has over {WHOLE_BODY} bytes, which none has", hint=BROKEN)
    if len(body) < length:
        raise UnreachableError(f"the connection was lost after {len(body)} of {length} bytes")
    return body


def _fill(answer: Answer, view: memoryview) -> int:
    """Receive until the buffer is full or the connection ends; return the bytes received."""
    got = 0
    while got < view.nbytes and (more := answer.readinto(view[got:])):  # a chunk or less at a time
        got += more
        moved(surely=True)
    return got


def _explain(error: Exception, clock: Clock, method: str, place: str) -> NoReturn:
    """Raise what went wrong in this project's words; only host and path are named."""
    causes = [error, *(arg for arg in error.args if isinstance(arg, Exception))]
    if error.__context__ is not None:
        causes.append(error.__context__)  # type: ignore[arg-type]
    deadlines, server = clock.deadlines, place.partition("://")[2].partition("/")[0]
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise AccessError(
                f"the server's certificate is not trusted: {cause.verify_message}",
                url=place,
                hint="give the authority's certificate as ca_bundle",
            ) from error
    if isinstance(error, EmptyPoolError):
        text = f"{method}: no connection became free in {deadlines.total:g} s"
        raise DeadlineError(text, url=place, hint="raise the concurrency") from error
    if isinstance(error, urllib3.exceptions.ConnectTimeoutError) and not isinstance(
        error, urllib3.exceptions.NewConnectionError
    ):
        text = f"{method}: no connection to {server} in {deadlines.connect:g} s"
        raise DeadlineError(text, url=place, hint="check the address and the network") from error
    if any(isinstance(c, TimeoutError | urllib3.exceptions.ReadTimeoutError) for c in causes):
        over = clock.left() <= 0
        text = (
            f"{method}: not done in {deadlines.total:g} s"
            if over
            else f"{method}: no byte moved for {deadlines.stall:g} s"
        )
        raise DeadlineError(text, url=place) from error
    root = causes[-1]
    what = getattr(root, "strerror", None) or type(root).__name__
    by = " through the proxy" if isinstance(error, ProxyError) else ""
    hint = BROKEN if isinstance(error, http.client.BadStatusLine | http.client.LineTooLong) else ""
    text = f"{method}: no answer from {server}{by}: {what}"
    raise UnreachableError(text, url=place, hint=hint) from error


def _server(url: str) -> str:
    """Return scheme and host of a URL."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0].rpartition('@')[2]}"


def _place(url: str) -> str:
    """Return `url` without what may be secret: user, password, query."""
    scheme, _, rest = url.partition("#")[0].partition("?")[0].partition("://")
    server, slash, path = rest.partition("/")
    return f"{scheme}://{server.rpartition('@')[2]}{slash}{path}"
