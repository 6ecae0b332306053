"""The heads of requests and answers over a connection that stands, at a third of the CPU time.

urllib3 opens connections and keeps them; what follows the first request goes by here, because for
a small object the parsing of headers as e-mail, and copies of them, cost more than all the rest.
RFC 9112 says what is sent and how an answer is framed; its body is read by http.client.
"""

from __future__ import annotations

import http.client
from collections.abc import Iterable, Iterator, Mapping

from tierstore.blocks import Buffer

_LINE = 65_536
_MOST_LINES = 200
AGENT = "tierstore"
"""As whom servers' logs know us."""


class Headers(Mapping[str, str]):
    """Headers, looked up without regard to case.

    Args:
        lines: "name: value" each; those of one name are joined by commas (RFC 9110, section 5.3).
    """

    def __init__(self, lines: Iterable[str]) -> None:
        self._values: dict[str, str] = {}
        values = self._values
        for line in lines:
            name, _, value = line.partition(":")
            key, value = name.lower(), value.strip()
            values[key] = f"{values[key]}, {value}" if key in values else value

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class Answer(http.client.HTTPResponse):
    """An answer whose head is read quickly; the body is http.client's business."""

    found: Headers

    def begin(self) -> None:
        """Read the head, passing over interim answers.

        Raises:
            HTTPException: it is none.
        """
        status = 100
        while status < 200:
            lines = self._lines()
            version, status = self._status(lines[0])
            self.found = Headers(lines[1:])
        self.code = self.status = status
        self.version = 11 if version == "HTTP/1.1" else 10
        find = self.found.get
        self.chunked = find("transfer-encoding", "").lower() == "chunked"
        self.chunk_left = None
        self.will_close = self.version == 10 or "close" in find("connection", "").lower()
        length = find("content-length", "")
        self.length = int(length) if length.isdigit() and not self.chunked else None
        if status in (204, 304) or self._method == "HEAD":  # type: ignore[attr-defined]
            self.length = 0
        if self.length is None and not self.chunked:
            self.will_close = True

    def _lines(self) -> list[str]:
        """Return the lines of the head, at once where it came at once."""
        end = self.fp.peek(1).find(b"\r\n\r\n")
        if end >= 0:
            return self.fp.read(end + 4).decode("iso-8859-1").split("\r\n")[:-2]
        lines = [self._line()]
        while lines[-1] and len(lines) < _MOST_LINES:
            lines.append(self._line())
        if lines[-1]:
            raise http.client.HTTPException(f"over {_MOST_LINES} lines of headers")
        return lines[:-1] or lines

    def _line(self) -> str:
        line = self.fp.readline(_LINE + 1)
        if len(line) > _LINE:
            raise http.client.LineTooLong("head")
        return line.decode("iso-8859-1").rstrip("\r\n")

    def _status(self, line: str) -> tuple[str, int]:
        if not line:
            raise http.client.RemoteDisconnected("the connection was closed without an answer")
        version, _, rest = line.partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
            raise http.client.BadStatusLine(line[:80])
        return version, int(rest[:3])


def head(
    host: str, method: str, target: str, headers: Mapping[str, str], body: Buffer | None
) -> bytes:
    """Return the head of a request.

    Args:
        host: with its port, if that is not the scheme's own.
        method: the HTTP method.
        target: path and query, percent-encoded.
        headers: all but Host and Content-Length.
        body: what will follow.

    Raises:
        ValueError: a header has a line break in it.
    """
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", "Accept-Encoding: identity"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines.append(f"User-Agent: {AGENT}")
    if body is not None or method in ("PUT", "POST"):
        lines.append(f"Content-Length: {memoryview(body or b'').nbytes}")
    text = "\r\n".join(lines)
    if text.count("\n") != len(lines) - 1 or text.count("\r") != len(lines) - 1:
        raise ValueError("a line break in a header")
    return f"{text}\r\n\r\n".encode("latin-1")
