"""Requests to the namenodes of one HDFS, and to its datanodes."""

from __future__ import annotations

import getpass
import json
import logging
import os
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, urlencode, urlsplit

from tierstore.blocks import Buffer
from tierstore.errors import (
    ConfigError,
    DeadlineError,
    StorageError,
    TransientError,
    UnreachableError,
)
from tierstore.http import Response, Transport
from tierstore_hdfs.errors import STANDBY, answered, refusal
from tierstore_hdfs.options import HdfsOptions

_PORTS = {"hdfs": 9870, "webhdfs": 9870, "swebhdfs": 9871}
_SECRET = re.compile(r"(delegation=)[^&\s\"]+")


class _Masked(logging.Filter):
    """Keeps tokens, which WebHDFS wants in the query, out of urllib3's own debug log."""

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if _SECRET.search(text):
            record.msg, record.args = _SECRET.sub(r"\1***", text), ()
        return True


_MASK = _Masked()


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
        http = "https" if scheme == "swebhdfs" else "http"
        self._bases = [f"{http}://{_with_port(name, scheme)}/webhdfs/v1" for name in names]
        self.user = options.user or os.environ.get("HADOOP_USER_NAME") or getpass.getuser()
        self._token_file = Path(options.token_file) if options.token_file else None
        self._token: tuple[int, str] | None = None
        self._active = 0
        self._options = options
        self._lock = threading.Lock()
        self._transport: Transport | None = None
        log = logging.getLogger("urllib3.connectionpool")
        if _MASK not in log.filters:
            log.addFilter(_MASK)

    def call(self, method: str, path: str, op: str, **query: object) -> dict[str, Any]:
        """Carry out one operation of the namenode and return its decoded answer.

        Raises:
            TierstoreError: as `tierstore_hdfs.errors.answered` maps it.
        """
        # In a query, Hadoop decodes "+" as a blank and "%2B" as a plus, as it should.
        asked = urlencode({"op": op, **query, **self._login()})
        answer = self._ask(method, f"{quote(path, safe='/')}?{asked}")
        if answer.status != 200:
            raise answered(answer, doing=op)
        try:
            decoded = json.loads(answer.body or b"{}")
        except ValueError as error:
            raise UnreachableError(f"{op}: the answer was cut off") from error
        return decoded if isinstance(decoded, dict) else {}

    def place(self, method: str, path: str, op: str, **query: object) -> str:
        """Return the URL at a datanode where an operation goes on; it may hold a token."""
        url = self.call(method, path, op, noredirect="true", **query).get("Location")
        if not isinstance(url, str):
            raise StorageError(f"{op}: the namenode names no datanode")
        return url

    def send(self, method: str, url: str, body: Buffer | Iterable[memoryview], size: int) -> None:
        """Send `size` bytes to a datanode, from where they are, and have it answer 201."""
        headers = {"Content-Type": "application/octet-stream"}
        if not isinstance(body, bytes | bytearray | memoryview):
            headers["Content-Length"] = str(size)  # urllib3 then sends piece by piece, unchunked
        answer = self._open().request(
            method, url, headers=headers, body=cast("Buffer", body), ok=(201,)
        )
        if answer.status != 201:
            raise answered(answer, doing=f"PUT at {urlsplit(url).netloc}")

    def receive(self, url: str, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers, one behind the other, with a datanode's answer."""
        answer = self._open().request("GET", url, headers={}, into=buffers, ok=(200,))
        if answer.status != 200:
            raise answered(answer, doing=f"OPEN at {urlsplit(url).netloc}")

    def close(self) -> None:
        """Release all connections. Idempotent; a later request opens new ones."""
        with self._lock:
            transport, self._transport = self._transport, None
        if transport:
            transport.close()

    def _open(self) -> Transport:
        with self._lock:
            if self._transport is None:
                options = self._options
                self._transport = Transport(
                    # One more: a file that is read and written in one stream takes two.
                    pool_size=options.concurrency + 1,
                    deadlines=options.deadlines,
                    ca_bundle=options.ca_bundle,
                    verify=options.verify,
                )
            return self._transport

    def _ask(self, method: str, rest: str) -> Response:
        """Ask the active namenode, and if it is not, the others."""
        transport, first = self._open(), self._active
        failed: Exception | None = None
        for turn in range(len(self._bases)):
            index = (first + turn) % len(self._bases)
            try:
                answer = transport.request(method, self._bases[index] + rest, headers={}, ok=(200,))
            except (UnreachableError, DeadlineError) as error:
                failed = error
                continue
            if answer.status == 403 and refusal(answer)[0] == STANDBY:
                failed = answered(answer, doing=method)
                continue
            self._active = index
            return answer
        raise failed or TransientError("no namenode answers")

    def _login(self) -> Mapping[str, str]:
        if self._token_file is None:
            return {"user.name": self.user}
        try:
            changed = self._token_file.stat().st_mtime_ns
            if self._token is None or self._token[0] != changed:
                self._token = changed, self._token_file.read_text("ascii").strip()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "it is not text"
            raise ConfigError(
                f"token_file {str(self._token_file)!r} cannot be read: {why}",
                hint="write the token's URL-safe text into it (GETDELEGATIONTOKEN)",
            ) from None
        return {"delegation": self._token[1]}


def _with_port(name: str, scheme: str) -> str:
    return name if re.search(r":\d+$", name) else f"{name}:{_PORTS[scheme]}"
