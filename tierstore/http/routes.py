"""How each server is reached: through which proxy, over which connections."""

from __future__ import annotations

import os
import ssl
import threading
import time
import urllib.request
from collections.abc import Mapping
from typing import NamedTuple

from urllib3.exceptions import HTTPError
from urllib3.util import make_headers, parse_url

from tierstore.errors import ConfigError, StorageError
from tierstore.http.opening import Hop, Way
from tierstore.http.pool import Pool

_PORTS = {"http": 80, "https": 443}
_MOST = 64  # servers to which idle connections are kept
_NO_PROXY = "correct HTTP_PROXY, HTTPS_PROXY, or NO_PROXY"


class Route(NamedTuple):
    """How a server is reached.

    Attributes:
        pool: the connections to it, or to a proxy.
        host: what requests say whom they are for.
        proxied: a proxy has to be told the whole URL.
        headers: what that proxy wants beside.
    """

    pool: Pool
    host: str
    proxied: bool
    headers: Mapping[str, str]


class Routes:
    """The ways to all servers that were asked so far; safe between threads.

    Args:
        tls: whom to trust.
        size: connections to one server, or proxy, at most.
    """

    def __init__(self, tls: ssl.SSLContext, size: int) -> None:
        self._tls, self._size = tls, size
        self._lock = threading.Lock()
        self._routes: dict[tuple[str, str], Route] = {}
        self._pools: dict[Way, Pool] = {}
        self._proxies: dict[tuple[str, str], str] = {}  # reading the environment takes 0.2 ms
        self._pid = os.getpid()
        self._closed = False

    def find(self, url: str) -> Route:
        """Return the way to the server of a URL.

        Raises:
            StorageError: it names none, or all is closed.
            ConfigError: the environment names no usable proxy.
        """
        scheme, _, rest = url.partition("://")
        server = rest.partition("/")[0]
        route = self._routes.get((scheme, server)) if self._pid == os.getpid() else None
        if route is None or route.pool.retired:
            route = self._new(scheme, server)
        route.pool.used = time.monotonic()
        return route

    def close(self) -> None:
        """Close all idle connections; one in use is closed when its request ends. Idempotent."""
        with self._lock:
            self._closed = True
            pools, self._pools, self._routes = self._pools, {}, {}
        for pool in pools.values():
            pool.retire()

    def _new(self, scheme: str, server: str) -> Route:
        try:
            asked = parse_url(f"{scheme}://{server}")
        except HTTPError:
            asked = parse_url("")
        if not asked.host:
            raise StorageError("this is no address", hint="check the host and the port")
        if scheme not in _PORTS:
            raise StorageError(f"no requests can be sent by {scheme}")
        port = asked.port or _PORTS[scheme]
        way = _way(Hop(scheme, asked.host.strip("[]"), port), self._proxy(scheme, server))
        host = asked.host if port == _PORTS[scheme] else f"{asked.host}:{port}"
        told = way.proxied and way.tunnel is None
        with self._lock:
            if self._closed:
                raise StorageError("the transport is closed")
            route = Route(self._pool(way), host, told, way.headers if told else {})
            self._routes[scheme, server] = route
            return route

    def _pool(self, way: Way) -> Pool:
        if self._pid != os.getpid():
            # After a fork the sockets are the parent's: two may not talk on one.
            self._pid, self._pools, self._routes = os.getpid(), {}, {}
        pool = self._pools.get(way)
        if pool is None:
            if len(self._pools) >= _MOST:
                self._forget(min(self._pools, key=lambda known: self._pools[known].used))
            pool = self._pools[way] = Pool(way, self._tls, self._size)
            pool.used = time.monotonic()
        return pool

    def _forget(self, way: Way) -> None:
        self._pools.pop(way).retire()
        self._routes = {at: each for at, each in self._routes.items() if not each.pool.retired}

    def _proxy(self, scheme: str, server: str) -> str:
        server = server.rpartition("@")[2]
        if (scheme, server) not in self._proxies:
            bypass = urllib.request.proxy_bypass(server)
            found = "" if bypass else urllib.request.getproxies().get(scheme, "")
            self._proxies[scheme, server] = found
        return self._proxies[scheme, server]


def _way(server: Hop, proxy: str) -> Way:
    if not proxy:
        return Way(server)
    try:
        parsed = parse_url(proxy if "://" in proxy else f"http://{proxy}")
    except HTTPError:
        parsed = parse_url("")
    if parsed.scheme not in _PORTS or not parsed.host:
        text = "the proxy that the environment names is no http or https URL"
        raise ConfigError(text, hint=_NO_PROXY)
    first = Hop(parsed.scheme, parsed.host.strip("[]"), parsed.port or _PORTS[parsed.scheme])
    secret = make_headers(proxy_basic_auth=parsed.auth) if parsed.auth else {}
    authorization = secret.get("proxy-authorization", "")
    return Way(first, server if server.scheme == "https" else None, True, authorization)
