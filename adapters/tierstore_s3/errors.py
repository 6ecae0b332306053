"""From what an S3 server says to what a caller can do about it.

Codes: "Error responses", Amazon S3 API Reference; the XMinio ones are MinIO's.
"""

from __future__ import annotations

import html
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime

from tierstore.errors import (
    AccessError,
    AlreadyExistsError,
    BlockedError,
    DamagedInTransitError,
    InvalidKeyError,
    NotFoundError,
    OutOfSpaceError,
    StorageError,
    ThrottledError,
    TierstoreError,
    TransientError,
    TruncatedFileError,
    UnreachableError,
    UnsupportedError,
)
from tierstore.http import Response
from tierstore.http.head import whole_number
from tierstore.http.masking import masked

RENEW = "renew the credentials (aws sso login, or a new session token)"
WRONG_KEY = "check the access key and the secret key"
NO_PERMISSION = (
    "the credentials need s3:GetObject, PutObject, DeleteObject, ListBucket, "
    "ListBucketMultipartUploads and AbortMultipartUpload here"
)
_LONGEST = 500  # signs of what a server says
_REGION = re.compile(r"\A[a-z0-9-]{1,40}\Z")
EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"})
_UNKNOWN_TOKEN = frozenset({"InvalidToken", "InvalidTokenId", "InvalidClientTokenId"})
RENEWABLE = EXPIRED | _UNKNOWN_TOKEN | {"InvalidAccessKeyId"}
NO_UPLOAD = "NoSuchUpload"

_BY_CODE: dict[str, tuple[type[TierstoreError], str]] = {
    **dict.fromkeys(EXPIRED | _UNKNOWN_TOKEN, (AccessError, RENEW)),
    "InvalidAccessKeyId": (AccessError, WRONG_KEY),
    "SignatureDoesNotMatch": (AccessError, WRONG_KEY),
    "AccessDenied": (AccessError, NO_PERMISSION),
    "RequestTimeTooSkewed": (AccessError, "set this machine's clock; the server's differs"),
    "NoSuchKey": (NotFoundError, ""),
    NO_UPLOAD: (NotFoundError, "the upload was aborted or has expired: begin it again"),
    "NoSuchBucket": (StorageError, "create the bucket, or correct the URL or the endpoint"),
    "PreconditionFailed": (AlreadyExistsError, ""),
    "ConditionalRequestConflict": (TransientError, ""),
    "OperationAborted": (TransientError, ""),
    "RequestTimeout": (UnreachableError, ""),
    "IncompleteBody": (UnreachableError, ""),
    "InternalError": (TransientError, ""),
    **dict.fromkeys(
        (
            "SlowDown", "SlowDownRead", "SlowDownWrite", "ServiceUnavailable", "Throttling",
            "ThrottlingException", "TooManyRequests", "RequestLimitExceeded",
            "BandwidthLimitExceeded",
        ),
        (ThrottledError, ""),
    ),
    **dict.fromkeys(
        ("BadDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch"),
        (DamagedInTransitError, ""),
    ),
    **dict.fromkeys(
        ("QuotaExceeded", "XMinioAdminBucketQuotaExceeded", "XMinioStorageFull",
         "InsufficientCapacity"),
        (OutOfSpaceError, "delete old checkpoints, or raise the quota"),
    ),
    **dict.fromkeys(
        ("XMinioParentIsObject", "XMinioObjectExistsAsDirectory"),
        (BlockedError, "this server keeps no object both at a name and below it"),
    ),
    "EntityTooLarge": (OutOfSpaceError, "the object is larger than this server takes"),
    "InvalidRange": (TruncatedFileError, ""),
    "KeyTooLongError": (InvalidKeyError, "shorten the tier's prefix or the run's name"),
    "XMinioInvalidObjectName": (InvalidKeyError, ""),
    "NotImplemented": (UnsupportedError, "this server lacks a part of the S3 protocol"),
    "MethodNotAllowed": (UnsupportedError, "this server lacks a part of the S3 protocol"),
    "InvalidObjectState": (StorageError, "the object is archived: restore it first"),
}  # fmt: skip

_BY_STATUS: dict[int, tuple[type[TierstoreError], str]] = {
    401: (AccessError, WRONG_KEY),
    403: (AccessError, NO_PERMISSION),
    404: (NotFoundError, ""),
    408: (UnreachableError, ""),
    409: (TransientError, ""),
    412: (AlreadyExistsError, ""),
    416: (TruncatedFileError, ""),
    429: (ThrottledError, ""),
    500: (TransientError, ""),
    501: (UnsupportedError, "this server lacks a part of the S3 protocol"),
    502: (UnreachableError, ""),
    503: (ThrottledError, ""),
    504: (UnreachableError, ""),
    507: (OutOfSpaceError, "delete old checkpoints, or raise the quota"),
}


def failure(
    status: int, code: str, message: str, headers: Mapping[str, str], *, doing: str
) -> TierstoreError:
    """Return the error that an answer means; `doing` names the operation."""
    by_status = _BY_STATUS.get(status, (TransientError if status >= 500 else StorageError, ""))
    kind, hint = _BY_CODE.get(code, by_status)
    region = _REGION.search(headers.get("x-amz-bucket-region", ""))
    if code in ("PermanentRedirect", "AuthorizationHeaderMalformed") or status in (301, 307):
        hint = f"set region = {region[0]!r}" if region else "set the bucket's region"
    said = f"{code[:_LONGEST]}: {message[:_LONGEST]}"
    text = masked(f"{doing}: {status} {said}".rstrip(": "))
    if not issubclass(kind, StorageError):
        return kind(text, hint=hint)
    return kind(text, hint=hint, retry_after=_retry_after(headers))


def answered(response: Response, *, doing: str) -> TierstoreError:
    """Return the error that an answer of the transport means."""
    code, message = error_code(response), _tag(response.body, "Message")
    return failure(response.status, code, message, response.headers, doing=doing)


def error_code(response: Response) -> str:
    """Return the S3 error code of an answer, or ""; an answer to HEAD has no body to hold one."""
    return _tag(response.body, "Code") or response.headers.get("x-minio-error-code", "")


@contextmanager
def naming(url: str, key: str) -> Iterator[None]:
    """Give every error from within the tier's URL and the key."""
    try:
        yield
    except TruncatedFileError as error:
        raise TruncatedFileError(f"{url}/{key}: {error.message}") from error
    except StorageError as error:
        error.url, error.key = url, key
        raise


def _tag(body: bytes, name: str) -> str:
    found = re.search(rf"<{name}>([^<]{{0,2000}})</{name}>", body.decode(errors="replace"))
    return html.unescape(found[1]) if found else ""


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds or a date (RFC 9110, section 10.2.3)."""
    text = headers.get("retry-after", "").strip()
    if (seconds := whole_number(text)) is not None:
        return float(seconds)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
