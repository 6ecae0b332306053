"""S3 on a real MinIO: what the server checks, who may do what, and how it is reached."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Bucket, Certificate
from tierstore.backend import abort_uploads
from tierstore.blocks import crc32c
from tierstore.errors import (
    AccessError,
    AlreadyExistsError,
    ConfigError,
    DamagedInTransitError,
    InvalidKeyError,
    NotFoundError,
    StorageError,
    TransientError,
    TruncatedFileError,
)
from tierstore.testing.servers import S3Server, ServerProcess, free_port
from tierstore.testing.servers.minio import find_minio
from tierstore_s3 import S3Backend, S3Options, open_s3
from tierstore_s3.errors import answered
from tierstore_s3.signing import encode_crc

pytestmark = [pytest.mark.minio, pytest.mark.usefixtures("minio_bucket", "no_leaks")]

PART = 8 * 1024 * 1024
Open = Callable[..., S3Backend]


@pytest.fixture
def opened(minio_bucket: Bucket) -> Iterator[Open]:
    """Open backends on the test's bucket; close them after the test."""
    with contextlib.ExitStack() as stack:

        def open_(url: str = "", **options: Any) -> S3Backend:
            given = S3Options(**{"part_size": PART, **options})
            return stack.enter_context(
                contextlib.closing(open_s3(url or f"s3://{minio_bucket.name}/t", given))
            )

        yield open_


def noise(size: int) -> bytes:
    import random

    return random.Random(size).randbytes(size)


def send(upload: Any, data: bytes, offsets: list[int] | None = None) -> None:
    view = memoryview(data)
    for offset in range(0, len(data), PART) if offsets is None else offsets:
        part = view[offset : offset + PART]
        upload.write(offset, part, crc32c(part))


# What the server checks


def test_wrong_checksums_are_refused_by_the_server(opened: Open, minio_bucket: Bucket) -> None:
    backend, data = opened(), noise(PART + 5)
    upload = backend.upload("k", len(data))
    with pytest.raises(DamagedInTransitError, match="XAmzContentChecksumMismatch"):
        upload.write(0, data[:PART], crc32c(data[:PART]) ^ 1)
    send(upload, data)
    parts = upload._all_parts()
    with pytest.raises(DamagedInTransitError, match="XAmzContentChecksumMismatch"):
        upload._complete(parts, crc32c(data) ^ 1, if_absent=False)  # past our own check
    with pytest.raises(DamagedInTransitError, match="the whole should have"):
        upload.commit(crc32c=crc32c(data) ^ 1)
    assert upload.commit(crc32c=crc32c(data)).crc32c == crc32c(data)
    assert minio_bucket.read("t/k") == data
    wrong = {"x-amz-checksum-crc32c": encode_crc(1)}
    answer = backend._objects._client.request("PUT", "t/x", headers=wrong, body=b"abc")
    assert isinstance(answered(answer, doing="PutObject"), DamagedInTransitError)
    assert minio_bucket.keys() == ["t/k"]
    minio_bucket.assert_no_uploads()


def test_the_servers_checksum_is_of_the_whole(opened: Open, minio_bucket: Bucket) -> None:
    backend, data = opened(), noise(2 * PART + 77)
    upload = backend.upload("k", len(data))
    send(upload, data)
    upload.commit()
    told = minio_bucket.client.head_object(
        Bucket=minio_bucket.name, Key="t/k", ChecksumMode="ENABLED"
    )
    assert told["ChecksumType"] == "FULL_OBJECT"
    assert told["ChecksumCRC32C"] == encode_crc(crc32c(data))
    assert backend.stat("k").crc32c == crc32c(data)


def test_a_checksum_of_checksums_is_none_of_the_whole(opened: Open, minio_bucket: Bucket) -> None:
    client, where = minio_bucket.client, {"Bucket": minio_bucket.name, "Key": "t/k"}
    upload = client.create_multipart_upload(**where, ChecksumAlgorithm="CRC32C")["UploadId"]
    part = client.upload_part(
        **where, UploadId=upload, PartNumber=1, Body=b"abc", ChecksumAlgorithm="CRC32C"
    )
    named = {"PartNumber": 1, "ETag": part["ETag"], "ChecksumCRC32C": part["ChecksumCRC32C"]}
    client.complete_multipart_upload(**where, UploadId=upload, MultipartUpload={"Parts": [named]})
    backend = opened()
    assert backend.stat("k").crc32c is None
    assert backend.create("k", b"abc", if_absent=True).size == 3  # found equal by reading
    with pytest.raises(AlreadyExistsError):
        backend.create("k", b"abd", if_absent=True)


def test_many_threads_create_one_object(opened: Open, minio_bucket: Bucket) -> None:
    backend = opened(concurrency=16)

    def work(number: int) -> bool:
        for _ in range(5000):
            try:
                backend.create("commit", f"by {number}".encode(), if_absent=True)
            except AlreadyExistsError:
                return False
            except TransientError:  # 409: another is being written at this moment
                time.sleep(0.02)
            else:
                return True
        raise AssertionError("never decided")

    with ThreadPoolExecutor(16) as pool:
        won = [number for number, did in enumerate(pool.map(work, range(16))) if did]
    assert len(won) == 1
    assert minio_bucket.read("t/commit") == f"by {won[0]}".encode()


def test_equal_creators_all_win(opened: Open) -> None:
    backend = opened(concurrency=8)
    with ThreadPoolExecutor(8) as pool:
        infos = list(pool.map(lambda _: _insist(backend), range(8)))
    assert {info.crc32c for info in infos} == {crc32c(b"same")}


def _insist(backend: S3Backend) -> Any:
    for _ in range(5000):
        with contextlib.suppress(TransientError):
            return backend.create("commit", b"same", if_absent=True)
        time.sleep(0.02)
    raise AssertionError("never decided")


# Uploads


def test_an_abandoned_upload_is_found_and_resumed(opened: Open, minio_bucket: Bucket) -> None:
    data, before = noise(3 * PART + 11), time.time()
    abandoned = opened().upload("k", len(data))
    send(abandoned, data, [0, 2 * PART])
    backend = opened()
    (found,) = backend.uploads()
    assert found.key == "k"
    assert before - 60 < found.begun < time.time() + 60
    upload = backend.upload("k", len(data), resume=abandoned.token)
    assert upload.done == [(0, PART), (2 * PART, PART)]
    send(upload, data, [PART, 3 * PART])
    assert upload.commit(if_absent=True).crc32c == crc32c(data)
    assert minio_bucket.read("t/k") == data
    minio_bucket.assert_no_uploads()
    with pytest.raises(NotFoundError, match="begin it again"):
        backend.upload("k", len(data), resume=abandoned.token)


def test_orphans_are_found_by_any_prefix(opened: Open, minio_bucket: Bucket) -> None:
    backend, beside = opened(), opened(f"s3://{minio_bucket.name}/other")
    for key in ("data/a", "data/b", "data-2/c"):
        backend.upload(key, 10)
    beside.upload("data/x", 10)
    assert sorted(upload.key for upload in backend.uploads()) == ["data-2/c", "data/a", "data/b"]
    assert sorted(upload.key for upload in backend.uploads("data/")) == ["data/a", "data/b"]
    assert [upload.key for upload in backend.uploads("data/b")] == ["data/b"]
    assert not list(backend.uploads("nothing"))
    for upload in [*backend.uploads(), *beside.uploads()]:
        for owner in (backend, beside, backend):  # again, or of another key, is no error
            owner.abort_upload(upload)
    minio_bucket.assert_no_uploads()


def test_all_uploads_of_one_key_are_aborted(opened: Open, minio_bucket: Bucket) -> None:
    backend = opened()
    for key in ("k", "k", "k2", "k/k"):
        backend.upload(key, 2 * PART)
    abort_uploads(backend, "k")
    assert sorted(minio_bucket.uploads()) == ["t/k/k", "t/k2"]
    for key in ("k/k", "k2", "nothing/there"):
        abort_uploads(backend, key)
    minio_bucket.assert_no_uploads()


def test_losing_uploads_are_aborted(opened: Open, minio_bucket: Bucket) -> None:
    backend, data = opened(), noise(PART + 1)
    backend.create("k", b"first")
    upload = backend.upload("k", len(data))
    send(upload, data)
    with pytest.raises(AlreadyExistsError):
        upload.commit(if_absent=True)
    minio_bucket.assert_no_uploads()
    assert minio_bucket.read("t/k") == b"first"


def test_empty_objects(opened: Open, minio_bucket: Bucket) -> None:
    backend = opened()
    assert backend.create("a", b"").size == 0
    upload = backend.upload("b", 0)
    upload.write(0, b"", 0)
    assert minio_bucket.keys() == ["t/a"]
    assert upload.commit(if_absent=True, crc32c=0).size == 0
    assert [(info.key, info.size) for info in backend.list("")] == [("a", 0), ("b", 0)]
    backend.read_into("b", 0, memoryview(bytearray()))
    with pytest.raises(TruncatedFileError, match="/t/b: "):
        backend.read_into("b", 0, memoryview(bytearray(1)))
    with pytest.raises(ValueError, match="0 bytes"):
        upload.write(0, b"x", 1)


def test_a_key_that_is_too_long_here(opened: Open) -> None:
    with pytest.raises((InvalidKeyError, StorageError)) as caught:
        opened().create("k" * 300, b"x")  # MinIO: 255 bytes between slashes
    assert not isinstance(caught.value, TransientError)


# Who may do what


def test_a_missing_bucket_is_no_missing_object(opened: Open) -> None:
    backend = opened("s3://no-such-bucket-anywhere/t")
    uses: list[Callable[[], object]] = [
        lambda: backend.stat("k"),
        lambda: backend.read_into("k", 0, memoryview(bytearray(1))),
        lambda: list(backend.list("")),
        lambda: backend.create("k", b""),
        lambda: backend.upload("k", 1),
        lambda: backend.delete(["k"]),
        lambda: list(backend.uploads()),
    ]
    for use in uses:
        with pytest.raises(
            StorageError, match=r"bucket does not exist.*create the bucket"
        ) as caught:
            use()
        assert not isinstance(caught.value, NotFoundError | TransientError)


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("AWS_SECRET_ACCESS_KEY", "hunter2hunter2", "SignatureDoesNotMatch"),
        ("AWS_ACCESS_KEY_ID", "nobody", "InvalidAccessKeyId"),
        ("AWS_SESSION_TOKEN", "made.up.token", "InvalidToken"),
    ],
)
def test_wrong_credentials(
    opened: Open, monkeypatch: pytest.MonkeyPatch, name: str, value: str, code: str
) -> None:
    monkeypatch.setenv(name, value)
    backend = opened()
    uses: list[Callable[[], object]] = [
        lambda: backend.create("k", b"x"),
        lambda: list(backend.list("")),
        lambda: backend.upload("k", 1),
        lambda: backend.read_into("k", 0, memoryview(bytearray(1))),
    ]
    for use in uses:
        with pytest.raises(AccessError, match=code) as caught:
            use()
        assert caught.value.hint
        assert "hunter2" not in str(caught.value)


def test_anonymous_is_refused_by_name(opened: Open) -> None:
    with pytest.raises(AccessError, match=r"AccessDenied.*s3:GetObject"):
        opened(anonymous=True).create("k", b"x")


def test_temporary_credentials(
    opened: Open, minio_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3

    sts = boto3.client("sts", endpoint_url=minio_bucket.server.endpoint)
    keys = sts.assume_role(RoleArn="arn:x:ignored:by:minio", RoleSessionName="test")["Credentials"]
    sts.close()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys["SecretAccessKey"])
    monkeypatch.setenv("AWS_SESSION_TOKEN", keys["SessionToken"])
    backend = opened()
    upload = backend.upload("k", 3)
    upload.write(0, b"abc", crc32c(b"abc"))
    assert upload.commit().size == 3


def test_keys_renewed_in_their_file_are_taken_up(
    opened: Open, minio_bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server, file = minio_bucket.server, tmp_path / "credentials"
    line = "[job]\naws_access_key_id = {}\naws_secret_access_key = {}\n"
    file.write_text(line.format("expired", "expired"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    backend, steered = opened(profile="job"), opened(profile="job")
    for _ in range(2):
        with pytest.raises(AccessError, match="InvalidAccessKeyId"):
            backend.create("k", b"x")
        with pytest.raises(AccessError, match="InvalidAccessKeyId"):
            list(steered.list(""))
    file.write_text(line.format(server.access_key, server.secret_key))
    with pytest.raises(TransientError, match="renewed"):
        backend.create("k", b"x")
    backend.create("k", b"x")
    with pytest.raises(TransientError, match="renewed"):
        list(steered.list(""))
    assert [info.key for info in steered.list("")] == ["k"]


# How it is reached


@contextlib.contextmanager
def own_minio(folder: Path, scheme: str, *arguments: str, **environment: str) -> Iterator[S3Server]:
    address = f"127.0.0.1:{free_port()}"
    process = ServerProcess(
        [str(find_minio()), "server", "--quiet", "--address", address, *arguments, f"{folder}/d"],
        log=folder / "log",
        env={
            "MINIO_ROOT_USER": "tierstore",
            "MINIO_ROOT_PASSWORD": "tierstore-test",
            "MINIO_BROWSER": "off",
            "MINIO_UPDATE": "off",
            "MINIO_CI_CD": "on",
            **environment,
        },
    )
    with process:
        yield S3Server(f"{scheme}://{address}", "tierstore", "tierstore-test")


def until_ready(backend: S3Backend) -> None:
    for _ in range(6000):
        try:
            list(backend.list(""))
        except TransientError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError("MinIO did not start")


def round_trip(backend: S3Backend) -> None:
    data = noise(PART + 3)
    upload = backend.upload("a b/é", len(data))
    send(upload, data)
    upload.commit(crc32c=crc32c(data))
    into = bytearray(len(data))
    backend.read_into("a b/é", 0, memoryview(into))
    assert into == data
    assert [info.key for info in backend.list("")] == ["a b/é"]


def test_tls_with_a_private_authority(
    minio_server: S3Server, tmp_path: Path, certificate: Certificate, monkeypatch: Any
) -> None:
    with own_minio(tmp_path, "https", "--certs-dir", str(certificate.folder)) as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        (tmp_path / "d" / "bucket").mkdir(parents=True, exist_ok=True)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate.cert))
        with contextlib.closing(open_s3("s3://bucket/t", S3Options(part_size=PART))) as backend:
            until_ready(backend)
            round_trip(backend)
        monkeypatch.delenv("AWS_CA_BUNDLE")
        named = S3Options(part_size=PART, ca_bundle=str(certificate.cert))
        with contextlib.closing(open_s3("s3://bucket/named", named)) as backend:
            round_trip(backend)
        with contextlib.closing(open_s3("s3://bucket/wild", S3Options(verify=False))) as backend:
            backend.create("k", b"x")
            assert backend.stat("k").size == 1
        with contextlib.closing(open_s3("s3://bucket/t")) as backend:
            for use in (lambda: backend.stat("k"), lambda: list(backend.list(""))):
                with pytest.raises(AccessError, match=r"not trusted.*ca_bundle"):
                    use()
        missing = S3Options(ca_bundle=str(tmp_path / "nowhere.pem"))
        with contextlib.closing(open_s3("s3://bucket/t", missing)) as backend:
            with pytest.raises(ConfigError, match=r"nowhere\.pem"):
                backend.stat("k")


def test_virtual_addressing_through_a_proxy(
    minio_server: S3Server, tmp_path: Path, monkeypatch: Any
) -> None:
    """MinIO, named as the proxy, is asked for http://bucket.s3.test/key, which nothing resolves."""
    with (
        own_minio(tmp_path, "http", MINIO_DOMAIN="s3.test") as server,
        monkeypatch.context() as env,
    ):
        for name, value in server.environment().items():
            env.setenv(name, value)
        for name in ("NO_PROXY", "no_proxy"):
            env.setenv(name, "")
        env.setenv("HTTP_PROXY", server.endpoint)
        (tmp_path / "d" / "bucket").mkdir(parents=True, exist_ok=True)
        options = S3Options(part_size=PART, endpoint_url="http://s3.test", addressing="virtual")
        with contextlib.closing(open_s3("s3://bucket/t", options)) as backend:
            until_ready(backend)
            round_trip(backend)
            assert backend._objects._client._current().base == "http://bucket.s3.test/"
