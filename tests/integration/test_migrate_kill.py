"""SIGKILL at random moments of a migration, counted by a proxy before the server or by the kernel.

The full size, a line of figures for each pair::

    TIERSTORE_TEST_MIB=4096 TIERSTORE_TEST_KILLS=20 make test \\
        PYTEST_ARGS="-s tests/integration/test_migrate_kill.py"
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from tests.ends import MIB, PAIRS, End, pairs
from tests.forked import forked
from tests.s3_faults import Misbehaving, misbehaving
from tierstore.backend import Capabilities
from tierstore.blocks import crc32c
from tierstore.config import load_config
from tierstore.wrappers import open_tier

SIZE = int(os.environ.get("TIERSTORE_TEST_MIB", "64")) * MIB
KILLS = int(os.environ.get("TIERSTORE_TEST_KILLS", "5"))
FULL = KILLS > 5
SMALL = {"a small one": 0.2, "deep/small too": 0.9}  # MiB
_NUMBERED = re.compile(r"/(\S+)\?partNumber=(\d+)|/v1/(\S+)/(\d{5})-[0-9a-f]{8}-[0-9a-f]{16}\?")


@dataclass
class Life:
    """What the destination got of one process, by its server or by the kernel; how it ended."""

    received: int = 0
    whole: Counter[str] = field(default_factory=Counter)
    code: int = 0


class Proxied:
    """Counts what passes by on its way to a server."""

    def __init__(self, proxy: Misbehaving) -> None:
        self._proxy, self._seen = proxy, 0

    def life(self, _pid: int) -> Life:
        """Return what came since the last call of `over`."""
        life = Life()
        for body in self._proxy.bodies[self._seen :]:
            if body.line.startswith("PUT"):
                life.received += body.received
                found = _NUMBERED.search(body.line)
                if found and 0 < body.received == body.length:
                    life.whole["/".join(filter(None, found.groups()))] += 1
        return life

    def over(self) -> None:
        self._seen = len(self._proxy.bodies)


class Kernel:
    """Counts what a process has written, also after its end (proc(5), wchar)."""

    def life(self, pid: int) -> Life:
        """Return what it has written."""
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
        return Life(int(next(line.split()[1] for line in lines if line.startswith("wchar"))))

    def over(self) -> None:
        pass


@contextmanager
def counting(request: pytest.FixtureRequest, other: str) -> Iterator[Proxied | Kernel]:
    """Put a proxy before the destination's server."""
    if other == "local":
        yield Kernel()
        return
    place = request.getfixturevalue("minio_bucket" if other == "s3" else "hdfs_root").server
    with misbehaving(place.address) as proxy, pytest.MonkeyPatch.context() as patch:
        if other == "s3":
            patch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        else:  # namenode and datanodes
            patch.setenv("HTTP_PROXY", proxy.endpoint)
            for name in ("NO_PROXY", "no_proxy"):
                patch.delenv(name)
        yield Proxied(proxy)


def sizes() -> dict[str, int]:
    """Objects of many sizes, together `SIZE` and the small ones."""
    cuts = [SIZE // 4] * 2 + [SIZE // 16] * 4 + [SIZE // 64] * 16
    large = {f"large/{number:02}": size for number, size in enumerate(cuts)}
    return large | {key: int(mib * MIB) for key, mib in SMALL.items()}


def capabilities(end: End) -> Capabilities:
    with closing(open_tier(load_config(str(end)).tiers[0])) as backend:
        return backend.capabilities


def populate(source: End) -> dict[str, int]:
    """Fill the source and return the CRC32C of each object."""
    chance = np.random.default_rng()
    crcs = {}
    for key, size in sizes().items():
        data = chance.bytes(size)
        crcs[key] = crc32c(data)
        source.write(key, data)
    return crcs


@pytest.mark.slow
@pairs(kinds=[(one, other) for one, other in PAIRS if one != other] + [("local", "local")])
def test_killed_at_random_moments(
    end: Callable[[str, str], End],
    one: str,
    other: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """What was sent twice is at most a part for each stream and kill; nothing is left over."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    source, target = end(one, "from"), end(other, "to")
    if FULL:
        source.options, target.options = "", "?replication=1" if other == "hdfs" else ""
    crcs, begun = populate(source), time.monotonic()
    ours, theirs = capabilities(source), capabilities(target)
    streams, part = max(ours.concurrency, theirs.concurrency), theirs.part_size
    with counting(request, other) as counter:
        words = "migrate", str(source), target.with_options(f"write_bandwidth={2 * SIZE // KILLS}")
        lives = [killed(words, counter) for _ in range(KILLS)]
        lives.append(finished((*words[:2], str(target)), counter))
    total, most = sum(life.received for life in lives), SIZE + KILLS * streams * part
    twice = sent_again(lives)
    print(
        f"\n{one} to {other}: {SIZE // MIB} MiB, {KILLS} kills, parts of {part // MIB} MiB, "
        f"{streams} streams: received {total / MIB:.1f} MiB of at most {most // MIB}; received "
        f"whole again: {sum(twice)} parts, at most {max(twice)} for a kill; "
        f"{time.monotonic() - begun:.0f} s"
    )
    assert SIZE <= total <= most + MIB * (len(SMALL) * (KILLS + 1) + 1), "small ones, the journal"
    assert lives[0].code == -signal.SIGKILL, "at least one was killed under way"
    assert max(twice) <= streams
    assert target.keys() == sorted(crcs)
    for key, crc in crcs.items():
        assert crc32c(target.read(key)) == crc, key
    assert target.leftovers() == []


def killed(words: tuple[str, ...], counter: Proxied | Kernel) -> Life:
    """Start the command and kill it, at a moment or after some bytes."""
    seconds = random.choice([random.uniform(0, 1), 60.0])
    nbytes = random.uniform(0, 1.5 * SIZE / KILLS)
    process = forked(*words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    begun = time.monotonic()
    while time.monotonic() - begun < seconds and counter.life(process.pid).received < nbytes:
        if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG):
            break  # on a slow machine more bytes than these come between two looks
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    return ended(process, counter, -signal.SIGKILL, 0)


def finished(words: tuple[str, ...], counter: Proxied | Kernel) -> Life:
    return ended(forked(*words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE), counter, 0)


def ended(process: subprocess.Popen[str], counter: Proxied | Kernel, *codes: int) -> Life:
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # the kernel still knows its counts
    time.sleep(0.05)  # and the proxy takes what is in its socket
    life = counter.life(process.pid)
    counter.over()
    _, err = process.communicate()
    assert process.returncode in codes, err
    life.code = process.returncode
    return life


def sent_again(lives: list[Life]) -> list[int]:
    """For each kill: the parts that were received whole before it and again after it."""
    again = []
    for number, life in enumerate(lives[:-1]):
        later = set().union(*(other.whole for other in lives[number + 1 :]))
        again.append(len(later & set(life.whole)))
    assert all(count == 1 for life in lives for count in life.whole.values()), "twice in one life"
    return again
