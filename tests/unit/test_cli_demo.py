"""`tierstore demo` without its training: what it refuses, what it prints, how it ends a job."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.command import tierstore
from tests.loopback import answer, read_request, serving
from tests.patience import PATIENCE
from tests.shards import until
from tierstore.cli import demo
from tierstore.config import load_config
from tierstore.errors import TierstoreError
from tierstore.testing.servers import S3Server


@pytest.fixture(autouse=True)
def _no_servers_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TIERSTORE_TEST_S3", "TIERSTORE_TEST_HDFS"):
        monkeypatch.delenv(name, raising=False)


def test_a_folder_that_holds_something(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    done = tierstore("demo", "--folder", str(tmp_path))
    assert (done.code, done.out) == (2, "")
    assert f"{tmp_path} is not empty" in done.err
    assert "next: give --folder a new folder" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine").read_text() == "precious"


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = tierstore("demo", "--folder", str(tmp_path / "file"))
    assert done.code == 2
    assert "is a file" in done.said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["/nowhere/tierstore.toml"], "no such file"),
        (["tape://x"], "no backend is installed for tape://"),
        (["file:///x", "-c", "a.toml"], "not a mixture"),
        (["memory://x"], "lives in one process"),
    ],
)
def test_a_wrong_configuration_is_found_before_anything_starts(
    tmp_path: Path, words: list[str], said: str
) -> None:
    done = tierstore("demo", "--folder", str(tmp_path / "new"), "-c", *words)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("module", ["torch", "boto3"])
def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: None if name == module else name)
    done = tierstore("demo", "--folder", str(tmp_path / "new"))
    assert done.code == 2
    assert f"the demo needs {module}" in done.err
    assert "next: pip install 'tierstore[" in done.err
    assert not (tmp_path / "new").exists()


def test_tiers_of_ones_own_need_no_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def story(one: demo.Demo) -> Any:
        seen.append((one.run, Path(one.config).read_text()))
        raise demo.DemoError("enough")

    monkeypatch.setattr(demo, "find_spec", lambda name: None if name == "boto3" else name)
    monkeypatch.setattr(demo, "_story", story)
    urls = [f"file://{tmp_path}/a?direct=never", f"file://{tmp_path}/b"]
    folder = str(tmp_path / "new")
    done = tierstore("demo", "--folder", folder, *(w for url in urls for w in ("-c", url)))
    assert done.code == 1
    assert "error: enough\n" in done.err
    assert f"next: what it left lies in {folder}" in done.err
    ((run, config),) = seen
    assert run.startswith("demo-")  # there may be a "demo" on those tiers
    assert [line for line in config.splitlines() if "url" in line] == [
        f'url = "{url}"' for url in urls
    ]


# What is printed


def save_of(step: int, *states: str) -> dict[str, Any]:
    place = "runs/demo-1a2b3c/data/000000000004-000001-01-9d575b56cb2d5046/"
    roots = ("file:///some/where/long/enough/runs/of/mine", "s3://a-bucket/with/a/prefix")
    return {
        "step": step,
        "first": step == 4,
        "stall": 0.2758,
        "tiers": [
            {
                "tier": f"tier{number}",
                "state": state,
                "seconds": 1.25,
                "bytes": 12 << 20,
                "gb_per_s": 0.123,
                "where": f"{roots[number]}/{place}",
                "error": None,
            }
            for number, state in enumerate(states)
        ],
    }


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits(width: int) -> None:
    text = io.StringIO()
    out = Console(file=text, width=width, markup=False)
    saves = [save_of(4, "committed", "committed"), save_of(8, "committed", "skipped")]
    demo._print(out, {"saves": saves}, "demo-1a2b3c", "/a config.toml")
    lines = text.getvalue().splitlines()
    header = lines.index("step  save   stall, ms  tier   seconds      size   GB/s")
    assert [line.split() for line in lines[header + 1 : header + 5]] == [
        ["4", "first", "275.8", "tier0", "1.25", "12.0", "MiB", "0.123"],
        ["tier1", "1.25", "12.0", "MiB", "0.123"],
        ["8", "later", "275.8", "tier0", "1.25", "12.0", "MiB", "0.123"],
        ["tier1", "skipped"],
    ]
    assert any(line.startswith("The first save of a job also plans") for line in lines)
    assert max(map(len, lines)) <= 80
    assert "  tier0: file:///some/where/long/enough/runs/of/mine" in lines
    assert "  tier1: s3://a-bucket/with/a/prefix" in lines
    assert "  tierstore verify demo-1a2b3c --config '/a config.toml'" in lines


# Jobs


def told(losses: dict[int, float], *, code: int = 0, log: str = "", **last: Any) -> demo.DemoJob:
    events = [{"event": "loss", "step": step, "loss": loss} for step, loss in losses.items()]
    events += [{"event": event, **fields} for event, fields in last.items()]
    return demo.DemoJob(code, 1.0, events, log)


LOSSES = {step: 1.0 / step for step in range(1, 17)}
END = {"restored": {"step": 8, "seconds": 1.0}, "digest": {"step": 16, "digest": 7}}
BEFORE = {step: loss for step, loss in LOSSES.items() if step <= 12}
AFTER = {step: loss for step, loss in LOSSES.items() if step > 8}


def story(monkeypatch: pytest.MonkeyPatch, *jobs: demo.DemoJob) -> dict[str, Any]:
    """Play the story with jobs that end like this."""
    rest = iter(jobs)
    monkeypatch.setattr(demo.Demo, "launch", lambda *_, **__: next(rest))
    return demo._story(demo.Demo(Path(), "demo", "", {}, Console(file=io.StringIO())))


def test_the_story_of_jobs_that_did_well(monkeypatch: pytest.MonkeyPatch) -> None:
    killed, resumed = told(BEFORE, code=1), told(AFTER, **END)
    result = story(monkeypatch, told(LOSSES), killed, resumed, told({}, **END))
    assert (result["resumed_from"], result["digest"]) == (8, "00000007")
    assert result["losses"] == LOSSES


def test_the_first_save_of_a_launch_is_marked() -> None:
    saves = [{"event": "saved", "step": step} for step in (4, 8, 12)]
    job = demo.DemoJob(0, 1.0, [saves[0], {"event": "loss", "step": 5}, *saves[1:]])
    assert [(save["step"], save["first"]) for save in job.saves()] == [
        *((4, True), (8, False), (12, False))
    ]


@pytest.mark.parametrize(
    ("at", "job", "said"),
    [
        (0, told({}, code=3, log="no memory"), "the training job failed:\nno memory"),
        (1, told(LOSSES, log="all well"), "ended as if it had not:\nall well"),
        (2, told(AFTER, restored={"step": None}), "from step None, not from 8.*\nkilled log"),
        (2, told(AFTER | {9: 0.5}, **END), "the loss differ"),
        (2, told(AFTER, code=1, log="cannot restore"), "cannot restore"),
        (3, told({}, digest={"step": 16, "digest": 8}), "the tensors differ"),
        (3, told({}, log="its log"), "no 'digest':\nits log"),
    ],
)
def test_what_the_story_must_show(
    monkeypatch: pytest.MonkeyPatch, at: int, job: demo.DemoJob, said: str
) -> None:
    jobs = [
        told(LOSSES),
        told(BEFORE, code=1, log="killed log"),
        told(AFTER, **END),
        told({}, **END),
    ]
    jobs[at] = job
    with pytest.raises(demo.DemoError, match=said):
        story(monkeypatch, *jobs)


def test_a_line_that_its_rank_died_in_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "0.jsonl"
    assert demo._events(file) == []
    file.write_text('{"event": "loss", "step": 1}\n{"event": "lo')
    assert demo._events(file) == [{"event": "loss", "step": 1}]


CHILD = """
import signal, subprocess, sys, time
sleep = [sys.executable, "-c", "import time; time.sleep(3600)"]
rank = subprocess.Popen(sleep, start_new_session=True)
def end(*_):
    rank.terminate()
    rank.wait()
    print("ranks ended", flush=True)
    sys.exit(1)
signal.signal(signal.SIGTERM, end)
print(rank.pid, flush=True)
time.sleep(3600)
"""


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.fixture
def started(tmp_path: Path) -> Path:
    """Where a job that was started writes its rank's process id."""
    return tmp_path / "rank"


def job(started: Path) -> list[str]:
    script = CHILD.replace("flush=True)\ntime", f"file=open({str(started)!r}, 'w'))\ntime")
    assert str(started) in script
    return [sys.executable, "-c", script]


def written(started: Path) -> bool:
    return started.exists() and started.read_text().endswith("\n")


def test_a_job_that_does_not_end_is_ended_with_its_ranks(
    started: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    communicate = subprocess.Popen.communicate

    def once_started(process: Any, *given: Any, **how: Any) -> Any:
        until(lambda: written(started))  # its second begins with its ranks
        return communicate(process, *given, **how)

    monkeypatch.setattr(subprocess.Popen, "communicate", once_started)
    with pytest.raises(demo.DemoError, match=r"did not end within 1 s") as caught:
        demo._run_to_end(job(started), dict(os.environ), 1)
    _, ended = str(caught.value).splitlines()
    assert ended == "ranks ended"
    assert gone(int(started.read_text()))


def test_an_interrupt_ends_the_job_and_its_ranks(started: Path) -> None:
    main = threading.get_ident()

    def interrupt() -> None:
        until(lambda: written(started))
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        demo._run_to_end(job(started), dict(os.environ), PATIENCE)
    thread.join()
    assert gone(int(started.read_text()))


def test_an_ordinary_job_tells_its_code_and_output() -> None:
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    ended, log = demo._run_to_end([sys.executable, "-u", "-c", code], dict(os.environ), PATIENCE)
    assert (ended, sorted(log.split())) == (3, ["err", "out"])


def test_a_server_that_does_not_start_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> Any:
        raise TierstoreError("moto is not installed", hint="install it")

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("tierstore.testing.servers.moto", away)
    done = tierstore("demo", "--folder", str(tmp_path / "new"))
    assert (done.code, done.err) == (1, "error: moto is not installed\nnext: install it\n")
    assert not (tmp_path / "new").exists()


def test_hdfs_is_a_third_tier_where_it_is_configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moto_server: S3Server
) -> None:
    asked: list[str] = []
    seen = []

    def namenode(sock: socket.socket) -> None:
        asked.append(read_request(sock)[0].split(b" HTTP")[0].decode())
        sock.sendall(answer(b'{"boolean": true}', headers="Connection: close\r\n"))

    def story(one: demo.Demo) -> Any:
        seen.extend((asked[:], load_config(one.config).tiers, one.environment))
        raise demo.DemoError("enough")

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("tierstore.testing.servers.moto", lambda: nullcontext(moto_server))
    monkeypatch.setattr(demo, "_story", story)
    with serving(namenode) as url:
        address = url.removeprefix("http://")
        monkeypatch.setenv("TIERSTORE_TEST_HDFS", f"http://me@{address}")
        done = tierstore("demo", "--folder", str(tmp_path / "new"))
    assert done.err.startswith("error: enough\n")
    assert f"HDFS is at {url}\n" in done.out
    (made,), tiers, environment = seen
    assert [tier.name for tier in tiers] == ["nvme", "s3", "hdfs"]
    path = tiers[2].url.removeprefix(f"hdfs://{address}")
    assert made.startswith(f"PUT /webhdfs/v1{path}?op=MKDIRS&user.name=me&")
    assert environment["HADOOP_USER_NAME"] == "me"
    assert environment["AWS_ENDPOINT_URL"] == moto_server.endpoint
    assert asked[1:] == [f"DELETE /webhdfs/v1{path}?op=DELETE&user.name=me&recursive=true"]
    left = load_config(tmp_path / "new" / "tierstore.toml").tiers
    assert [tier.name for tier in left] == ["nvme"]


@pytest.mark.parametrize(
    ("address", "code", "said"),
    [
        ("http://me@127.0.0.1:1", 1, "HDFS at http://127.0.0.1:1 does not serve me"),
        ("127.0.0.1:9870", 2, "not of the form http://user@host:port"),
    ],
)
def test_an_hdfs_that_is_not_there_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, code: int, said: str
) -> None:
    monkeypatch.setenv("TIERSTORE_TEST_HDFS", address)
    done = tierstore("demo", "--folder", str(tmp_path / "new"))
    assert (done.code, done.out) == (code, "")
    assert said in done.err
    assert "TIERSTORE_TEST_HDFS" in done.err
    assert not (tmp_path / "new").exists()
