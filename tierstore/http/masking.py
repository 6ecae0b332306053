"""Secrets stay out of errors and logs, whoever repeats them: a server, a library beneath."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import parse_qsl

STARS = "***"
_VALUE = r"[^\s&\"'<>,;)}\]\\]"
# Every repetition has a bound: the text may be a server's.
_NAMES = (
    r"[\w-]{0,30}(?:delegation|token|secret|signature|passw(?:or)?d|credential|api_?key)[\w-]{0,30}"
    r"|(?:proxy-)?authorization|sig"
)
_SCHEME = r"(?:(?:Basic|Bearer|Negotiate)\s+|AWS4-[^\n]{0,400}?Signature=)?"
_SPOKEN = re.compile(
    rf"(\b(?:{_NAMES})\b[\"']?\s{{0,3}})(?:((?:=|%3D)[\"']?){_VALUE}{{1,4000}}"
    rf"|((?::|>)\s{{0,3}}b?[\"']?{_SCHEME}){_VALUE}{{12,4000}})",
    re.IGNORECASE,
)
_COOKIE = re.compile(r"(cookie[\"']?:|hadoop\.auth=)[^\r\n;]{1,4000}", re.IGNORECASE)
_USER = re.compile(r"(?<=://)[^\s/@\"']{1,1000}@")

_HEADERS = ("authorization", "cookie", "proxy-authorization", "x-amz-security-token")
_QUERIED = re.compile(r"delegation|token|signature|credential", re.IGNORECASE)
_PROOF = re.compile(r"(?:Basic |Bearer |Negotiate |Signature=|[\w.-]+=\"?)?([^\s\"]+)\"?\Z")
_SHORTEST = 4
_LEAD = re.compile(r"[A-Za-z0-9]{0,4}")
_PREFIX = 12
_REST = rb"[A-Za-z0-9+/=_.~%\\&#-]*"


def masked(text: str) -> str:
    """Return a text with stars for whatever is called a token, a signature or a password in it."""
    text = _COOKIE.sub(rf"\1{STARS}", text)
    return _USER.sub(f"{STARS}@", _SPOKEN.sub(rf"\1\2\3{STARS}", text))


def as_cause(error: Exception) -> Exception | None:
    """Return what to raise another error from: a traceback shows a cause as it is, unmasked."""
    text = str(error)
    return error if masked(text) == text else None


def without_echo(said: bytes, url: str, headers: Mapping[str, str]) -> bytes:
    """Return what a server says, without what of the request it repeats that is secret.

    Args:
        said: the body of its answer.
        url: of the request.
        headers: of the request.
    """
    for secret in _secrets(url, headers):
        lead = _LEAD.match(secret)
        if lead is None or lead[0].encode() in said:
            said = re.sub(_pattern(secret), STARS.encode(), said)
    return said


def _secrets(url: str, headers: Mapping[str, str]) -> Iterator[str]:
    for name, value in headers.items():
        if name.lower() in _HEADERS and (proof := _PROOF.search(value)):
            yield proof[1]
    for name, value in parse_qsl(url.partition("?")[2]):
        if _QUERIED.search(name):
            yield value


def _pattern(secret: str) -> bytes:
    """Return what finds a secret, also one that was cut, percent-encoded, or escaped for JSON."""
    if len(secret) < _SHORTEST:
        return rb"(?!)"
    begin = b"".join(_sign(sign) for sign in secret[:_PREFIX])
    return begin + (_REST if len(secret) > _PREFIX else b"")


def _sign(sign: str) -> bytes:
    if sign.isalnum():
        return sign.encode()
    plain, code = re.escape(sign).encode(), ord(sign)
    return rb"(?:\\?%s|(?i:%%%02x|\\u%04x|&#x?\w+;))" % (plain, code, code)


class Masked(logging.Filter):
    """Replaces secrets in a record by stars.

    Args:
        pattern: what is secret beside what is called so; its first group, if any, is kept.
    """

    def __init__(self, pattern: str = r"(?!)") -> None:
        super().__init__()
        self._secret = re.compile(pattern)

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass, without its secrets."""
        text = record.getMessage()
        clean = masked(self._secret.sub(STARS, text))
        if clean != text:
            record.msg, record.args = clean, ()
        return True


def mask(logger: str, mask: logging.Filter) -> None:
    """Give a filter to a logger and to all that are below it by now; filters are not inherited."""
    below: Iterable[str] = [*logging.root.manager.loggerDict]
    for name in (logger, *(name for name in below if name.startswith(f"{logger}."))):
        log = logging.getLogger(name)
        if mask not in log.filters:
            log.addFilter(mask)
