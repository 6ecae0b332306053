"""Uploads to a folder that outlive their process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tierstore.backends.local.backend import LocalBackend, open_local
from tierstore.blocks import crc32c
from tierstore.errors import NotFoundError, StorageError, TruncatedFileError

DATA = os.urandom(20_000)
HALF = 12_288
WRITER = """
import os, signal, sys
from tierstore.backends.local.backend import open_local
from tierstore.blocks import crc32c
data = open(sys.argv[2], "rb").read()
upload = open_local(f"file://{sys.argv[1]}").upload("a/x", len(data))
print(upload.token, flush=True)
upload.write(0, data[:12288], crc32c(data[:12288]))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "tier"


@pytest.fixture
def token(root: Path, tmp_path: Path) -> str:
    """An upload of which half was written when its process was killed."""
    (tmp_path / "data").write_bytes(DATA)
    words = [sys.executable, "-c", WRITER, str(root), str(tmp_path / "data")]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == -9
    return done.stdout.strip()


def opened(root: Path) -> LocalBackend:
    return open_local(f"file://{root}")


def left(root: Path) -> list[str]:
    return sorted(path.name for path in (root / ".tierstore-tmp").iterdir())


def scratch(root: Path, token: str) -> Path:
    return root / ".tierstore-tmp" / token


def test_it_goes_on_after_a_kill(root: Path, token: str) -> None:
    opened(root).create("y", b"")  # a writer sweeps
    upload = opened(root).upload("a/x", len(DATA), resume=token)
    assert upload.token == token
    assert upload.done == [(0, HALF)]
    upload.write(HALF, DATA[HALF:], crc32c(DATA[HALF:]))
    upload.commit(crc32c=crc32c(DATA))
    assert (root / "a/x").read_bytes() == DATA
    assert left(root) == []
    with pytest.raises(NotFoundError, match="no such upload"):
        opened(root).upload("a/x", len(DATA), resume=token)


def test_what_the_disk_lost_is_not_done(root: Path, token: str) -> None:
    with scratch(root, token).open("r+b") as file:
        file.seek(100)
        file.write(bytes(4096))
    upload = opened(root).upload("a/x", len(DATA), resume=token)
    assert upload.done == []
    with pytest.raises(TruncatedFileError):
        upload.commit()


def test_a_list_that_was_cut_off(root: Path, token: str) -> None:
    with scratch(root, f"{token}.parts").open("a") as file:
        file.write(f"{HALF} {len(DATA) - HALF} 12")
    assert opened(root).upload("a/x", len(DATA), resume=token).done == [(0, HALF)]


def test_what_is_no_part_is_passed_over(root: Path, token: str) -> None:
    odd = "\u00b2 \u0663 1".encode()
    lines = [b"\xff", odd, b"9" * 5000 + b" 1 1", b"-1 1 1", b"1 1", b"1" * 100_000, b""]
    with scratch(root, f"{token}.parts").open("ab") as file:
        file.write(b"\n".join(lines))
    upload = opened(root).upload("a/x", len(DATA), resume=token)
    assert upload.done == [(0, HALF)]
    upload.abort()


def test_a_list_without_a_head(root: Path, token: str) -> None:
    for head in (b"[" * 50_000, b"\xff", b"9" * 5000, b"[" * 200_000):
        scratch(root, f"{token}.parts").write_bytes(head + b"\n")
        with pytest.raises(StorageError, match="the token is of another upload"):
            opened(root).upload("a/x", len(DATA), resume=token)


@pytest.mark.parametrize(("key", "size"), [("a/x", 5), ("a/y", len(DATA))])
def test_the_token_of_another_upload(root: Path, token: str, key: str, size: int) -> None:
    with pytest.raises(StorageError, match="of another upload"):
        opened(root).upload(key, size, resume=token)
    assert opened(root).upload("a/x", len(DATA), resume=token).done == [(0, HALF)]


@pytest.mark.parametrize(
    "other", ["../../secret", "..", ".", "\0", "x" * 5000, "\ud800", "{}.parts"]
)
def test_a_token_is_no_path(root: Path, tmp_path: Path, token: str, other: str) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    with pytest.raises(NotFoundError):
        opened(root).upload("a/x", 6, resume=other.format(token))


def test_nobody_comes_for_it(root: Path, token: str) -> None:
    parts = scratch(root, f"{token}.parts")
    before = parts.stat().st_mtime - 8 * 86_400
    os.utime(parts, (before, before))
    opened(root).create("y", b"")
    assert left(root) == []


def test_nothing_was_written_of_it(root: Path, token: str) -> None:
    parts = scratch(root, f"{token}.parts")
    parts.write_text(parts.read_text().splitlines(keepends=True)[0])
    alive = opened(root).upload("a/x", len(DATA), resume=token)
    opened(root).create("y", b"")
    assert left(root) == [token, f"{token}.parts"], "somebody is at it"
    alive.let_go()
    opened(root).create("y", b"")
    assert left(root) == []
    scratch(root, "gone.parts").write_text("")
    opened(root).create("y", b"")
    assert left(root) == []


def test_closing_keeps_what_can_be_resumed(root: Path) -> None:
    backend = opened(root)
    kept, dropped = backend.upload("a/x", len(DATA)), backend.upload("a/y", len(DATA))
    kept.write(0, DATA[:HALF], crc32c(DATA[:HALF]))
    token = kept.token
    dropped.write(0, DATA[:HALF], crc32c(DATA[:HALF]))
    backend.close()
    assert left(root) == [token, f"{token}.parts"]
    again = opened(root).upload("a/x", len(DATA), resume=token)
    assert again.done == [(0, HALF)]
    again.abort()
    assert left(root) == []
