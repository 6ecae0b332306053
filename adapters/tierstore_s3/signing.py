"""Requests signed in their headers, with the body left out of the signature.

Hashing a body with SHA-256 costs more than sending it. The signature covers all headers instead,
among them `x-amz-checksum-crc32c`, by which the server checks the body. (Signature Version 4 with
UNSIGNED-PAYLOAD: "Authenticating Requests: Using the Authorization Header", Amazon S3 API.)
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from urllib.parse import quote

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials, ReadOnlyCredentials

UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD"
CRC_HEADER = "x-amz-checksum-crc32c"


class _HeaderAuth(S3SigV4Auth):  # type: ignore[misc]
    def payload(self, request: AWSRequest) -> str:  # noqa: ARG002
        return UNSIGNED_PAYLOAD


def sign(
    method: str,
    url: str,
    headers: Mapping[str, str],
    credentials: Credentials | ReadOnlyCredentials | None,
    region: str,
) -> dict[str, str]:
    """Return `headers` with those that prove who sends them.

    Args:
        method: the HTTP method.
        url: percent-encoded, as it is sent.
        headers: all that the server shall trust.
        credentials: of this moment; None sends anonymously.
        region: of the bucket.
    """
    if credentials is None:
        return dict(headers)
    request = AWSRequest(method=method, url=url, headers=dict(headers))
    _HeaderAuth(credentials, "s3", region).add_auth(request)
    return dict(request.headers.items())


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
    except binascii.Error:
        return None
    return int.from_bytes(raw, "big") if len(raw) == 4 else None
