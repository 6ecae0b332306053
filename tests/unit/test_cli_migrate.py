"""`tierstore migrate`, called as a user calls it, between folders."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.command import start, tierstore
from tests.files import contents, journal_rows
from tests.patience import PATIENCE
from tests.shards import until
from tierstore.operations.ends import Location


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: None) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def src(tmp_path: Path) -> Path:
    folder = tmp_path / "src"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_bytes(b"a")
    (folder / "b.bin").write_bytes(os.urandom(9_000_000))
    (folder / "sub" / "c.txt").write_bytes(b"see")
    return folder


def test_paths_and_urls(src: Path, tmp_path: Path) -> None:
    for target in (str(tmp_path / "one"), f"file://{tmp_path}/two", f"{tmp_path}/three/"):
        done = tierstore("migrate", str(src), target)
        assert (done.code, done.err) == (0, "")
        assert done.out.startswith("3 objects: 3 copied\n8.6 MiB sent in ")
    for name in ("one", "two", "three"):
        assert contents(tmp_path / name) == contents(src)


def test_again(src: Path, tmp_path: Path) -> None:
    tierstore("migrate", str(src), str(tmp_path / "dst"))
    done = tierstore("migrate", str(src), str(tmp_path / "dst"))
    assert done.code == 0
    assert done.out.startswith("3 objects: 3 there already\n0 B sent in ")


def test_one_object(src: Path, tmp_path: Path) -> None:
    assert tierstore("migrate", f"{src}/sub/c.txt", f"{tmp_path}/dst/").code == 0
    assert tierstore("migrate", f"{src}/sub/c.txt", f"{tmp_path}/dst/d").code == 0
    assert contents(tmp_path / "dst") == {"c.txt": b"see", "d": b"see"}


def test_patterns(src: Path, tmp_path: Path) -> None:
    words = ["migrate", str(src), str(tmp_path / "dst")]
    done = tierstore(*words, "--exclude", "/sub", "--include", "*.txt")
    assert done.out.startswith("1 object: 1 copied")
    assert contents(tmp_path / "dst") == {"a.txt": b"a"}


def test_the_first_rule_decides(src: Path, tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    words = ["migrate", str(src), str(tmp_path / "dst"), "--dry-run"]
    rules.write_text("# not the rest\n+ c.*\n- **\n")
    for more, copied in [
        (["--include", "*.txt", "--exclude", "sub"], 2),
        (["--exclude=sub", "--include=*.txt"], 1),
        (["--filter-from", str(rules)], 1),
        (["--include", "a*", "--filter-from", str(rules)], 2),
        (["--filter-from", str(rules), "--include", "a*"], 1),
    ]:
        assert tierstore(*words, *more).out.startswith(f"{copied} object"), more
    rules.write_text("!\n- sub/\n")
    done = tierstore(*words, "--include", "nothing", "--filter-from", str(rules))
    assert done.out.startswith("2 objects"), "what '!' forgets is forgotten with all it implied"


def test_a_name_with_a_line_break_is_reported_in_one_line(src: Path, tmp_path: Path) -> None:
    (src / "b\nfailed: c\x1b[2J\u2028d").write_text("x")
    done = tierstore("migrate", str(src), str(tmp_path / "dst"))
    assert done.code == 1
    (line,) = done.err.splitlines()
    assert line.partition(": ")[2].startswith(r"b\nfailed: c\x1b[2J\u2028d: ")


@pytest.mark.parametrize("grace", ["nan", "inf", "1e400"])
def test_a_grace_that_never_ends_is_refused(src: Path, tmp_path: Path, grace: str) -> None:
    done = tierstore("migrate", str(src), f"{tmp_path}/dst", "--delete-source", "--grace", grace)
    assert (done.code, "--grace is" in done.said) == (2, True)
    assert not (tmp_path / "dst").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--include", "[z-a]"], "pattern '[z-a]' has the range"),
        (["--filter-from", "absent"], "--filter-from absent: No such file"),
        (["--filter-from", "."], "--filter-from .: is a folder, not a file"),
        (["--filter-from", "rules"], "rules, line 2: '*.txt' is no rule"),
        (["--filter-from", "latin"], "latin is no UTF-8"),
        (["--run", "[z-a]"], "pattern '[z-a]'"),
        (["--run", "x", "--filter-from", "rules"], "not for checkpoints"),
    ],
)
def test_rules_that_are_none(
    src: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rules").write_text("- a\n*.txt\n")
    Path("latin").write_bytes(b"- \xe4\n")
    for command in ("migrate", "sync")[: 1 if "--run" in words else 2]:
        done = tierstore(command, str(src), "dst", *words)
        assert done.code == 2
        assert said in done.said


def test_a_dry_run(src: Path, tmp_path: Path) -> None:
    dst = tmp_path / "dst"
    dst.mkdir()
    (dst / "a.txt").write_bytes(b"A")
    (dst / "sub").mkdir()
    (dst / "sub" / "c.txt").write_bytes(b"something else")
    done = tierstore("migrate", str(src), str(dst), "--dry-run")
    *lines, last = done.out.splitlines()
    assert re.fullmatch(r"reading what would be copied takes about [0-9.]+ m?s from here", last)
    assert lines == [
        "1 object of 8.6 MiB would be copied",
        "2 objects of 4 B would fail",
    ]
    assert done.code == 1
    assert "failed: a.txt: the destination already has something else there" in done.err
    told = tierstore("migrate", str(src), str(dst), "-n", "--json", "--conflict", "skip").json
    assert told.pop("read_seconds") > 0
    nothing = {"objects": 0, "bytes": 0}
    assert told == {
        "event": "plan",
        "copy": {"objects": 1, "bytes": 9_000_000},
        "same": nothing,
        "keep": {"objects": 2, "bytes": 4},
        "wait": nothing,
        "leave_out": nothing,
        "fail": nothing,
        "removed": 0,
    }
    assert len(contents(dst)) == 2
    assert not (tmp_path / "state").exists()


def test_conflicts(src: Path, tmp_path: Path) -> None:
    dst = tmp_path / "dst"
    dst.mkdir()
    (dst / "a.txt").write_bytes(b"A")
    words = ["migrate", str(src), str(dst)]
    done = tierstore(*words)
    assert done.code == 1
    assert done.err == "failed: a.txt: the destination already has something else there\n"
    assert done.out.startswith("3 objects: 2 copied, 1 failed\n")
    done = tierstore(*words, "--conflict", "skip")
    assert (done.code, done.out.splitlines()[0]) == (0, "3 objects: 2 there already, 1 kept")
    assert (dst / "a.txt").read_bytes() == b"A"
    assert tierstore(*words, "--conflict", "overwrite").code == 0
    assert contents(dst) == contents(src)


def test_events_for_programs(src: Path, tmp_path: Path) -> None:
    done = tierstore("migrate", str(src), str(tmp_path / "dst"), "--json")
    events = [json.loads(line) for line in done.out.splitlines()]
    objects = [event for event in events if event["event"] == "object"]
    assert sorted((o["key"], o["outcome"], o["bytes"]) for o in objects) == [
        ("a.txt", "copied", 1),
        ("b.bin", "copied", 9_000_000),
        ("sub/c.txt", "copied", 3),
    ]
    assert {event["event"] for event in events} == {"object", "progress", "summary"}
    last = events[-1]
    assert last["event"] == "summary"
    assert (last["objects"], last["copied"], last["failed"]) == (3, 3, 0)
    assert (last["bytes"], last["sent_bytes"], last["complete"]) == (9_000_004, 9_000_004, True)
    assert Path(last["journal"]).parent == tmp_path / "state/tierstore/migrate"


def test_a_journal_elsewhere(src: Path, tmp_path: Path) -> None:
    words = ["migrate", str(src), str(tmp_path / "dst"), "--journal", str(tmp_path / "j")]
    assert tierstore(*words).code == 0
    assert (tmp_path / "j").exists()
    assert not (tmp_path / "state").exists()
    done = tierstore("migrate", str(src), str(tmp_path / "else"), "--journal", str(tmp_path / "j"))
    assert done.code == 2
    assert "is the journal of a migration from" in done.said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["SRC", "SRC"], "are the same place"),
        (["SRC", "SRC/sub/"], "lie one in the other"),
        (["SRC/sub", "SRC"], "lie one in the other"),
        (["SRC", ""], "SRC and DST are URLs or paths"),
        (["SRC", "gopher://x/y"], "no backend is installed for gopher"),
        (["SRC", "s3://user:secret@bucket/x"], "holds a user or password"),
        (["SRC", "DST?part=5"], "unknown key 'part'"),
    ],
)
def test_wrong_usage(src: Path, tmp_path: Path, words: list[str], said: str) -> None:
    places = {"SRC": str(src), "DST": f"file://{tmp_path}/dst"}
    for name, place in places.items():
        words = [word.replace(name, place) for word in words]
    done = tierstore("migrate", *words)
    assert done.code == 2
    assert said in done.said
    assert "secret" not in done.said.replace("holds the secret", "")


def test_one_object_into_a_folder_and_under_a_link(src: Path, tmp_path: Path) -> None:
    (tmp_path / "dst").mkdir()
    (tmp_path / "link").symlink_to(src / "sub" / "c.txt")
    assert tierstore("migrate", f"{tmp_path}/link", str(tmp_path / "dst")).code == 0
    assert contents(tmp_path / "dst") == {"link": b"see"}
    # Up from a folder below is no overlap.
    assert tierstore("migrate", f"{src}/sub/c.txt", f"{src}/").code == 0
    assert (src / "c.txt").read_bytes() == b"see"
    done = tierstore("migrate", f"{src}/c.txt", f"{src}/")
    assert (done.code, "are the same place" in done.said) == (2, True)


def test_the_server_tells_places_apart() -> None:
    one = Location.parse("s3://b/x?endpoint_url=http://one:9000&part_size=8388608")
    other = Location.parse("s3://b/x?endpoint_url=http://other:9000")
    assert one.identity == "s3://b/x?endpoint_url=http%3A%2F%2Fone%3A9000"
    assert one.identity != other.identity
    assert Location.parse("s3://b/x?part_size=8388608").identity == "s3://b/x"


def test_a_link_to_the_source_is_the_source(src: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(src)
    done = tierstore("migrate", str(src), str(tmp_path / "link" / "copy"))
    assert done.code == 2


def test_nothing_there(tmp_path: Path) -> None:
    done = tierstore("migrate", str(tmp_path / "nothing"), str(tmp_path / "dst"))
    assert done.code == 1
    assert f"there is nothing to migrate at file://{tmp_path}/nothing" in done.said
    name = f"nothing-{os.urandom(8).hex()}"
    done = tierstore("migrate", f"/{name}", str(tmp_path / "dst"))
    assert (done.code, f"file:///{name} is no folder" in done.said) == (2, True)


def test_a_bar_for_who_watches(src: Path, tmp_path: Path) -> None:
    terminal, other = pty.openpty()
    target = f"file://{tmp_path}/dst?write_bandwidth=9000000"
    process = start("migrate", str(src), target, stdout=subprocess.PIPE, stderr=other)
    os.close(other)
    shown = b""
    with suppress(OSError):  # as Linux ends a terminal that nobody writes to any more
        while more := os.read(terminal, 65536):
            shown += more
    os.close(terminal)
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert out.startswith("3 objects: 3 copied\n")
    assert b"of 3 objects" in shown
    assert b"/9.0 MB" in shown.replace(b"\x1b[32m", b"")


def test_the_second_signal_ends_it_at_once(src: Path, tmp_path: Path) -> None:
    (src / "b.bin").write_bytes(os.urandom(40_000_000))
    slow = f"file://{tmp_path}/dst?write_bandwidth=10000"  # more than an hour
    process = start("migrate", str(src), slow)
    state = tmp_path / "state"
    # With its token: then its parts are on their way.
    begun = "token FROM upload WHERE token != ''"
    while not any(journal_rows(path, begun) for path in state.rglob("*.journal")):
        assert process.poll() is None
        time.sleep(0.02)
    assert catches(process.pid, signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    until(lambda: not catches(process.pid, signal.SIGTERM))  # the first was heard
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 130


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler of its own for a signal."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (mask,) = (line.split()[1] for line in lines if line.startswith("SigCgt:"))
    return bool(int(mask, 16) >> (number - 1) & 1)
