"""What is called a secret stays out of logs and errors, and what is not called so stays in."""

from __future__ import annotations

import logging
import time

import pytest

from tierstore.http.masking import Masked, as_cause, mask, masked

SECRET = "FwoGZXIvYXdzEJr-h/unter2"


@pytest.mark.parametrize(
    "text",
    [
        f"GET /x?op=OPEN&delegation={SECRET}&namenoderpcaddress=h:9000",
        f"x-amz-security-token:{SECRET}",
        f"headers: {{'X-Amz-Security-Token': '{SECRET}'}}",
        f"b'AWS4', 'Authorization': b'AWS4-HMAC-SHA256 Credential=A, Signature={SECRET}'",
        f"<SessionToken>{SECRET}</SessionToken>",
        f'{{"SecretAccessKey": "{SECRET}"}}',
        f"https://b/k?X-Amz-Signature={SECRET}&x=1",
        f"https://b/k?X-Amz-Security-Token%3D{SECRET}",
        f'Cookie: hadoop.auth="u=a&s={SECRET}"',
        f'Set-Cookie: hadoop.auth="u=a&s={SECRET}"; Path=/',
        f"Authorization: Basic {SECRET}",
        f"Authorization: Negotiate {SECRET}",
        f"https://user:{SECRET.replace('/', '.')}@host/x",
        f"password={SECRET}",
        f"Signature:\n{SECRET}",
    ],
)
def test_secrets_are_masked(text: str) -> None:
    clean = masked(text)
    assert SECRET[:12] not in clean
    assert "***" in clean


@pytest.mark.parametrize(
    "text",
    [
        "SecretManager$InvalidToken: token (token for alice: HDFS_DELEGATION_TOKEN) is expired",
        "GET http://h:9870/webhdfs/v1/a/b?op=OPEN&user.name=me",
        "SignatureDoesNotMatch: the signature we calculated does not match",
        "s3://bucket/tokenizer.json: 404 NoSuchKey",
        "mail me@host",
    ],
)
def test_what_is_no_secret_is_said(text: str) -> None:
    assert masked(text) == text


def test_records_of_loggers_below_are_masked(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("masked_parent.child")
    mask("masked_parent", Masked(r"[0-9]{4,}"))
    with caplog.at_level(logging.DEBUG):
        log.debug("token=%s and %s, 100%%", SECRET, "12345")
    assert caplog.messages == ["token=*** and ***, 100%"]


def test_masking_takes_little_time_whatever_a_server_says() -> None:
    texts = ("-a" * 50_000, "token" * 20_000, "://" * 30_000, "authorization:AWS4-" * 5000)
    begun = time.process_time()
    for text in texts:
        masked(text)
    assert time.process_time() - begun < 10  # minutes, if a repetition had no bound


def test_a_cause_is_no_way_around() -> None:
    """A traceback shows what an error was raised from, too."""
    harmless, telling = ValueError("no such profile"), ValueError("token=0123456789abcdef")
    assert as_cause(harmless) is harmless
    assert as_cause(telling) is None
