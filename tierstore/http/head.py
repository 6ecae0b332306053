"""The heads of requests, and the headers of answers (RFC 9112)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tierstore.blocks import Buffer

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

    def get(self, name: str, default: Any = None) -> Any:
        """Return a header's value, or `default`; the mixin's own way raises and catches."""
        return self._values.get(name.lower(), default)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


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
