"""Fixtures shared by all tests: real servers, fresh buckets, leak detection."""

from __future__ import annotations

import contextlib
import gc
import os
import secrets
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import running
from tests.hdfs_zone import key_provider
from tests.patience import PATIENCE
from tierstore.testing.servers import (
    HdfsServer,
    S3Server,
    ServerUnavailableError,
    Toxiproxy,
    hdfs,
    minio,
    moto,
    toxiproxy,
)

REQUIRE_SERVERS = "TIERSTORE_REQUIRE_SERVERS"
_GRACE_SECONDS = PATIENCE
_LEFT_OUT = pytest.StashKey[dict[str, str]]()

pytest_addoption = running.pytest_addoption
pytest_collection_modifyitems = running.pytest_collection_modifyitems
pytest_xdist_make_scheduler = running.pytest_xdist_make_scheduler


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # As shells start what runs in the background; programs under test would inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.stash[_LEFT_OUT] = {}
    # Journals of commands stay out of the home: another version's would be refused.
    state = tempfile.TemporaryDirectory(prefix="tierstore-state-")
    os.environ["XDG_STATE_HOME"] = state.name
    config.add_cleanup(state.cleanup)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):  # of pytest-xdist, in a worker
        session.config.workeroutput["left_out"] = session.config.stash[_LEFT_OUT]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take what a worker of pytest-xdist left out into the summary."""
    node.config.stash[_LEFT_OUT].update(getattr(node, "workeroutput", {}).get("left_out", {}))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for server, why in config.stash[_LEFT_OUT].items():
        terminalreporter.section(f"LEFT OUT: every test that needs {server}", red=True, bold=True)
        terminalreporter.line(why, red=True)
    running.report(terminalreporter)


@pytest.fixture
def shm_path() -> Iterator[Path]:
    """An empty folder in memory, where pools stage: a disk may lack the reserve they leave."""
    with tempfile.TemporaryDirectory(prefix="tierstore-test-", dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def _isolated_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: Any) -> None:
    """No credentials, configuration or proxies of whoever runs the tests."""
    nowhere = tmp_path_factory.getbasetemp() / "nowhere"
    for name in list(os.environ):
        if name.startswith(("AWS_", "HADOOP_")) or name == "TIERSTORE_CONFIG":
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(nowhere))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(nowhere))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1,localhost")


@contextlib.contextmanager
def or_skip(config: pytest.Config, name: str, start: Callable[[], Any]) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(start())
        except ServerUnavailableError as error:
            if os.environ.get(REQUIRE_SERVERS) == "1":
                pytest.fail(f"{REQUIRE_SERVERS}=1, but: {error}", pytrace=False)
            config.stash[_LEFT_OUT][name] = str(error)
            pytest.skip(f"no {name}: {error}")
        yield server


@pytest.fixture(scope="session")
def minio_server(pytestconfig: pytest.Config) -> Iterator[S3Server]:
    """A real MinIO, one for the whole session."""
    with or_skip(pytestconfig, "MinIO", minio) as server:
        yield server


@pytest.fixture(scope="session")
def moto_server(pytestconfig: pytest.Config) -> Iterator[S3Server]:
    """moto's S3, in this process, one for the whole session."""
    with or_skip(pytestconfig, "moto", moto) as server:
        yield server


@pytest.fixture(scope="session")
def toxics(pytestconfig: pytest.Config) -> Iterator[Toxiproxy]:
    """A real toxiproxy, one for the whole session; each test makes proxies of its own."""
    with or_skip(pytestconfig, "toxiproxy", toxiproxy) as server:
        yield server


@pytest.fixture(scope="session")
def hdfs_server(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[HdfsServer]:
    """A real namenode and two datanodes, for the whole session: whoever stops one restarts it.

    A page of its listings is ten names, and it has a key for encryption zones.
    """

    def start() -> contextlib.AbstractContextManager[HdfsServer]:
        if os.environ.get("TIERSTORE_TEST_HDFS"):
            return hdfs()
        keys = key_provider(tmp_path_factory.mktemp("hdfs-keys"))
        closing = "dfs.client.block.write.locateFollowingBlock"
        settings = {
            "dfs.ls.limit": "10",
            "hadoop.security.key.provider.path": keys,
            # A file that is closed before its block was reported waits for 5 ms, not for 400.
            f"{closing}.initial.delay.ms": "5",
            f"{closing}.retries": "10",
        }
        return hdfs(settings=settings)

    with pytest.MonkeyPatch.context() as patch:
        # Its JVMs live for minutes: thorough compilation does not pay.
        patch.setenv("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1")
        with or_skip(pytestconfig, "HDFS", start) as server:
            yield server


@dataclass(frozen=True)
class HdfsRoot:
    """A folder of one test, with a second path to what is in it."""

    server: HdfsServer
    path: str

    @property
    def url(self) -> str:
        return self.server.url(self.path)

    def keys(self, prefix: str = "", *, folders: bool = False) -> list[str]:
        """The files below it, hidden ones too, and on demand the folders, relative to it."""
        found = self.server.client().walk(self.path, folders=folders)
        keys = [path.removeprefix(f"{self.path}/") for path in found]
        return [key for key in keys if key.startswith(prefix)]

    def read(self, key: str) -> bytes:
        return self.server.client().read(f"{self.path}/{key}")

    def write(self, key: str, data: bytes) -> None:
        self.server.client().write(f"{self.path}/{key}", data)


@pytest.fixture
def hdfs_root(hdfs_server: HdfsServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[HdfsRoot]:
    """A fresh folder on HDFS; HADOOP_USER_NAME is its owner for the length of the test."""
    for name, value in hdfs_server.environment().items():
        monkeypatch.setenv(name, value)
    root = HdfsRoot(hdfs_server, f"/tests/{secrets.token_hex(6)}")
    hdfs_server.client().make_folder(root.path)
    yield root
    hdfs_server.client().remove(root.path)


@dataclass(frozen=True)
class Bucket:
    """A bucket of one test, with a second path to what is in it."""

    server: S3Server
    name: str
    client: Any

    @property
    def url(self) -> str:
        return self.server.url(self.name)

    def keys(self, prefix: str = "") -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.name, Prefix=prefix
        )
        return [entry["Key"] for page in pages for entry in page.get("Contents", ())]

    def read(self, key: str) -> bytes:
        with self.client.get_object(Bucket=self.name, Key=key)["Body"] as body:
            data: bytes = body.read()
        return data

    def write(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=data)

    def uploads(self) -> list[str]:
        """Keys of unfinished multipart uploads."""
        answer = self.client.list_multipart_uploads(Bucket=self.name)
        return [upload["Key"] for upload in answer.get("Uploads", ())]

    def assert_no_uploads(self) -> None:
        left = self.uploads()
        assert not left, f"multipart uploads left open: {left}"


@contextlib.contextmanager
def bucket_of(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """Make a fresh bucket; AWS_* point at its server from then on."""
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    client = server.client()
    bucket = Bucket(server, server.new_bucket(), client)
    try:
        yield bucket
    finally:
        server.remove_bucket(bucket.name)
        client.close()


@pytest.fixture
def minio_bucket(minio_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A fresh bucket on MinIO; AWS_* point at it for the length of the test."""
    with bucket_of(minio_server, monkeypatch) as bucket:
        yield bucket


@pytest.fixture
def moto_bucket(moto_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A fresh bucket on moto; AWS_* point at it for the length of the test."""
    with bucket_of(moto_server, monkeypatch) as bucket:
        yield bucket


@pytest.fixture(params=["moto", pytest.param("minio", marks=pytest.mark.minio)])
def s3_bucket(request: pytest.FixtureRequest) -> Bucket:
    """A fresh bucket, once on moto and once on MinIO."""
    bucket: Bucket = request.getfixturevalue(f"{request.param}_bucket")
    return bucket


def _descriptors() -> dict[str, str]:
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the listing's own descriptor is gone by now
            found[entry.name] = str(entry.readlink())
    return found


def _threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("tierstore")}


@pytest.fixture
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail if the test leaves threads named tierstore* or open file descriptors behind."""
    with leaving_nothing():
        yield
        for name in {"s3_bucket", "moto_bucket", "minio_bucket"} & set(request.fixturenames):
            request.getfixturevalue(name).client.close()  # the second path's own connections


@contextlib.contextmanager
def leaving_nothing(kind: str = "") -> Iterator[None]:
    """Fail if threads named tierstore* or file descriptors, of one kind only, are left behind.

    What is there before is frozen, as to look through all of torch takes half a second each time;
    what a look at the rest alone finds left behind is judged by a look at everything.
    """
    threads, descriptors = _threads(), _descriptors()
    gc.freeze()
    try:
        yield
    except BaseException:
        gc.unfreeze()
        raise
    deadline = time.monotonic() + _GRACE_SECONDS
    while True:
        gc.collect()
        gc.unfreeze()
        new_threads = sorted(thread.name for thread in _threads() - threads)
        opened = {fd: what for fd, what in _descriptors().items() if descriptors.get(fd) != what}
        opened = {fd: what for fd, what in opened.items() if what.startswith(kind)}
        if not new_threads and not opened:
            return
        if time.monotonic() > deadline:
            pytest.fail(f"left behind: threads {new_threads}, file descriptors {opened}")
        time.sleep(0.05)


@dataclass(frozen=True)
class Certificate:
    """A certificate of 127.0.0.1 that signs itself; the folder is laid out as MinIO wants it."""

    folder: Path

    @property
    def cert(self) -> Path:
        return self.folder / "public.crt"

    @property
    def key(self) -> Path:
        return self.folder / "private.key"


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """A fresh self-signed certificate for servers on 127.0.0.1."""
    import datetime as dt
    import ipaddress

    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tierstore test")])
    now = dt.datetime.now(dt.UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    found = Certificate(tmp_path_factory.mktemp("certificate"))
    found.cert.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    found.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return found
