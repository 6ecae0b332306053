"""A small S3 server of any number of objects that nobody has made; each holds its name."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

from tests.loopback import answer, read_head, serving
from tests.patience import PATIENCE

_PAGE = 1000
_DATE = "Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
_EACH = (
    "<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
    "<ETag>&quot;x&quot;</ETag><Size>9</Size><StorageClass>STANDARD</StorageClass></Contents>"
)
_RESULT = (
    '<?xml version="1.0" encoding="UTF-8"?>'
    '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>many</Name>'
    "<KeyCount>{count}</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>{more}</IsTruncated>"
    "<NextContinuationToken>{end}</NextContinuationToken>{each}</ListBucketResult>"
)


class ManyKeys:
    """The server; `reads` counts the objects that were asked for."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.pages = 0
        self.pages_at_first_read = -1
        self.reads = 0
        self.endpoint = ""
        self._lock = threading.Lock()

    def serve(self, sock: socket.socket) -> None:
        """Answer the requests of one connection."""
        sock.settimeout(PATIENCE)
        while True:
            line = read_head(sock).split(b" HTTP/", 1)[0].decode()
            method, _, target = line.partition(" ")
            query = parse_qs(urlsplit(target).query)
            if "list-type" in query:
                start = int(query.get("continuation-token", ["0"])[0])
                sock.sendall(answer(self._page(query["prefix"][0], start).encode()))
            elif urlsplit(target).path.count("/") < 2:  # the bucket
                sock.sendall(answer(b""))
            else:
                key = urlsplit(target).path.rpartition("/")[2]
                sock.sendall(self._object(method, key))

    def _page(self, prefix: str, start: int) -> str:
        end = min(start + _PAGE, self.count)
        with self._lock:
            self.pages += 1
        each = "".join(_EACH.format(key=f"{prefix}{number:09}") for number in range(start, end))
        more = str(end < self.count).lower()
        return _RESULT.format(count=end - start, more=more, end=end, each=each)

    def _object(self, method: str, key: str) -> bytes:
        if not re.fullmatch(r"\d{9}", key) or int(key) >= self.count:
            return answer(b"", "404 Not Found")
        with self._lock:
            if method == "GET":
                self.pages_at_first_read = self.pages_at_first_read if self.reads else self.pages
                self.reads += 1
        whole = answer(key.encode(), headers=f'ETag: "x"\r\n{_DATE}')
        return whole[: -len(key)] if method == "HEAD" else whole


@contextlib.contextmanager
def many_keys(count: int) -> Iterator[ManyKeys]:
    """Run one with `count` objects of nine bytes, under any prefix of any bucket."""
    server = ManyKeys(count)
    with serving(server.serve) as server.endpoint:
        yield server
