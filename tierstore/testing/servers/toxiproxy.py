"""A TCP proxy that delays, cuts, starves and resets connections on request.

API: https://github.com/Shopify/toxiproxy#http-api
"""

from __future__ import annotations

import contextlib
import json
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import urllib3

from tierstore.testing.servers.process import ServerProcess, free_port
from tierstore.testing.servers.programs import find_program

_MODULE = "github.com/Shopify/toxiproxy/v2/cmd/server@latest"

Kind = Literal[
    "latency", "bandwidth", "slow_close", "timeout", "reset_peer", "slicer", "limit_data"
]
Stream = Literal["upstream", "downstream"]


class Proxy:
    """One proxied address.

    Attributes:
        address: the host and port to connect to instead of the server's.
        endpoint: the same as an http URL.
    """

    def __init__(self, owner: Toxiproxy, name: str, address: str) -> None:
        self._owner = owner
        self._name = name
        self.address = address
        self.endpoint = f"http://{address}"

    def add(
        self, kind: Kind, *, stream: Stream = "downstream", toxicity: float = 1.0, **attributes: int
    ) -> str:
        """Add a toxic and return its name.

        Args:
            kind: "latency" (latency, jitter: ms), "bandwidth" (rate: KB/s), "slow_close"
                (delay: ms), "timeout" (timeout: ms, 0 for never answering), "reset_peer"
                (timeout: ms), "slicer" (average_size, size_variation: bytes, delay: us),
                "limit_data" (bytes).
            stream: "upstream" spoils what the client sends, "downstream" what it receives.
            toxicity: the share of connections it applies to, 0 to 1.
            attributes: the numbers named above.
        """
        name = f"{kind}-{secrets.token_hex(4)}"
        body = {"name": name, "type": kind, "stream": stream, "toxicity": toxicity}
        path = f"/proxies/{self._name}/toxics"
        self._owner.call("POST", path, {**body, "attributes": attributes})
        return name

    def remove(self, toxic: str) -> None:
        """Take a toxic away."""
        self._owner.call("DELETE", f"/proxies/{self._name}/toxics/{toxic}")

    @contextlib.contextmanager
    def toxic(
        self, kind: Kind, *, stream: Stream = "downstream", toxicity: float = 1.0, **attributes: int
    ) -> Iterator[None]:
        """Hold a toxic, as `add` makes it, for the length of a with statement."""
        name = self.add(kind, stream=stream, toxicity=toxicity, **attributes)
        try:
            yield
        finally:
            self.remove(name)

    def up(self) -> None:
        """Accept connections again."""
        self._owner.call("POST", f"/proxies/{self._name}", {"enabled": True})

    def down(self) -> None:
        """Cut every connection and refuse new ones."""
        self._owner.call("POST", f"/proxies/{self._name}", {"enabled": False})


class Toxiproxy:
    """A client of a running toxiproxy.

    Args:
        endpoint: the URL of its API.
    """

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self._http = urllib3.PoolManager(retries=False, timeout=10.0)

    def proxy(self, upstream: str) -> Proxy:
        """Return a new proxy, on a free loopback port, in front of `upstream` ("host:port")."""
        name = f"p{secrets.token_hex(6)}"
        body = {"name": name, "listen": "127.0.0.1:0", "upstream": upstream, "enabled": True}
        made = self.call("POST", "/proxies", body)
        return Proxy(self, name, str(made["listen"]))

    def call(self, method: str, path: str, body: object = None) -> dict[str, object]:
        """Send one API request and return its JSON answer.

        Raises:
            RuntimeError: toxiproxy refused it.
        """
        answer = self._http.request(method, self.endpoint + path, json=body)
        if answer.status >= 400:
            raise RuntimeError(f"toxiproxy: {method} {path}: {answer.status} {answer.data!r}")
        decoded: dict[str, object] = json.loads(answer.data) if answer.data else {}
        return decoded

    def close(self) -> None:
        """Close the connections to the API."""
        self._http.clear()


def find_toxiproxy() -> Path:
    """Return the path of toxiproxy, installing it with Go when it is nowhere.

    Raises:
        ServerUnavailableError: it cannot be had.
    """
    return find_program(["toxiproxy-server", "server"], _MODULE, marker=b"toxiproxy")


@contextlib.contextmanager
def toxiproxy() -> Iterator[Toxiproxy]:
    """Start toxiproxy on a free loopback port.

    Raises:
        ServerUnavailableError: there is none and no Go to install it with, or it did not start.
    """
    program = find_toxiproxy()
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="tierstore-toxiproxy-") as folder:
        with ServerProcess(
            [str(program), "-host", "127.0.0.1", "-port", str(port)],
            log=Path(folder) / "toxiproxy.log",
        ) as process:
            process.wait_ready(f"http://127.0.0.1:{port}/version")
            client = Toxiproxy(f"http://127.0.0.1:{port}")
            try:
                yield client
            finally:
                client.close()
