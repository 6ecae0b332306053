"""A namenode as it is with Kerberos: one that needs none, behind a front that speaks SPNEGO.

The front is a process of its own, for NTLM stands in for Kerberos and has its users in a file that
an environment variable names: the front knows other passwords than the client.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import secrets
import subprocess
import sys
import threading
from base64 import b64decode, b64encode, urlsafe_b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.patience import PATIENCE

ROOT = Path(__file__).parents[1]
STANDBY = {"exception": "StandbyException", "message": "Operation category READ is not supported"}
_CONTROL = "/front/"


@dataclass(frozen=True)
class Front:
    """The front from outside: `address` is the namenode's."""

    address: str

    def seen(self) -> dict[str, Any]:
        """`exchanges` that ended well, `namenode` and `datanode` requests, `secrets` of all."""
        found: dict[str, Any] = json.loads(self._tell("seen"))
        return found

    def expire(self) -> None:
        """Take none of the cookies any more."""
        self._tell("expire")

    def _tell(self, what: str) -> bytes:
        connection = http.client.HTTPConnection(self.address, timeout=PATIENCE)
        with contextlib.closing(connection):
            connection.request("GET", _CONTROL + what)
            return connection.getresponse().read()


@contextlib.contextmanager
def front(upstream: str, users: Path, *flaws: str) -> Iterator[Front]:
    """Run a front before the namenode at `upstream` that knows the `users` of a file.

    Args:
        flaws: "standby" refuses all operations; a header's name leaves it out where an exchange
            ends.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.spnego_front", upstream, *flaws],
        cwd=ROOT,
        env={**os.environ, "NTLM_USER_FILE": str(users)},
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    with process:
        try:
            assert process.stdout
            port = process.stdout.readline().strip()
            assert port, "the front did not start"
            yield Front(f"127.0.0.1:{port}")
        finally:
            process.terminate()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, upstream: str, flaws: list[str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.own = f"127.0.0.1:{self.server_port}"
        self.upstream = upstream
        self.flaws = flaws
        self.lock = threading.Lock()
        self.cookies: dict[str, str] = {}
        self.seen: dict[str, Any] = {
            "exchanges": 0, "namenode": [], "datanode": [], "secrets": []
        }  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    """One connection, to which an exchange belongs."""

    protocol_version = "HTTP/1.1"
    server: _Server
    context: Any = None

    def serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        asked = urlsplit(self.path)
        target = f"{asked.path}?{asked.query}"
        if asked.netloc not in ("", self.server.own):  # taken for an HTTP proxy
            self.note("datanode", target)
            self.answer(*self.ask(asked.netloc, target, body))
        elif asked.path.startswith(_CONTROL):
            self.control(asked.path.removeprefix(_CONTROL))
        else:
            self.note("namenode", target)
            self.namenode(target)

    do_GET = do_PUT = do_POST = do_DELETE = serve  # noqa: N815

    def namenode(self, target: str) -> None:
        user, headers = self.known(), {}
        if not user:
            user, headers = self.exchange()
        if not user:
            return
        if "standby" in self.server.flaws and "GETHOMEDIRECTORY" not in target:
            self.answer(403, headers, json.dumps({"RemoteException": STANDBY}).encode())
            return
        status, found, data = self.ask(self.server.upstream, f"{target}&user.name={user}", b"")
        if b'"Location"' in data:  # a namenode with Kerberos adds a token of its own
            token = _delegation_token(user)
            self.server.seen["secrets"].append(token)
            place = json.loads(data)["Location"]
            data = json.dumps({"Location": f"{place}&delegation={token}"}).encode()
        self.answer(status, {**found, **headers}, data)

    def known(self) -> str:
        """Return the user of the request's cookie."""
        found = re.search(r'hadoop\.auth=("[^"]+")', self.headers.get("Cookie", ""))
        with self.server.lock:
            return self.server.cookies.get(found[1] if found else "", "")

    def exchange(self) -> tuple[str, dict[str, str]]:
        """Go one step; return the user once it is known, and what to say to them."""
        import spnego

        scheme, _, sent = self.headers.get("Authorization", "").partition(" ")
        if scheme != "Negotiate":
            self.context = None
            self.answer(401, {"WWW-Authenticate": "Negotiate"}, b"<html>who are you")
            return "", {}
        self.context = self.context or spnego.server(service="HTTP", protocol="negotiate")
        try:
            said = b64encode(self.context.step(b64decode(sent)) or b"").decode()
        except spnego.exceptions.SpnegoError:
            self.context = None
            self.answer(403, {}, b"<html>GSSException")
            return "", {}
        offer = {"WWW-Authenticate": f"Negotiate {said}"}
        with self.server.lock:
            self.server.seen["secrets"] += [sent, said]
            if not self.context.complete:
                self.answer(401, offer, b"<html>go on")
                return "", {}
            user = self.context.client_principal.rpartition("\\")[2]
            cookie = f'"u={user}&p={user}&t=kerberos&e=1&s={secrets.token_urlsafe(24)}"'
            self.server.cookies[cookie] = user
            self.server.seen["secrets"].append(cookie.strip('"'))
            self.server.seen["exchanges"] += 1
        self.context = None
        given = {**offer, "Set-Cookie": f"hadoop.auth={cookie}; Path=/; HttpOnly"}
        return user, {name: text for name, text in given.items() if name not in self.server.flaws}

    def ask(self, server: str, target: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        with contextlib.closing(http.client.HTTPConnection(server, timeout=PATIENCE)) as connection:
            kind = self.headers.get("Content-Type")
            headers = {"Content-Type": kind} if kind else {}
            connection.request(self.command, target, body=body, headers=headers)
            answer = connection.getresponse()
            kept = ("Content-Type", "Location")
            found = {name: answer.headers[name] for name in kept if name in answer.headers}
            return answer.status, found, answer.read()

    def note(self, whom: str, target: str) -> None:
        with self.server.lock:
            self.server.seen[whom].append([f"{self.command} {target}", dict(self.headers)])

    def control(self, what: str) -> None:
        with self.server.lock:
            if what == "expire":
                self.server.cookies.clear()
            self.answer(200, {}, json.dumps(self.server.seen).encode())

    def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _delegation_token(user: str) -> str:
    """Return one that is written as Hadoop's are (`Token.encodeToUrlString`), of no key."""

    def text(data: bytes) -> bytes:
        return bytes([len(data)]) + data

    name = text(user.encode())
    identifier = b"\0" + name * 2 + text(b"") + bytes(4)
    parts = identifier, secrets.token_bytes(20), b"WEBHDFS delegation", b""
    return urlsafe_b64encode(b"".join(map(text, parts))).decode().rstrip("=")


if __name__ == "__main__":
    with _Server(sys.argv[1], sys.argv[2:]) as server:
        print(server.server_port, flush=True)
        server.serve_forever()
