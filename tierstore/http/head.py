"""The heads of requests and of answers (RFC 9112)."""

from __future__ import annotations

import http.client
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from tierstore.errors import StorageError

AGENT = "tierstore"
"""As whom servers' logs know us."""
BROKEN = "see what answers at this address: a proxy or a server of another kind?"
"""What to do about an answer that nobody can read; the same request gets it again."""

_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [^\r\n]*)?\r?\n")
_HEADERS = re.compile(rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\x00-\x08\x0a-\x1f\x7f]*\r?\n)*")
_NUMBER = re.compile(r"[0-9]{1,18}")
_MOST_LINES = 200


def whole_number(text: str) -> int | None:
    """Return a number as headers have it, below 10**18; None for anything but ASCII digits."""
    return int(text) if _NUMBER.fullmatch(text) else None


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

    def get(self, name: str, default: Any = None) -> Any:
        """Return a header's value, or `default`; the mixin's own way raises and catches."""
        return self._values.get(name.lower(), default)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class Head(NamedTuple):
    """The head of an answer.

    Attributes:
        old: it is of HTTP/1.0.
        status: 100 to 599.
        headers: all of them.
    """

    old: bool
    status: int
    headers: Headers


def parse_head(raw: bytes) -> Head:
    """Return what the head of an answer says.

    Args:
        raw: its lines, each with its end.

    Raises:
        BadStatusLine: it is none of HTTP.
        StorageError: its headers are none, or too many.
    """
    status = _STATUS.match(raw)
    if not status:
        raise http.client.BadStatusLine(ascii(raw[:80]))
    lines = raw[status.end() :]
    if lines.count(b"\n") > _MOST_LINES:
        raise http.client.HTTPException(f"over {_MOST_LINES} lines of headers")
    if not _HEADERS.fullmatch(lines):
        raise StorageError("the answer's headers cannot be read", hint=BROKEN)
    text = lines.decode("iso-8859-1")
    return Head(status[1] == b"0", int(status[2]), Headers(text.split("\n")[:-1]))


def head(
    host: str, method: str, target: str, headers: Mapping[str, str], nbytes: int | None
) -> bytes:
    """Return the head of a request.

    Args:
        host: with its port, if that is not the scheme's own.
        method: the HTTP method.
        target: path and query, percent-encoded.
        headers: all but Host and Content-Length.
        nbytes: of the body that will follow; None if the headers tell, or there is none.

    Raises:
        ValueError: a header has a line break in it.
    """
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", "Accept-Encoding: identity"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines.append(f"User-Agent: {AGENT}")
    if nbytes is not None:
        lines.append(f"Content-Length: {nbytes}")
    text = "\r\n".join(lines)
    if text.count("\n") != len(lines) - 1 or text.count("\r") != len(lines) - 1:
        raise ValueError("a line break in a header")
    return f"{text}\r\n\r\n".encode("latin-1")
