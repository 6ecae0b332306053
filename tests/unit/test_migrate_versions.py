"""What counts as the same version of a file, when one is skipped, gone on with, or removed."""

from __future__ import annotations

import json
import os
from contextlib import closing
from pathlib import Path

import pytest

from tests.command import Done, tierstore
from tests.files import contents
from tierstore.backends.local.backend import LocalBackend
from tierstore.blocks import crc32c
from tierstore.transfer.engine.journal import Journal
from tierstore.transfer.engine.records import Begun, Receipt, Version


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: None) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def src(tmp_path: Path) -> Path:
    folder = tmp_path / "src"
    folder.mkdir()
    (folder / "a").write_bytes(b"first")
    return folder


def migrate(src: Path, *words: str) -> Done:
    return tierstore("migrate", str(src), str(src.parent / "dst"), *words)


def outcomes(done: Done) -> dict[str, str]:
    events = [json.loads(line) for line in done.out.splitlines()]
    return {event["key"]: event["outcome"] for event in events if event["event"] == "object"}


def keep_times(path: Path, data: bytes, *, new_file: bool) -> None:
    """Give a file other bytes, but the size and the mtime that it has."""
    status = path.stat()
    if new_file:
        path.unlink()
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("new_file", [False, True])
def test_a_file_that_changed_and_has_its_old_mtime(src: Path, *, new_file: bool) -> None:
    assert migrate(src).code == 0
    keep_times(src / "a", b"other", new_file=new_file)
    done = migrate(src, "--delete-source")
    assert done.code == 1
    assert "the destination already has something else there" in done.err
    assert contents(src) == {"a": b"other"}
    assert migrate(src, "--delete-source", "--conflict", "overwrite").code == 0
    assert contents(src.parent / "dst") == {"a": b"other"}


def test_a_mirror_takes_such_a_file(src: Path) -> None:
    for data in (b"first", b"other", b"third"):
        keep_times(src / "a", data, new_file=False)
        assert tierstore("sync", str(src), str(src.parent / "dst")).code == 0
        assert contents(src.parent / "dst") == {"a": data}


def test_a_copy_that_changed_and_has_its_old_mtime(src: Path) -> None:
    assert migrate(src).code == 0
    keep_times(src.parent / "dst" / "a", b"spoil", new_file=False)
    assert migrate(src, "--delete-source").code == 1
    assert contents(src) == {"a": b"first"}


def test_an_upload_is_not_gone_on_with_for_such_a_file(src: Path, tmp_path: Path) -> None:
    """Else the copy would be half of the one and half of the other."""
    part = 8 * 1024**2
    (src / "a").write_bytes(bytes(2 * part))
    first = b"old" + bytes(part - 3)
    backend = LocalBackend(str(tmp_path / "dst"))
    upload = backend.upload("a", 2 * part)
    upload.write(0, first, crc32c(first))
    with closing(Journal(tmp_path / "journal", f"file://{src}", f"file://{tmp_path}/dst")) as notes:
        was = Version.of(LocalBackend(str(src)).stat("a"))
        notes.append(Begun(1, "a", was, part, upload.token))
        notes.append(Receipt(1, 0, crc32c(first)))
    upload.let_go()
    words = ["--json", "--journal", str(tmp_path / "journal")]
    keep_times(src / "a", bytes(2 * part), new_file=False)
    done = migrate(src, *words)
    assert done.code == 0, done.err
    assert json.loads(done.out.splitlines()[-1])["reused_bytes"] == 0
    assert contents(tmp_path / "dst") == contents(src)
    backend.close()


def test_hard_links_are_all_removed(src: Path) -> None:
    """Removing one changes ctime of the others, of the very same bytes."""
    for number in range(20):
        os.link(src / "a", src / f"b{number}")
    assert migrate(src).code == 0
    done = migrate(src, "--delete-source")
    assert done.code == 0, done.err
    assert contents(src) == {}
    assert len(contents(src.parent / "dst")) == 21


def test_checksum_believes_no_earlier_run(src: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert migrate(src).code == 0
    status = (src / "a").stat()
    # As on a file system that has no ctime, or under a clock that was set back.
    monkeypatch.setattr("tierstore.backends.local.listing.tag_of", lambda _status: "the same")
    assert migrate(src).code == 0
    (src / "a").write_bytes(b"other")
    os.utime(src / "a", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert outcomes(migrate(src, "--json")) == {"a": "same"}
    done = migrate(src, "--json", "--checksum")
    assert (done.code, outcomes(done)) == (1, {"a": "failed"})
    assert outcomes(migrate(src, "--json", "--checksum", "--conflict", "overwrite")) == {
        "a": "copied"
    }
    assert outcomes(migrate(src, "--json", "--checksum")) == {"a": "same"}


def test_what_is_told_of_a_file_stays(tmp_path: Path) -> None:
    """However it was written: else it would be compared again and again."""
    backend = LocalBackend(str(tmp_path))
    for number, how in enumerate([{}, {"if_absent": True}, {"durable": False, "if_absent": True}]):
        for name in (f"{number}", f"{number}"):  # and once more, as for an answer that was lost
            told = backend.create(name, b"x", **how)
            assert told == backend.stat(name)
    upload = backend.upload("large", 1)
    upload.write(0, b"x", crc32c(b"x"))
    assert upload.token
    assert upload.commit(if_absent=True) == backend.stat("large")
    assert {info.key: info.tag for info in backend.list("")} == {
        name: backend.stat(name).tag for name in ("0", "1", "2", "large")
    }
    backend.close()
