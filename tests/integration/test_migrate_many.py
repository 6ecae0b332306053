"""Many objects: little memory, and the first byte moves long before all are listed.

A million, with the figures::

    TIERSTORE_TEST_KEYS=1000000 make test PYTEST_ARGS="-s tests/integration/test_migrate_many.py"
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.s3_keys import ManyKeys, many_keys
from tierstore.transfer.engine.feed import Listing

KEYS = int(os.environ.get("TIERSTORE_TEST_KEYS", "30000"))
MOST = 200 * 1000**2  # bytes
SOME = 300  # objects, after which it is interrupted
WINDOW = Listing.ahead
COMMAND = """
import sys
from tierstore.cli.main import main
try:
    main(sys.argv[1:])
finally:  # not ru_maxrss: that begins with the peak of whoever has started this process
    with open("/proc/self/status") as file:
        print(next(line.split()[1] for line in file if line.startswith("VmHWM")), file=sys.stderr)
"""


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


class Command:
    """`tierstore migrate --json` as a process that tells its own peak of memory."""

    def __init__(self, *words: str) -> None:
        self.begun = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, "migrate", *words, "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def stop_after(self, enough: Callable[[], bool]) -> float:
        """Interrupt it once there is enough; return the seconds that it took."""
        while not enough():
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.005)
        seconds = time.monotonic() - self.begun
        self.process.send_signal(signal.SIGINT)
        return seconds

    def done(self, code: int) -> tuple[int, list[dict[str, Any]]]:
        """Wait for its end; return its peak of memory in bytes, and its events."""
        out, err = self.process.communicate()
        assert self.process.returncode == code, err
        return int(err.split()[-1]) * 1024, [json.loads(line) for line in out.splitlines()]


def planned(source: str, target: Path) -> None:
    """Plan everything."""
    plan = Command(source, str(target), "--dry-run")
    peak, (event,) = plan.done(0)
    assert event["copy"]["objects"] == KEYS
    assert peak <= MOST
    print(f"\n{KEYS} keys of {source[:5]} planned: {peak / 1e6:.0f} MB", end="")


def begun(source: str, target: Path, enough: Callable[[], bool]) -> list[dict[str, Any]]:
    """Begin the migration and interrupt it; return its events."""
    command = Command(source, str(target))
    seconds = command.stop_after(enough)
    peak, events = command.done(128 + signal.SIGINT)
    assert peak <= MOST
    print(f"; the first {SOME} after {seconds:.2f} s, {peak / 1e6:.0f} MB until then")
    assert not events[-1]["listed"], "bytes are moved before all is listed"
    assert events[-1]["copied"]
    return events


def fill(root: Path, count: int, in_a_folder: int) -> None:
    for first in range(0, count, in_a_folder):
        folder = root / f"{first:09}"
        folder.mkdir(parents=True)
        at = os.open(folder, os.O_RDONLY)
        for number in range(first, min(count, first + in_a_folder)):
            name = f"{number * 7919 % count:09}.bin"  # not in order
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT, dir_fd=at))
        os.close(at)


@pytest.mark.slow
@pytest.mark.parametrize("in_a_folder", [1000, KEYS], ids=["in-folders", "in-one-folder"])
def test_many_files(tmp_path: Path, in_a_folder: int) -> None:
    source, target = tmp_path / "from", tmp_path / "to"
    fill(source, KEYS, in_a_folder)
    planned(str(source), target)
    first = target / "000000000"
    begun(str(source), target, lambda: first.exists() and len([*first.iterdir()]) >= SOME)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "anybody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "anything")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    with many_keys(KEYS) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        yield server


@pytest.mark.slow
def test_many_keys_of_s3(tmp_path: Path, server: ManyKeys) -> None:
    planned("s3://many/keys", tmp_path / "to")
    assert server.pages == -(-KEYS // 1000) + 1  # one to see whether both ends are one place
    server.pages, server.reads = 0, 0  # a plan reads one to say how long it takes
    # Some are read, and not yet durable, before the first one counts; nobody reads the events yet.
    begun("s3://many/keys", tmp_path / "to", lambda: server.reads >= 2 * SOME)
    most = 2 * WINDOW // 1000 + 2  # and one that is under way, and one that is not whole
    assert server.pages_at_first_read <= most, "and the first byte after the first pages"
