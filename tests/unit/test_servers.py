"""The servers of tierstore.testing start, answer, can be spoiled, and never outlive their owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest
import urllib3

from tests.conftest import leaving_nothing
from tests.patience import PATIENCE
from tierstore.errors import ConfigError
from tierstore.testing.servers import (
    S3Server,
    ServerProcess,
    ServerUnavailableError,
    minio,
    programs,
)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def _gone(pid: int) -> bool:
    deadline = time.monotonic() + PATIENCE
    while _alive(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _sleeper(tmp_path: Path) -> ServerProcess:
    return ServerProcess(
        [sys.executable, "-c", "import time; time.sleep(3600)"], log=tmp_path / "l"
    )


def test_both_servers_hold_what_is_put(s3_bucket, no_leaks):
    s3_bucket.write("a/b", b"12")
    assert s3_bucket.keys() == ["a/b"]
    assert s3_bucket.read("a/b") == b"12"


def test_unfinished_uploads_are_seen(s3_bucket):
    s3_bucket.client.create_multipart_upload(Bucket=s3_bucket.name, Key="k")
    with pytest.raises(AssertionError, match=r"left open.*k"):
        s3_bucket.assert_no_uploads()


def test_a_stopped_server_is_gone(tmp_path, no_leaks):
    with _sleeper(tmp_path) as process:
        assert _alive(process.pid)
    assert _gone(process.pid)
    process.stop()


def test_a_paused_server_can_be_stopped(tmp_path):
    with _sleeper(tmp_path) as process:
        process.pause()
    assert _gone(process.pid)


def test_a_server_survives_the_thread_that_started_it(tmp_path):
    started = []
    thread = threading.Thread(target=lambda: started.append(_sleeper(tmp_path)))
    thread.start()
    thread.join()
    time.sleep(0.1)
    with started[0] as process:
        assert process.running
        assert _alive(process.pid)


@pytest.mark.parametrize("victim", ["owner", "guard"])
def test_a_server_dies_with_its_killed_owner(tmp_path, victim):
    code = (
        "import sys, time; from pathlib import Path; from tierstore.testing.servers import *\n"
        f"p = ServerProcess([sys.executable, '-c', 'import time; time.sleep(3600)'],"
        f" log=Path({str(tmp_path / 'l')!r}))\n"
        "print(p.pid, p._guard.pid, flush=True); time.sleep(3600)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with owner, owner.stdout:
        server, guard = map(int, owner.stdout.readline().split())
        assert _alive(server)
        os.kill(owner.pid if victim == "owner" else guard, signal.SIGKILL)
        assert _gone(server)
        owner.kill()


def test_a_server_that_ends_at_once_tells_why(tmp_path):
    command = [sys.executable, "-c", "raise SystemExit('no port left')"]
    with ServerProcess(command, log=tmp_path / "l") as process:
        with pytest.raises(ServerUnavailableError, match="no port left"):
            process.wait_ready("http://127.0.0.1:1/")


def test_a_silent_server_meets_a_deadline(tmp_path):
    with _sleeper(tmp_path) as process:
        with pytest.raises(ServerUnavailableError, match=r"no answer in 0\.2 s"):
            process.wait_ready("http://127.0.0.1:1/", seconds=0.2)


def test_a_command_that_does_not_exist(tmp_path):
    with pytest.raises(ServerUnavailableError, match="nonesuch"):
        ServerProcess([str(tmp_path / "nonesuch")], log=tmp_path / "l")


def test_a_missing_program_names_the_way_to_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerUnavailableError, match=r"go install example\.org/x@latest"):
        programs.find_program(["nonesuch"], "example.org/x@latest")


def test_an_address_shows_no_secret():
    server = S3Server.parse("http://user:hidden@127.0.0.1:9000")
    assert server.secret_key == "hidden"
    assert server.endpoint == "http://127.0.0.1:9000"
    assert "hidden" not in repr(server)
    assert "hidden" not in server.url("b", "p")


@pytest.mark.parametrize("address", ["127.0.0.1:9000", "http://u:hidden@h", "s3://u:hidden@h:1"])
def test_a_malformed_address_is_refused_without_its_secret(address):
    with pytest.raises(ConfigError) as caught:
        S3Server.parse(address)
    assert "hidden" not in str(caught.value)


@pytest.mark.minio
@pytest.mark.usefixtures("minio_server")  # not without a MinIO
def test_four_minio_servers_hold_every_object_together(tmp_path, monkeypatch):
    monkeypatch.delenv("TIERSTORE_TEST_S3", raising=False)
    with minio(tmp_path, nodes=4) as server:
        client = server.client()
        client.create_bucket(Bucket="bucket")
        client.put_object(Bucket="bucket", Key="k", Body=bytes(1 << 20))
        assert client.get_object(Bucket="bucket", Key="k")["Body"].read() == bytes(1 << 20)
        client.close()
    parts = [
        sum(path.stat().st_size for path in folder.rglob("part.*"))
        for folder in sorted(tmp_path.glob("data?/bucket"))
    ]
    assert len(parts) == 4
    assert sum(size > 1 << 18 for size in parts) >= 3  # one server may have missed the write


def test_two_minio_servers_are_no_set():
    with pytest.raises(ConfigError, match="2 MinIO servers make no set"):
        with minio(nodes=2):
            pass


@pytest.mark.minio
def test_toxics_spoil_and_heal(minio_server, toxics):
    proxy = toxics.proxy(minio_server.address)
    url = f"{proxy.endpoint}/minio/health/live"
    with urllib3.PoolManager(retries=False, timeout=PATIENCE) as http:
        assert http.request("GET", url).status == 200
        with proxy.toxic("latency", latency=200):
            start = time.monotonic()
            http.request("GET", url)
            assert time.monotonic() - start > 0.19
        with proxy.toxic("reset_peer", timeout=0):
            with pytest.raises(urllib3.exceptions.ProtocolError):
                http.request("GET", url)
        proxy.down()
        with pytest.raises(urllib3.exceptions.HTTPError):
            http.request("GET", url)
        proxy.up()
        assert http.request("GET", url).status == 200


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("threading.Thread(target=time.sleep, args=(99,), name='tierstore-x', daemon=True).start()",
         "tierstore-x"),
        ("KEPT.append(open(__file__))", "test_inner.py"),
    ],
)  # fmt: skip
def test_the_leak_detector_detects(tmp_path, mistake, message):
    conftest = Path(__file__).parents[1] / "conftest.py"
    patient = conftest.read_text()
    hasty = patient.replace("_GRACE_SECONDS = PATIENCE", "_GRACE_SECONDS = 0.2")
    assert hasty != patient
    (tmp_path / "conftest.py").write_text(hasty)
    (tmp_path / "test_inner.py").write_text(
        f"import threading, time\nKEPT = []\ndef test_leaks(no_leaks):\n    {mistake}\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "left behind" in done.stdout
    assert message in done.stdout


@pytest.mark.parametrize("older", [True, False], ids=["older", "own"])
def test_garbage_is_not_left_behind(older):
    """A cycle that nobody holds, made before the test or by it, has closed all that it owned."""

    class Node:
        def __init__(self) -> None:
            self.itself = self

    node = Node()
    with leaving_nothing():
        if not older:
            node = Node()
        weakref.finalize(node, os.close, os.open(__file__, os.O_RDONLY))
        del node


@pytest.mark.parametrize(("required", "status"), [("0", 0), ("1", 1)])
def test_a_missing_server_is_loud_or_fatal(tmp_path, required, status):
    conftest = Path(__file__).parents[1] / "conftest.py"
    (tmp_path / "conftest.py").write_text(conftest.read_text())
    (tmp_path / "test_inner.py").write_text("def test_it(minio_server): pass\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    environment = {"PATH": str(tmp_path), "TIERSTORE_REQUIRE_SERVERS": required}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == status
    assert ("TIERSTORE_REQUIRE_SERVERS=1, but" if status else "LEFT OUT: every test") in done.stdout
    assert "go install github.com/minio/minio" in done.stdout
