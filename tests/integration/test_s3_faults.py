"""S3 behind a network and a server that fail: every fault has its error, and leaks nothing."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.conftest import Bucket
from tests.forwarding import forwarding
from tests.s3_faults import Misbehaving, Misdeed, misbehaving
from tierstore.blocks import crc32c
from tierstore.errors import (
    AccessError,
    DamagedInTransitError,
    DeadlineError,
    StorageError,
    ThrottledError,
    TransientError,
    UnreachableError,
)
from tierstore_s3 import S3Backend, S3Options, open_s3

pytestmark = [pytest.mark.minio, pytest.mark.usefixtures("minio_bucket", "no_leaks")]

PART = 8 * 1024 * 1024
DATA = bytes(range(256)) * (PART // 256) + b"the rest"
PATIENT, QUICK = S3Options(part_size=PART), S3Options(part_size=PART, stall_timeout=1.0)


@pytest.fixture
def forwards() -> Iterator[None]:
    """A proxy that does as it is told; the one that misbehaves is the server."""
    with forwarding() as through, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HTTP_PROXY", through.url)
        patch.delenv("http_proxy", raising=False)
        for name in ("NO_PROXY", "no_proxy"):
            patch.setenv(name, "")
        yield
        assert through.heads


@pytest.fixture
def proxy(minio_bucket: Bucket) -> Iterator[Misbehaving]:
    with misbehaving(minio_bucket.server.address) as proxy:
        yield proxy


@pytest.fixture
def backend(
    request: pytest.FixtureRequest,
    minio_bucket: Bucket,
    proxy: Misbehaving,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[S3Backend]:
    """One that gives up soon where the test is about a stall."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    options = QUICK if "stall" in request.node.name else PATIENT
    with contextlib.closing(open_s3(f"s3://{minio_bucket.name}/t", options)) as backend:
        yield backend


def write(backend: S3Backend, **how: Any) -> Any:
    """One attempt at an upload, aborted if it fails, as every writer does."""
    upload = backend.upload("k", len(DATA))
    try:
        for offset in range(0, len(DATA), PART):
            part = memoryview(DATA)[offset : offset + PART]
            upload.write(offset, part, crc32c(part))
        return upload.commit(crc32c=crc32c(DATA), **how)
    except BaseException:
        upload.abort()
        raise


def insist(work: Callable[[], Any], times: int = 20) -> Any:
    for _ in range(times - 1):
        with contextlib.suppress(TransientError):
            return work()
    return work()


USES: dict[str, tuple[str, Callable[[S3Backend], object]]] = {
    "stat": ("HEAD", lambda b: b.stat("there")),
    "read": ("GET .*there", lambda b: b.read_into("there", 1, memoryview(bytearray(PART)))),
    "list": (r"GET .*list-type=2", lambda b: list(b.list(""))),
    "create": ("PUT", lambda b: b.create("k", b"x", if_absent=True)),
    "delete": ("POST .*delete", lambda b: b.delete(["k"])),
    "begin": ("POST .*uploads", write),
    "part": ("PUT .*partNumber=1", write),
    "complete": ("POST .*uploadId", write),
}
FAULTS: dict[str, tuple[dict[str, Any], type[StorageError]]] = {
    "500": ({"deed": "answer", "status": 500, "code": "InternalError"}, TransientError),
    "503": ({"deed": "answer", "headers": "Retry-After: 2\r\n"}, ThrottledError),
    "502": ({"deed": "answer", "status": 502, "code": ""}, UnreachableError),
    "reset": ({"deed": "reset"}, UnreachableError),
    "lose": ({"deed": "lose"}, UnreachableError),
    "stall": ({"deed": "stall"}, DeadlineError),
    "expired": ({"deed": "answer", "status": 400, "code": "ExpiredToken"}, AccessError),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("use", USES)
def test_every_request_and_every_fault(
    backend: S3Backend, proxy: Misbehaving, minio_bucket: Bucket, use: str, fault: str
) -> None:
    minio_bucket.write("t/there", DATA)
    pattern, work = USES[use]
    what, kind = FAULTS[fault]
    proxy.misdeeds.append(Misdeed(pattern, **what))
    if (use, fault) == ("stat", "expired"):
        kind = StorageError  # an answer to HEAD has no body that could say so
    for _ in range(20):  # where all is slow, another request may stall before this one
        with pytest.raises(kind) as caught:
            work(backend)
        if proxy.misdeeds[0].done or fault != "stall":
            break
    assert proxy.misdeeds[0].done == 1
    silent = re.search("no byte moved for 1 s|Read timeout", str(caught.value))  # ours, or boto's
    assert bool(silent) is (fault == "stall")
    assert caught.value.url == backend.url
    if use not in ("list", "delete", "stat"):
        assert caught.value.key in ("k", "there")
    if fault == "503":
        assert caught.value.retry_after == 2
    if kind is not AccessError and use != "stat":
        insist(lambda: work(backend))  # it passes, and what it left is no obstacle
        if pattern.startswith("P") and use not in ("delete", "create"):
            assert minio_bucket.read("t/k") == DATA
    backend.delete(["k"])
    if (use, fault) == ("begin", "stall"):
        return  # nothing reached the server
    minio_bucket.assert_no_uploads()


@pytest.mark.usefixtures("forwards")
@pytest.mark.parametrize("fault", ["reset", "lose", "stall"])
@pytest.mark.parametrize("use", ["read", "list", "part", "complete"])
def test_faults_behind_a_proxy(
    backend: S3Backend, proxy: Misbehaving, minio_bucket: Bucket, use: str, fault: str
) -> None:
    test_every_request_and_every_fault(backend, proxy, minio_bucket, use, fault)


def test_a_half_sent_body_is_no_object(
    backend: S3Backend, proxy: Misbehaving, minio_bucket: Bucket
) -> None:
    minio_bucket.write("t/there", DATA)
    into = bytearray(PART)
    proxy.misdeeds.append(Misdeed("GET .*there", "halve"))
    with pytest.raises(UnreachableError, match=f"{PART // 2} of {PART} bytes"):
        backend.read_into("there", 0, memoryview(into))
    backend.read_into("there", 0, memoryview(into))
    assert into == DATA[:PART]


@pytest.mark.parametrize("pattern", ["PUT .*partNumber=1", "PUT [^?]*$"])
def test_a_byte_flipped_on_the_way_is_refused(
    backend: S3Backend, proxy: Misbehaving, minio_bucket: Bucket, pattern: str
) -> None:
    proxy.misdeeds.append(Misdeed(pattern, "flip"))
    with pytest.raises(DamagedInTransitError):
        write(backend) if "part" in pattern else backend.create("k", DATA)
    assert minio_bucket.keys() == []
    minio_bucket.assert_no_uploads()


def test_an_early_refusal_is_heard(
    backend: S3Backend, proxy: Misbehaving, minio_bucket: Bucket
) -> None:
    proxy.misdeeds.append(Misdeed("PUT", "refuse", headers="Retry-After: 1\r\n"))
    with pytest.raises(ThrottledError) as caught:
        backend.create("k", bytes(64 << 20))
    assert caught.value.retry_after == 1
    assert minio_bucket.keys() == []


def test_a_lost_answer_to_the_commit_record(
    backend: S3Backend, proxy: Misbehaving, minio_bucket: Bucket
) -> None:
    """icechunk's 017: the conditional PUT succeeded, its answer was lost, the repeat gets 412."""
    proxy.misdeeds.append(Misdeed("PUT", "lose"))
    with pytest.raises(UnreachableError):
        backend.create("k", b"mine", if_absent=True)
    assert minio_bucket.read("t/k") == b"mine"
    info = insist(lambda: backend.create("k", b"mine", if_absent=True))
    assert info.crc32c == crc32c(b"mine")
    assert proxy.requests[-1].startswith("HEAD")  # it looked


@pytest.mark.parametrize("if_absent", [False, True])
def test_a_lost_answer_to_complete(
    backend: S3Backend, proxy: Misbehaving, minio_bucket: Bucket, *, if_absent: bool
) -> None:
    proxy.misdeeds.append(Misdeed("POST .*uploadId", "lose"))
    upload = backend.upload("k", len(DATA))
    for offset in (0, PART):
        part = memoryview(DATA)[offset : offset + PART]
        upload.write(offset, part, crc32c(part))
    with pytest.raises(UnreachableError):
        upload.commit(if_absent=if_absent)
    info = upload.commit(if_absent=if_absent)
    assert (info.size, info.crc32c) == (len(DATA), crc32c(DATA))
    upload.abort()
    assert minio_bucket.read("t/k") == DATA
    minio_bucket.assert_no_uploads()


def test_a_conflict_is_no_lost_race(
    backend: S3Backend, proxy: Misbehaving, minio_bucket: Bucket
) -> None:
    what = {"status": 409, "code": "ConditionalRequestConflict"}
    proxy.misdeeds.append(Misdeed("PUT", "answer", **what))
    proxy.misdeeds.append(Misdeed("POST .*uploadId", "answer", **what))
    for work in (lambda: backend.create("c", b"x", if_absent=True), lambda: write(backend)):
        with pytest.raises(TransientError) as caught:
            work()
        assert type(caught.value) is TransientError
        work()


@pytest.mark.parametrize("times", [2, 3])
def test_a_denial_that_passes(backend: S3Backend, proxy: Misbehaving, times: int) -> None:
    """MinIO's, when the folder of a new object goes with its last neighbour."""
    denial = Misdeed("PUT", "answer", status=403, code="AccessDenied", times=times)
    proxy.misdeeds.append(denial)
    refused = pytest.raises(AccessError, match=r"AccessDenied.*s3:GetObject, PutObject")
    with refused if times == 3 else contextlib.nullcontext():
        backend.create("k", b"x")
    assert denial.done == times


def test_an_error_in_a_complete_that_said_200(backend: S3Backend, proxy: Misbehaving) -> None:
    """S3 may answer 200 to complete and put the error into the body."""
    proxy.misdeeds.append(Misdeed("POST .*uploadId", "answer", status=200, code="InternalError"))
    with pytest.raises(TransientError):
        write(backend)


def test_the_server_is_gone(
    minio_bucket: Bucket, proxy: Misbehaving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with contextlib.closing(open_s3(f"s3://{minio_bucket.name}/t", PATIENT)) as backend:
        for use in ("stat", "read", "list", "create", "begin"):
            with pytest.raises(UnreachableError):
                USES[use][1](backend)


def test_a_connection_lost_and_found(minio_bucket: Bucket, toxics: Any) -> None:
    """Toxiproxy: a line that is cut, silent, gone, and then slow and in small pieces."""
    proxy = toxics.proxy(minio_bucket.server.address)
    url, options = f"s3://{minio_bucket.name}/t", replace(PATIENT, endpoint_url=proxy.endpoint)
    with (
        contextlib.closing(open_s3(url, options)) as backend,
        contextlib.closing(open_s3(url, replace(options, stall_timeout=2.0))) as hasty,
    ):
        upload = backend.upload("k", len(DATA))
        again = hasty.upload("k", len(DATA), resume=upload.token)
        part = memoryview(DATA)[:PART]
        with proxy.toxic("limit_data", stream="upstream", bytes=3 << 20):
            with pytest.raises(UnreachableError):
                upload.write(0, part, crc32c(part))
        with proxy.toxic("timeout", timeout=0):
            with pytest.raises(DeadlineError):
                again.write(0, part, crc32c(part))
        proxy.down()
        with pytest.raises(UnreachableError):
            upload.write(0, part, crc32c(part))
        proxy.up()
        with proxy.toxic("latency", latency=250), proxy.toxic("slicer", average_size=64):
            upload.write(0, part, crc32c(part))
        upload.write(PART, memoryview(DATA)[PART:], crc32c(DATA[PART:]))
        assert upload.commit().crc32c == crc32c(DATA)
    toxics.close()  # its own connection, which would pass for one of ours
    minio_bucket.assert_no_uploads()
