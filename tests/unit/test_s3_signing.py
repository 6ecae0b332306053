"""What S3 is sent, and what its answers are taken for."""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import time
from email.utils import formatdate
from typing import Any
from urllib.parse import urlsplit

import botocore.exceptions as boto
import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials

from tests.patience import PATIENCE
from tierstore import errors
from tierstore.blocks import BLOCK_SIZE, crc32c
from tierstore.errors import ConfigError, StorageError
from tierstore.http import Response
from tierstore.registry import open_backend
from tierstore_s3 import S3Options, open_s3
from tierstore_s3.client import _raise
from tierstore_s3.errors import answered, error_code, failure, naming
from tierstore_s3.signing import decode_crc, encode_crc, quote_key, sign

KEYS = ReadOnlyCredentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", None)
TEMPORARY = ReadOnlyCredentials("ASIAEXAMPLE", "another secret", "a//token==")
ODD = "a b/é+%&?#=;:@$,'()*!~_-.x/\U0001f600"


def reference(
    method: str, url: str, headers: dict[str, str], secret: str, region: str
) -> tuple[str, str]:
    """Signature Version 4 written from its specification: (SignedHeaders, Signature)."""
    parts = urlsplit(url)
    signed = {name.lower(): " ".join(value.split()) for name, value in headers.items()}
    signed.pop("authorization")
    signed["host"] = parts.netloc
    names = ";".join(sorted(signed))
    query = "&".join(sorted(part if "=" in part else f"{part}=" for part in parts.query.split("&")))
    canonical = "\n".join(
        [method, parts.path, query if parts.query else ""]
        + [f"{name}:{signed[name]}" for name in sorted(signed)]
        + ["", names, "UNSIGNED-PAYLOAD"]
    )
    stamp = signed["x-amz-date"]
    scope = f"{stamp[:8]}/{region}/s3/aws4_request"
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    key = f"AWS4{secret}".encode()
    for step in (stamp[:8], region, "s3", "aws4_request"):
        key = hmac.digest(key, step.encode(), "sha256")
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{digest}"
    return names, hmac.digest(key, text.encode(), "sha256").hex()


@pytest.mark.parametrize("credentials", [KEYS, TEMPORARY])
@pytest.mark.parametrize("query", ["", "?partNumber=7&uploadId=a.b_c-d%2Be"])
@pytest.mark.parametrize("server", ["http://127.0.0.1:9000/bucket", "https://b.s3.amazonaws.com"])
def test_signature_covers_all_but_the_body(
    credentials: ReadOnlyCredentials, query: str, server: str
) -> None:
    url = f"{server}/{quote_key(ODD)}{query}"
    given = {"x-amz-checksum-crc32c": "4waSgw==", "range": "bytes=0-9", "if-none-match": "*"}
    signed = sign("PUT", url, given, credentials, "eu-west-1")
    names, signature = reference("PUT", url, signed, credentials.secret_key, "eu-west-1")
    assert signed["Authorization"].endswith(f"SignedHeaders={names}, Signature={signature}")
    assert set(given) | {"host", "x-amz-content-sha256"} <= set(names.split(";"))
    assert ("x-amz-security-token" in names) is (credentials is TEMPORARY)
    assert credentials.secret_key not in str(signed)


def test_anonymous_requests_carry_no_proof() -> None:
    assert sign("GET", "https://x/k", {"a": "b"}, None, "") == {"a": "b"}


def test_keys_are_encoded_as_s3_wants() -> None:
    assert quote_key("a b/c+d%e~f") == "a%20b/c%2Bd%25e~f"
    assert quote_key("é\u20ac") == "%C3%A9%E2%82%AC"


def test_crc_in_headers() -> None:
    assert encode_crc(crc32c(b"123456789")) == "4waSgw=="
    assert decode_crc("4waSgw==") == 0xE3069283
    assert encode_crc(0) == "AAAAAA=="
    for other in (None, "", "4waSgw==-3", "4wa", "nonsense", "AAAAAAAAAAA=", "\xe9"):
        assert decode_crc(other) is None


ANSWERS = [
    (404, "NoSuchKey", "NotFoundError"),
    (404, "", "NotFoundError"),
    (404, "NoSuchUpload", "NotFoundError"),
    (404, "NoSuchBucket", "StorageError"),
    (403, "AccessDenied", "AccessError"),
    (403, "SignatureDoesNotMatch", "AccessError"),
    (403, "RequestTimeTooSkewed", "AccessError"),
    (403, "InvalidAccessKeyId", "AccessError"),
    (403, "", "AccessError"),
    (401, "", "AccessError"),
    (400, "ExpiredToken", "AccessError"),
    (400, "InvalidToken", "AccessError"),
    (400, "BadDigest", "DamagedInTransitError"),
    (400, "XAmzContentChecksumMismatch", "DamagedInTransitError"),
    (400, "EntityTooLarge", "OutOfSpaceError"),
    (507, "XMinioStorageFull", "OutOfSpaceError"),
    (400, "XMinioAdminBucketQuotaExceeded", "OutOfSpaceError"),
    (400, "KeyTooLongError", "InvalidKeyError"),
    (400, "RequestTimeout", "UnreachableError"),
    (400, "InvalidArgument", "StorageError"),
    (409, "ConditionalRequestConflict", "TransientError"),
    (412, "PreconditionFailed", "AlreadyExistsError"),
    (416, "InvalidRange", "TruncatedFileError"),
    (429, "", "ThrottledError"),
    (500, "InternalError", "TransientError"),
    (500, "", "TransientError"),
    (501, "NotImplemented", "UnsupportedError"),
    (502, "", "UnreachableError"),
    (503, "SlowDown", "ThrottledError"),
    (503, "", "ThrottledError"),
    (504, "", "UnreachableError"),
    (599, "", "TransientError"),
    (418, "", "StorageError"),
]


@pytest.mark.parametrize(("status", "code", "kind"), ANSWERS)
def test_every_answer_has_its_error(status: int, code: str, kind: str) -> None:
    error = failure(status, code, "text", {}, doing="PutObject")
    assert type(error) is getattr(errors, kind)
    assert f"PutObject: {status} {code}".strip() in str(error)
    if kind == "AccessError":
        assert error.hint


def test_an_answer_is_read_from_xml() -> None:
    body = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>a &amp; b</Message></Error>"
    at = formatdate(time.time() + 2 * PATIENCE, usegmt=True)
    for pause, least, most in (("7", 7, 7), (at, PATIENCE, 2 * PATIENCE)):
        error = answered(Response(503, {"retry-after": pause}, body), doing="GetObject")
        assert isinstance(error, errors.ThrottledError)
        assert error.message == "GetObject: 503 SlowDown: a & b"
        assert error.retry_after is not None
        assert least <= error.retry_after <= most
    plain = answered(Response(503, {"retry-after": "soon"}, b"\xff<html>"), doing="GetObject")
    assert isinstance(plain, errors.ThrottledError)
    assert plain.retry_after is None
    assert error_code(Response(404, {"x-minio-error-code": "NoSuchBucket"}, b"")) == "NoSuchBucket"


def test_the_wrong_region_is_named() -> None:
    error = failure(301, "PermanentRedirect", "", {"x-amz-bucket-region": "eu-north-1"}, doing="x")
    assert "set region = 'eu-north-1'" in str(error)


def test_errors_name_the_tier_and_the_key() -> None:
    with pytest.raises(StorageError, match="s3://b/p/k: text"):
        with naming("s3://b/p", "k"):
            raise StorageError("text")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (boto.NoCredentialsError(), errors.AccessError),
        (boto.PartialCredentialsError(provider="env", cred_var="x"), errors.AccessError),
        (boto.CredentialRetrievalError(provider="p", error_msg="m"), errors.AccessError),
        (boto.UnauthorizedSSOTokenError(), errors.AccessError),
        (boto.ProfileNotFound(profile="p"), ConfigError),
        (boto.ConnectTimeoutError(endpoint_url="http://x"), errors.DeadlineError),
        (boto.ReadTimeoutError(endpoint_url="http://x"), errors.DeadlineError),
        (boto.EndpointConnectionError(endpoint_url="http://x"), errors.UnreachableError),
        (boto.ConnectionClosedError(endpoint_url="http://x"), errors.UnreachableError),
        (boto.ProxyConnectionError(proxy_url="http://x"), errors.UnreachableError),
        (
            boto.SSLError(endpoint_url="https://x", error="CERTIFICATE_VERIFY_FAILED"),
            errors.AccessError,
        ),
        (boto.ParamValidationError(report="r"), StorageError),
        (ValueError("Invalid endpoint: x"), ConfigError),
    ],
)
def test_every_failure_of_boto_has_its_error(error: Exception, kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught:
        _raise(error)
    assert type(caught.value) is kind


def test_urls_and_options() -> None:
    backend = open_backend("s3://bucket/a%20b/c/?part_size=8388608", {"checksum": "none"})
    assert backend.url == "s3://bucket/a%20b/c"
    assert backend.capabilities.part_size == 8388608
    assert not backend.capabilities.server_checksum
    assert backend.capabilities.needs_read_back
    assert backend.capabilities.durable_on_commit
    backend.close()
    with pytest.raises(ConfigError, match="names no bucket"):
        open_s3("s3:///x")
    with pytest.raises(ConfigError, match="did you mean 'storage_class'"):
        open_backend("s3://bucket", {"storage_clas": "x"})
    with pytest.raises(ConfigError, match="'path'"):
        open_backend("s3://bucket", {"addressing": "paths"})
    wrong: list[dict[str, Any]] = [
        {"part_size": BLOCK_SIZE},
        {"part_size": 2 * BLOCK_SIZE + 1},
        {"read_size": 1},
        {"concurrency": 0},
        {"stall_timeout": 0.0},
        {"total_timeout": -1.0},
    ]
    for options in wrong:
        with pytest.raises(ConfigError, match=next(iter(options))):
            S3Options(**options)


def test_credentials_are_frozen_for_every_request(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys that are renewed while a job runs are in the next request."""
    count = tmp_path / "count"
    soon = (dt.datetime.now(dt.UTC) + dt.timedelta(seconds=30)).isoformat()
    script = tmp_path / "keys.sh"
    script.write_text(
        f"echo x >> {count}\n"
        f'echo \'{{"Version": 1, "AccessKeyId": "AK\'$(wc -l < {count})\'", '
        f'"SecretAccessKey": "s", "SessionToken": "t", "Expiration": "{soon}"}}\'\n'
    )
    config = tmp_path / "config"
    config.write_text(f"[profile job]\nregion = eu-west-3\ncredential_process = sh {script}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    backend = open_s3("s3://bucket", S3Options(profile="job"))
    login = backend._objects._client._current()
    assert (login.base, login.region) == (
        "https://bucket.s3.eu-west-3.amazonaws.com/",
        "eu-west-3",
    )
    seen = [login.frozen().access_key for _ in range(3)]
    assert len(set(seen)) == 3
    backend.close()


@pytest.mark.parametrize(
    ("url", "options", "base"),
    [
        ("s3://bucket", {}, "https://bucket.s3.amazonaws.com/"),
        ("s3://buck.et", {}, "https://s3.amazonaws.com/buck.et/"),
        ("s3://bucket", {"region": "eu-west-1"}, "https://bucket.s3.eu-west-1.amazonaws.com/"),
        (
            "s3://bucket",
            {"region": "eu-west-1", "addressing": "path"},
            "https://s3.eu-west-1.amazonaws.com/bucket/",
        ),
        ("s3://bucket", {"endpoint_url": "http://h:9000"}, "http://h:9000/bucket/"),
        ("s3://bucket", {"endpoint_url": "https://h/sub"}, "https://h/sub/bucket/"),
        (
            "s3://bucket",
            {"endpoint_url": "https://h", "addressing": "virtual"},
            "https://bucket.h/",
        ),
        ("s3://bucket", {"anonymous": True, "region": "us-west-2"},
         "https://bucket.s3.us-west-2.amazonaws.com/"),
    ],
)  # fmt: skip
def test_addresses_are_those_of_boto(
    url: str, options: dict[str, Any], base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AK")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    backend = open_s3(url, S3Options(**options))
    assert backend._objects._client._current().base == base
    backend.close()


def test_nobody_may_be_nobody_by_accident() -> None:
    with pytest.raises(errors.AccessError, match="anonymous = true"):
        open_s3("s3://bucket").stat("k")


def test_an_unknown_profile_is_a_mistake_of_the_configuration() -> None:
    with pytest.raises(ConfigError, match="nosuch"):
        open_s3("s3://bucket", S3Options(profile="nosuch")).stat("k")


ARN = "arn:aws:{}:eu-west-3:123456789012:{}"


@pytest.mark.parametrize(
    ("bucket", "service", "host"),
    [
        ("bucket", "s3", "bucket.s3.eu-west-1"),
        (ARN.format("s3", "accesspoint:ap"), "s3", "ap-123456789012.s3-accesspoint.eu-west-3"),
        (
            ARN.format("s3-outposts", "outpost:op-01ac5d28a6a232904:accesspoint:ap"),
            "s3-outposts",
            "ap-123456789012.op-01ac5d28a6a232904.s3-outposts.eu-west-3",
        ),
        (
            ARN.format("s3-object-lambda", "accesspoint:ol"),
            "s3-object-lambda",
            "ol-123456789012.s3-object-lambda.eu-west-3",
        ),
        (
            "test-accessp-o0b1d075431d83bebde8xz5w8ijx1qzlbp3i3kuse10--op-s3",
            "s3-outposts",
            "op-0b1d075431d83bebd.s3-outposts.eu-west-1",
        ),
    ],
)
def test_every_address_is_signed_as_botocore_signs_it(
    bucket: str, service: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the service and region of the address, which may not be those that were asked for."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEYS.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEYS.secret_key)
    backend = open_s3(f"s3://{bucket}/p", S3Options(region="eu-west-1"))
    login = backend._objects._client._current()
    region = "eu-west-1" if ".eu-west-1" in f".{host.rpartition('.')[2]}" else "eu-west-3"
    assert (login.region, login.service) == (region, service)
    assert host in login.base
    request = AWSRequest("GET", f"{login.base}p/k", headers={"range": "bytes=0-1"})
    request.context["payload_signing_enabled"] = False
    monkeypatch.setattr(S3SigV4Auth, "_should_sha256_sign_payload", lambda *_: False)
    S3SigV4Auth(KEYS, service, region).add_auth(request)
    ours = sign("GET", request.url, {"range": "bytes=0-1"}, KEYS, region, service)
    assert ours["Authorization"].split(", ")[1:] == request.headers["Authorization"].split(", ")[1:]
    backend.close()


def test_a_scheme_that_is_new_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one whose name tells nothing, as botocore's own rules may resolve it some day."""
    monkeypatch.setattr("tierstore_s3.address._UNSUPPORTED", ())
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AK")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    for bucket in ("fast--usw2-az1--x-s3", "arn:aws:s3::123456789012:accesspoint:abc.mrap"):
        backend = open_s3(f"s3://{bucket}/p", S3Options(region="us-west-2"))
        with pytest.raises(ConfigError, match="signature that is not supported"):
            backend.stat("k")
        backend.close()


@pytest.mark.parametrize(
    ("variables", "region"),
    [
        ({"AWS_REGION": "eu-west-2"}, "eu-west-2"),
        ({"AWS_REGION": "eu-west-2", "AWS_DEFAULT_REGION": "eu-west-1"}, "eu-west-2"),
        ({"AWS_DEFAULT_REGION": "eu-west-1"}, "eu-west-1"),
        ({"AWS_REGION": "", "AWS_DEFAULT_REGION": "eu-west-1"}, "eu-west-1"),
        ({"AWS_REGION": ""}, "us-east-1"),
        ({"AWS_DEFAULT_REGION": ""}, "us-east-1"),
        ({"AWS_REGION": "", "AWS_DEFAULT_REGION": "", "AWS_PROFILE": "job"}, "eu-west-3"),
        ({"AWS_PROFILE": "job"}, "eu-west-3"),
    ],
)
def test_an_empty_region_is_none(
    variables: dict[str, str], region: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text("[profile job]\nregion = eu-west-3\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    variables = {"AWS_ACCESS_KEY_ID": "AK", "AWS_SECRET_ACCESS_KEY": "s", **variables}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    backend = open_s3("s3://bucket")
    assert backend._objects._client._current().region == region
    backend.close()
