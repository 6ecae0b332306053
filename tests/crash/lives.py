"""A job that is killed at random, again and again: what it acknowledged is found, and is right.

    python -m tests.crash.lives --kills 2000 [--seed 7]

Its lives take turns on two nodes, with one rank or two. Each node has a disk of its own, which is
wiped now and then, and both have a MinIO. A life restores, looks at every number, and saves; ranks
are killed somewhere from their start to their end.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

import tests.imports  # noqa: F401 - what the children need is imported once
from tests.patience import PATIENCE
from tierstore.config import Config, TierConfig
from tierstore.testing.servers import minio
from tierstore.wrappers import open_tier
from tierstore_torch import Checkpointer

NODES = ("a", "b")
_LIVES = 25  # of one run
_SAVES = 3  # of a life that nobody kills


@dataclass(frozen=True)
class Life:
    """One life.

    Attributes:
        number: from 1, in the order in which lives begin.
        ranks: how many.
        ladder: the node's disk, then S3.
        run: the run's name.
        meeting: where the ranks find each other.
    """

    number: int
    ranks: int
    ladder: Config
    run: str
    meeting: str

    def live(self, rank: int, told: int) -> None:
        """Play a rank; the first one writes what happens to `told`."""

        def tell(*words: object) -> None:
            if rank == 0:
                os.write(told, f"{' '.join(map(str, words))}\n".encode())

        if self.ranks > 1:
            dist.init_process_group(
                "gloo",
                init_method=f"file://{self.meeting}",
                rank=rank,
                world_size=self.ranks,
                timeout=timedelta(seconds=PATIENCE),
            )
        state = _state(0, 0)
        with Checkpointer(self.ladder, run=self.run) as ckpt:
            step = ckpt.restore(state) or 0
            life = state["life"]
            expected = _state(life, step)
            if any(not _same(state[name], wanted) for name, wanted in expected.items()):
                tell("wrong", life, step)
            tell("restored", life, step)
            for _ in range(_SAVES):
                step += 1
                save = ckpt.save(step, _state(self.number, step))
                for tier in ("disk", "s3"):
                    save.wait(tier, timeout=PATIENCE)
                    tell(tier, step)


def _state(life: int, step: int) -> dict[str, object]:
    numbers = {f"w{i}": torch.full((500,), life * 1000.0 + step + i / 8) for i in range(4)}
    return {**numbers, "life": life, "step": step}


def _same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    return one == other


@dataclass
class Ledger:
    """What was acknowledged and can still be reached: life by life the last step."""

    s3: dict[int, int] = field(default_factory=dict)
    disk: dict[str, dict[int, int]] = field(default_factory=lambda: {node: {} for node in NODES})

    def judge(self, node: str, life: int, step: int) -> str:
        """Return what is wrong with a restore on a node, or nothing."""
        reachable = [self.s3, self.disk[node]]
        newest = max((each for acks in reachable for each in acks), default=0)
        last = max((acks.get(newest, 0) for acks in reachable), default=0)
        if life > newest or (life == newest and step >= last):
            return ""  # of what was never acknowledged, more may be there
        return f"step {last} of life {newest} was acknowledged; step {step} of life {life} came"


@dataclass
class Story:
    """Lives of one run, each killed."""

    folder: Path
    s3: str
    run: str
    random: random.Random
    ledger: Ledger = field(default_factory=Ledger)
    faults: list[str] = field(default_factory=list)

    def life(self, number: int) -> None:
        """Let a life live until it is killed, and judge what it restored."""
        node = self.random.choice(NODES)
        disk = self.folder / node
        if self.random.random() < 0.1:
            shutil.rmtree(disk, ignore_errors=True)
            self.ledger.disk[node].clear()
        ladder = Config((TierConfig("disk", disk.as_uri()), TierConfig("s3", self.s3)))
        meeting = str(self.folder / f"meeting-{number}")
        ranks = self.random.choice([1, 1, 2])
        life = Life(number, ranks, ladder, self.run, meeting)
        wait, last = self.random.randint(0, 2 * _SAVES + 1), self.random.uniform(0.0, 0.15)
        with _ranks(life) as (pids, told):
            for line in _killed_after(pids, told, wait, last, self.random):
                what, *numbers = line.split()
                self._take(node, life, what, [int(each) for each in numbers])

    def _take(self, node: str, life: Life, what: str, numbers: list[int]) -> None:
        where = f"run {self.run}, life {life.number} on node {node}"
        if what == "wrong":
            self.faults.append(f"{where}: step {numbers[1]} of life {numbers[0]} is wrong")
        elif what == "restored":
            if fault := self.ledger.judge(node, *numbers):
                self.faults.append(f"{where}: {fault}")
        else:
            acks = self.ledger.s3 if what == "s3" else self.ledger.disk[node]
            acks[life.number] = numbers[0]


@contextlib.contextmanager
def _ranks(life: Life) -> Iterator[tuple[list[int], int]]:
    """Fork the ranks; yield their ids and where the first one tells what happens."""
    reading, writing = os.pipe()
    pids = []
    for rank in range(life.ranks):
        pid = os.fork()
        if not pid:
            os.close(reading)
            code = 1
            try:
                life.live(rank, writing)
                code = 0
            except BaseException as error:  # whose other rank was killed
                if not isinstance(error, Exception):
                    raise
            finally:
                os._exit(code)
        pids.append(pid)
    os.close(writing)
    try:
        yield pids, reading
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(reading)


def _killed_after(
    pids: list[int], told: int, messages: int, seconds: float, chance: random.Random
) -> Iterator[str]:
    """Yield what is told; kill the ranks some time after so many messages, one before the other."""
    first = chance.randrange(len(pids))
    hung = threading.Timer(PATIENCE, os.kill, [pids[0], signal.SIGABRT])
    hung.start()
    with os.fdopen(os.dup(told)) as lines:
        for count in range(messages + 1):
            if count == messages:
                time.sleep(seconds)
                os.kill(pids[first], signal.SIGKILL)
                time.sleep(chance.choice([0.0, 0.05]))
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)  # not reaped yet, so it is still ours
                break
            if not (line := lines.readline()):
                break
            yield line
        yield from lines
    hung.cancel()


def kill(kills: int, seed: int, folder: Path, s3: str, *, progress: bool = False) -> list[str]:
    """Kill so many lives; return what was lost or wrong."""
    faults: list[str] = []
    open_tier(TierConfig("s3", s3)).close()  # what S3 needs is read once, and forked
    chance = random.Random(seed)
    for number in range(1, kills + 1):
        if number % _LIVES == 1:
            for node in NODES:
                shutil.rmtree(folder / node, ignore_errors=True)
            story = Story(folder, s3, f"run-{number}", chance, faults=faults)
        story.life(number)
        if progress and number % 100 == 0:
            print(f"{number} kills, {len(faults)} faults", flush=True)
    return faults


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--s3", default="", help="of a bucket; MinIO is started without it")
    told = parser.parse_args()
    print(f"seed {told.seed}", flush=True)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not told.s3:
            server = stack.enter_context(minio())
            os.environ.update(server.environment())
            told.s3 = server.url(server.new_bucket())
        faults = kill(told.kills, told.seed, folder, told.s3, progress=True)
    print("\n".join(faults))
    print(f"{told.kills} kills, {len(faults)} faults")
    sys.exit(bool(faults))


if __name__ == "__main__":
    multiprocessing.set_start_method("fork")
    main()
