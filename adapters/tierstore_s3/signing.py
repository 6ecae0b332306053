"""Requests signed in their headers, with the body left out of the signature.

Hashing a body with SHA-256 costs more than sending it. The signature covers all headers instead,
among them `x-amz-checksum-crc32c`, by which the server checks the body. (Signature Version 4 with
UNSIGNED-PAYLOAD: "Authenticating Requests: Using the Authorization Header", Amazon S3 API.)
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Mapping
from functools import lru_cache
from urllib.parse import quote, urlsplit

from botocore.credentials import Credentials, ReadOnlyCredentials

UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD"
CRC_HEADER = "x-amz-checksum-crc32c"


_ALGORITHM = "AWS4-HMAC-SHA256"


def sign(
    method: str,
    url: str,
    headers: Mapping[str, str],
    credentials: Credentials | ReadOnlyCredentials | None,
    region: str,
    service: str = "s3",
) -> dict[str, str]:
    """Return `headers` with those that prove who sends them.

    botocore's own signer does the same in three times the time, which is much of a small request.

    Args:
        method: the HTTP method.
        url: percent-encoded, as it is sent.
        headers: all that the server shall trust; names in lower case.
        credentials: of this moment; None sends anonymously.
        region: of the bucket.
        service: what signatures are for; access points of Outposts and Object Lambda differ.
    """
    if credentials is None:
        return dict(headers)
    now = _stamp(int(time.time()))
    scheme, _, rest = url.partition("://")
    rest, _, query = rest.partition("?")
    server, _, path = rest.partition("/")
    signed = {**headers, "x-amz-content-sha256": UNSIGNED_PAYLOAD, "x-amz-date": now}
    if credentials.token:
        signed["x-amz-security-token"] = credentials.token
    named = {**signed, "host": _host(scheme, server)}
    order = sorted(named)
    names = ";".join(order)
    lines = "".join([f"{name}:{_trimmed(named[name])}\n" for name in order])
    query = query and "&".join([f"{name}={value}" for name, value in _items(query)])
    canonical = f"{method}\n/{path}\n{query}\n{lines}\n{names}\n{UNSIGNED_PAYLOAD}"
    scope = f"{now[:8]}/{region}/{service}/aws4_request"
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    text = f"{_ALGORITHM}\n{now}\n{scope}\n{digest}"
    key = _key(credentials.secret_key, now[:8], region, service)
    signature = hmac.digest(key, text.encode(), "sha256")
    signed["Authorization"] = (
        f"{_ALGORITHM} Credential={credentials.access_key}/{scope}, "
        f"SignedHeaders={names}, Signature={signature.hex()}"
    )
    return signed


@lru_cache(maxsize=4)
def _stamp(seconds: int) -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(seconds))


def _trimmed(value: str) -> str:
    return " ".join(value.split()) if " " in value else value.strip()


@lru_cache(maxsize=4)
def _key(secret: str, day: str, region: str, service: str) -> bytes:
    """Return the key of a day (Signature Version 4, "Calculate the signing key")."""
    key = f"AWS4{secret}".encode()
    for each in (day, region, service, "aws4_request"):
        key = hmac.digest(key, each.encode(), "sha256")
    return key


@lru_cache(maxsize=16)
def _host(scheme: str, server: str) -> str:
    parts = urlsplit(f"{scheme}://{server}")
    usual = {"http": 80, "https": 443}.get(parts.scheme)
    name = parts.hostname or ""
    host = f"[{name}]" if ":" in name else name
    return host if parts.port in (None, usual) else f"{host}:{parts.port}"


def _items(query: str) -> list[tuple[str, str]]:
    items = (item.partition("=") for item in query.split("&"))
    return sorted((name, value) for name, _, value in items if name)


def quote_key(key: str) -> str:
    """Return `key` as S3 wants it in a path: UTF-8, all but unreserved signs and "/" encoded."""
    return quote(key, safe="/~")


def encode_crc(crc32c: int) -> str:
    """Return a CRC32C as S3 writes it: base64 of four bytes, the highest first."""
    return base64.b64encode(crc32c.to_bytes(4, "big")).decode()


def decode_crc(text: str | None) -> int | None:
    """Return the CRC32C of a whole object, or None where `text` is none of a whole object."""
    if not text or "-" in text:  # "...-7" is a checksum of seven parts' checksums
        return None
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    return int.from_bytes(raw, "big") if len(raw) == 4 else None
