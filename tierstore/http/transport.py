"""Requests: from the caller's memory to the caller's memory, and every failure in plain words."""

from __future__ import annotations

import http.client
import logging
import os
import ssl
import threading
import urllib.request
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn
from urllib.parse import urlsplit

import urllib3
from urllib3.exceptions import EmptyPoolError, HTTPError, ProxyError
from urllib3.util import Timeout, make_headers, parse_url

from tierstore.blocks import Buffer
from tierstore.errors import (
    AccessError,
    ConfigError,
    DeadlineError,
    StorageError,
    TierstoreError,
    TruncatedFileError,
    UnreachableError,
)
from tierstore.http.answer import Answer
from tierstore.http.clock import CLOCK, LUMP, Clock, Deadlines
from tierstore.http.connection import Connection, Pool, TLSPool
from tierstore.http.head import AGENT
from tierstore.waiting import moved, on

_log = logging.getLogger(__name__)

ERROR_BODY = 64 * 1024
"""Bytes of an error answer that are kept; what follows is not worth waiting for."""


@dataclass(frozen=True, slots=True)
class Response:
    """An answer.

    Attributes:
        status: the HTTP status.
        headers: looked up without regard to case.
        body: what was not received into the caller's memory; of an error, its first 64 KiB.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


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
        self._routes: dict[tuple[str, str], Pool | TLSPool] = {}
        self._proxies: dict[tuple[str, str], str] = {}  # reading the environment takes 0.2 ms
        self._pid = os.getpid()
        self._closed = False

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: Buffer | None = None,
        into: Sequence[memoryview] | None = None,
        ok: Container[int] = range(200, 300),
        total: float | None = None,
    ) -> Response:
        """Send one request and receive its answer.

        Args:
            method: the HTTP method.
            url: absolute and percent-encoded; its query never appears in an error.
            headers: all but Host and Content-Length.
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
        """
        deadlines = self.deadlines if total is None else replace(self.deadlines, total=total)
        clock = Clock(deadlines, self._lump)
        token = CLOCK.set(clock)
        answer: urllib3.BaseHTTPResponse | None = None
        try:
            with on(_server(url), method, most=deadlines.total):
                plain = body is None or isinstance(body, Buffer)
                if plain and (route := self._route(url)):
                    target = "/" + url.partition("://")[2].partition("/")[2]
                    given = _over(route, deadlines, (method, target, headers, body), (into, ok))
                else:
                    answer = self._by_urllib3(method, url, headers, body, deadlines)
                    given = _taken(_raw(answer), answer.status, answer.headers, into, ok)
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
            if answer is not None:
                _release(answer, clock)
            CLOCK.reset(token)

    def _by_urllib3(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Buffer | None,
        deadlines: Deadlines,
    ) -> urllib3.BaseHTTPResponse:
        """Have urllib3 ask a proxy, or send a body piece by piece."""
        return self._manager(url).urlopen(
            method,
            url,
            redirect=False,
            retries=False,
            body=body,
            headers={**headers, "User-Agent": AGENT},
            preload_content=False,
            timeout=Timeout(
                connect=min(deadlines.connect, deadlines.total),
                read=deadlines.stall,
            ),
            pool_timeout=deadlines.total,
        )

    def _route(self, url: str) -> Pool | TLSPool | None:
        """Return the pool of a server that is reached directly."""
        scheme, _, rest = url.partition("://")
        server = rest.partition("/")[0]
        pool = self._routes.get((scheme, server)) if self._pid == os.getpid() else None
        if pool is None or pool.pool is None:  # evicted, and closed, where servers are many
            manager = self._manager(url)
            if manager.proxy is not None:
                return None
            found = manager.connection_from_url(url)
            pool = found if isinstance(found, Pool | TLSPool) else None
            if pool is not None:
                self._routes[scheme, server] = pool
        return pool

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
            parsed = parse_url(proxy if "://" in proxy else f"http://{proxy}")
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
    pool: Pool | TLSPool,
    deadlines: Deadlines,
    request: tuple[str, str, Mapping[str, str], Buffer | None],
    wanted: tuple[Sequence[memoryview] | None, Container[int]],
) -> Response:
    """Send a request over a connection of the pool, receive its answer, and give it back."""
    connection, answer = pool.lend(deadlines.total), None
    try:
        if connection.sock is None:
            connection.timeout = min(deadlines.connect, deadlines.total)
            connection.connect()
        raw = connection.exchange(*request)
        answer = _taken(raw, raw.status, raw.headers, *wanted)
        return answer
    finally:
        connection.settle(clean=answer is not None and not CLOCK.get().body_cut)
        pool.give_back(connection)


def _raw(answer: urllib3.BaseHTTPResponse) -> http.client.HTTPResponse | Answer:
    connection = answer.connection
    if not isinstance(connection, Connection) or connection.raw is None:
        raise UnreachableError("the answer has no connection")
    return connection.raw


def _taken(
    raw: http.client.HTTPResponse | Answer,
    status: int,
    headers: Mapping[str, str],
    into: Sequence[memoryview] | None,
    ok: Container[int],
) -> Response:
    if status not in ok:
        try:
            said = raw.read(ERROR_BODY)
        except (http.client.HTTPException, OSError):
            said = b""  # the status is what matters
        return Response(status, headers, said)
    if CLOCK.get().body_cut:
        raise UnreachableError(f"answered {status} before the body was sent")
    if into is None:
        return Response(status, headers, raw.read())
    wanted = sum([view.nbytes for view in into])
    if raw.length is not None and raw.length != wanted:
        raise TruncatedFileError(
            f"the server sends {raw.length} bytes where {wanted} were asked for"
        )
    got = sum([_fill(raw, view.cast("B")) for view in into])
    if got < wanted:
        raise UnreachableError(f"the connection was lost after {got} of {wanted} bytes")
    return Response(status, headers, b"")


def _fill(raw: http.client.HTTPResponse | Answer, view: memoryview) -> int:
    """Receive until the buffer is full or the connection ends; return the bytes received."""
    got = 0
    while got < view.nbytes and (more := raw.readinto(view[got:])):  # a chunk or less at a time
        got += more
        moved(surely=True)
    return got


def _release(answer: urllib3.BaseHTTPResponse, clock: Clock) -> None:
    """Give the connection back, closed unless both directions are known to be clean."""
    connection = answer.connection
    if isinstance(connection, Connection):
        connection.settle(clean=not clock.body_cut)
    answer.release_conn()


def _explain(error: Exception, clock: Clock, method: str, place: str) -> NoReturn:
    """Raise what went wrong in this project's words; only host and path are named."""
    causes = [error, *(arg for arg in error.args if isinstance(arg, Exception))]
    if error.__context__ is not None:
        causes.append(error.__context__)  # type: ignore[arg-type]
    deadlines, server = clock.deadlines, urlsplit(place).netloc
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
    raise UnreachableError(f"{method}: no answer from {server}{by}: {what}", url=place) from error


def _server(url: str) -> str:
    """Return scheme and host of a URL."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0].rpartition('@')[2]}"


def _place(url: str) -> str:
    """Return `url` without what may be secret: user, password, query."""
    parsed = urlsplit(url)
    return f"{parsed.scheme}://{parsed.netloc.rpartition('@')[2]}{parsed.path}"
