"""Requests: from the caller's memory to the caller's memory, and every failure in plain words."""

from __future__ import annotations

import http.client
import logging
import os
import ssl
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NoReturn

from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NewConnectionError,
    ProxyError,
)

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
from tierstore.http.connection import Body
from tierstore.http.head import BROKEN
from tierstore.http.masking import without_echo
from tierstore.http.response import Answer
from tierstore.http.routes import Route, Routes
from tierstore.logs import logger
from tierstore.regular import open_regular
from tierstore.waiting import moved, on

_log = logger(__name__)

ERROR_BODY = 64 * 1024
"""Bytes of an error answer that are kept; what follows is not worth waiting for."""
WHOLE_BODY = 16 * 1024 * 1024
"""Bytes of an answer that nobody has given memory for; a page of a listing has one, or two."""


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
        self._routes = Routes(_trust(ca_bundle, verify=verify), pool_size)

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
            route = self._routes.find(url)
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

    def close(self) -> None:
        """Close all idle connections; one in use is closed when its request ends. Idempotent."""
        self._routes.close()


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
    route: Route,
    deadlines: Deadlines,
    request: tuple[str, str, Mapping[str, str], Body | None],
    wanted: tuple[Sequence[memoryview] | None, Container[int]],
) -> Response:
    """Send a request over a connection of the pool, receive its answer, and give it back."""
    connection, answer = route.pool.lend(deadlines.total), None
    if connection is None:
        text = f"{request[0]}: no connection became free in {deadlines.total:g} s"
        raise DeadlineError(text, hint="raise the concurrency")
    try:
        if connection.sock is None:
            connection.open()
        answer = _taken(connection.exchange(route.host, *request), *wanted)
        return answer
    finally:
        connection.settle(clean=answer is not None and not CLOCK.get().body_cut)
        route.pool.give_back(connection)


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
    causes = _causes(error)
    deadlines, server = clock.deadlines, place.partition("://")[2].partition("/")[0]
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise AccessError(
                f"the server's certificate is not trusted: {cause.verify_message}",
                url=place,
                hint="give the authority's certificate as ca_bundle",
            ) from error
    by = " through the proxy" if isinstance(error, ProxyError) else ""
    if any(
        isinstance(cause, ConnectTimeoutError) and not isinstance(cause, NewConnectionError)
        for cause in causes
    ):
        text = f"{method}: no connection to {server}{by} in {deadlines.connect:g} s"
        raise DeadlineError(text, url=place, hint="check the address and the network") from error
    if any(isinstance(c, TimeoutError) for c in causes):
        over = clock.left() <= 0
        text = (
            f"{method}: not done in {deadlines.total:g} s"
            if over
            else f"{method}: no byte moved for {deadlines.stall:g} s"
        )
        raise DeadlineError(text, url=place) from error
    root = causes[-1]
    what = getattr(root, "strerror", None) or type(root).__name__
    hint = BROKEN if isinstance(error, http.client.BadStatusLine | http.client.LineTooLong) else ""
    text = f"{method}: no answer from {server}{by}: {what}"
    raise UnreachableError(text, url=place, hint=hint) from error


def _causes(error: BaseException) -> list[BaseException]:
    """Return an error and those behind it, the first cause last."""
    found, ahead = [], [error]
    while ahead:
        cause = ahead.pop(0)
        if cause not in found:
            found.append(cause)
            ahead += [arg for arg in cause.args if isinstance(arg, BaseException)]
            if cause.__context__ is not None and not cause.__suppress_context__:
                ahead.append(cause.__context__)
            elif cause.__cause__ is not None:
                ahead.append(cause.__cause__)
    return found


def _server(url: str) -> str:
    """Return scheme and host of a URL."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0].rpartition('@')[2]}"


def _place(url: str) -> str:
    """Return `url` without what may be secret: user, password, query."""
    scheme, _, rest = url.partition("#")[0].partition("?")[0].partition("://")
    server, slash, path = rest.partition("/")
    return f"{scheme}://{server.rpartition('@')[2]}{slash}{path}"
