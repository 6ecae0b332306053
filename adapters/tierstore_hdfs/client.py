"""Requests to the namenodes of one HDFS, and to its datanodes."""

from __future__ import annotations

import getpass
import os
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from tierstore.blocks import Buffer
from tierstore.errors import ConfigError, DeadlineError, TransientError, UnreachableError
from tierstore.http import Response, Transport
from tierstore.regular import open_regular
from tierstore_hdfs.answers import decoded, location
from tierstore_hdfs.errors import STANDBY, Who, answered, nobody, refusal
from tierstore_hdfs.options import SMALL, HdfsOptions
from tierstore_hdfs.session import Session

_TOKEN = 64 * 1024  # characters
_PORTS = {"hdfs": 9870, "webhdfs": 9870, "swebhdfs": 9871}
_LUMP = 64 * 1024  # datanodes wait for acknowledgements: more made 1 MiB take 80 ms instead of 10


class HdfsClient:
    """WebHDFS calls by any number of threads.

    Args:
        scheme: of the tier's URL.
        hosts: "host:port" of one or more namenodes, separated by commas.
        options: of the tier.

    The namenode that answered last is asked first; one that is down or on standby is passed over.
    """

    def __init__(self, scheme: str, hosts: str, options: HdfsOptions) -> None:
        names = [name.strip() for name in hosts.split(",")]
        if not all(names):
            raise ConfigError(
                f"{hosts!r} names no namenode", hint="write hdfs://namenode:9870/path"
            )
        self._http = "https" if scheme == "swebhdfs" else "http"
        self._bases = [f"{self._http}://{_with_port(name, scheme)}/webhdfs/v1" for name in names]
        self._options = options
        self._token_file = Path(options.token_file) if options.token_file else None
        self._token: tuple[int, str] | None = None
        self._sessions: list[Session] = []
        self._who: Who = "token" if options.token_file else "name"
        if options.auth:
            self._who = "ticket"
            self._sessions = [Session(base, options.user, self._alone) for base in self._bases]
        elif not options.token_file:
            self._user = options.user or os.environ.get("HADOOP_USER_NAME") or _this_user()
        self._active = 0
        self._lock = threading.Lock()
        self._transports: dict[bool, Transport] = {}

    def call(self, method: str, path: str, op: str, **query: object) -> dict[str, Any]:
        """Carry out one operation of the namenode and return its decoded answer.

        Raises:
            TierstoreError: as `tierstore_hdfs.errors.answered` maps it.
        """
        # In a query, Hadoop decodes "+" as a blank and "%2B" as a plus, as it should.
        asked = urlencode({"op": op, **query, **self._login()})
        answer = self._ask(method, f"{quote(path, safe='/')}?{asked}")
        if answer.status != 200:
            raise answered(answer, doing=op, who=self._who)
        return decoded(answer.body, op)

    def place(self, method: str, path: str, op: str, **query: object) -> str:
        """Return the URL at a datanode where an operation goes on; it may hold a token."""
        return location(self.call(method, path, op, noredirect="true", **query), op, self._http)

    def send(self, url: str, body: Buffer) -> None:
        """Send bytes to a datanode, from where they are, and have it answer 201."""
        headers = {"Content-Type": "application/octet-stream"}
        answer = self._open().request("PUT", url, headers=headers, body=body, ok=(201,))
        self._created(url, answer)

    def stream(self, url: str, pieces: Iterable[memoryview], size: int) -> None:
        """Send `size` bytes to a datanode, piece by piece, each read meanwhile; as `send`."""
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        total = self._options.total_timeout * -(-size // self._options.part_size)
        # Whoever holds one of these connections waits for another to read: never of one pool.
        transport = self._open(streams=True)
        answer = transport.request("PUT", url, headers=headers, body=pieces, ok=(201,), total=total)
        self._created(url, answer)

    def receive(self, url: str, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers, one behind the other, with a datanode's answer."""
        answer = self._open().request("GET", url, headers={}, into=buffers, ok=(200,))
        if answer.status != 200:
            raise answered(answer, doing=f"OPEN at {urlsplit(url).netloc}", who=self._who)

    def close(self) -> None:
        """Release all connections. Idempotent; a later request opens new ones."""
        with self._lock:
            opened, self._transports = self._transports, {}
        for transport in opened.values():
            transport.close()

    def _open(self, *, streams: bool = False) -> Transport:
        with self._lock:
            if streams not in self._transports:
                self._transports[streams] = self._transport(SMALL * self._options.concurrency)
            return self._transports[streams]

    def _alone(self) -> Transport:
        return self._transport(1)

    def _transport(self, connections: int) -> Transport:
        options = self._options
        return Transport(
            pool_size=connections,
            deadlines=options.deadlines,
            ca_bundle=options.ca_bundle,
            verify=options.verify,
            lump=_LUMP,
        )

    def _created(self, url: str, answer: Response) -> None:
        if answer.status != 201:
            raise answered(answer, doing=f"PUT at {urlsplit(url).netloc}", who=self._who)

    def _ask(self, method: str, rest: str) -> Response:
        """Ask the active namenode, and if it is not, the others."""
        first = self._active
        failed: dict[str, TransientError] = {}
        for turn in range(len(self._bases)):
            index = (first + turn) % len(self._bases)
            name = urlsplit(self._bases[index]).netloc
            try:
                answer = self._request(method, index, rest)
            except (UnreachableError, DeadlineError) as error:
                failed[name] = error
                continue
            if answer.status == 403 and refusal(answer)[0] == STANDBY:
                failed[name] = TransientError("it is on standby")
                continue
            self._active = index
            return answer
        raise nobody(failed)

    def _request(self, method: str, index: int, rest: str) -> Response:
        """Send a request to one namenode, with its cookie, if that is how it knows who asks."""
        transport, url = self._open(), self._bases[index] + rest
        if not self._sessions:
            return transport.request(method, url, headers={}, ok=(200,))
        cookie = self._sessions[index].cookie()
        answer = transport.request(method, url, headers={"Cookie": cookie}, ok=(200,))
        if answer.status == 401:
            cookie = self._sessions[index].cookie(refused=cookie)
            answer = transport.request(method, url, headers={"Cookie": cookie}, ok=(200,))
        return answer

    def _login(self) -> Mapping[str, str]:
        if self._sessions:
            return {}
        if self._token_file is None:
            return {"user.name": self._user}
        try:
            changed = self._token_file.stat().st_mtime_ns
            if self._token is None or self._token[0] != changed:
                with os.fdopen(open_regular(self._token_file), encoding="ascii") as file:
                    self._token = changed, file.read(_TOKEN).strip()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "it is not text"
            raise ConfigError(
                f"token_file {str(self._token_file)!r} cannot be read: {why}",
                hint="write the token's URL-safe text into it (GETDELEGATIONTOKEN)",
            ) from None
        return {"delegation": self._token[1]}


def _this_user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError) as error:  # as in a container whose user id has no name
        hint = "set user or HADOOP_USER_NAME"
        raise ConfigError("this process's user has no name", hint=hint) from error


def _with_port(name: str, scheme: str) -> str:
    return name if re.search(r":\d+$", name) else f"{name}:{_PORTS[scheme]}"
