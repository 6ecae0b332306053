"""Trainers killed at any moment: what is listed as staged is whole, and of one save."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.shards import assert_restores, folder
from tierstore.backends.images import ImagesBackend
from tierstore.image.pool import StagingPool
from tierstore.ladder.find import choose
from tierstore.ladder.staged import find_staged

TRAINER = """
import sys, time
from pathlib import Path
from tests.shards import folder, launch, stage, tier
from tierstore.image.pool import StagingPool
from tierstore.keys import Attempt
from tierstore.ladder.save import Saver
from tierstore.wrappers.faults import Fault, Faulty

pool = StagingPool(sys.argv[1], limit=2)
pause = Fault("write", times=10**9, action=lambda _: (time.sleep(0.002), None)[1])
slow = tier("t", Faulty(folder("t", Path(sys.argv[2])).backend, pause))
saver = Saver([slow], "run", pool=pool)
print("begun", flush=True)
for step in range(10**9):
    shard, source = stage(Attempt(step, 1, 1), launch(), rows=1200 + 300 * (step % 3 == 0))
    image = saver.acquire(shard.layout.size, timeout=60, spans=shard.layout.spans)
    image.buffer[: len(source.buffer)] = source.buffer
    saver.submit(shard, image)
"""


@pytest.mark.parametrize("seed", range(6))
def test_what_is_listed_is_whole(shm_path: Path, tmp_path: Path, seed: int) -> None:
    images, chance = ImagesBackend(shm_path), random.Random(seed)
    command = [sys.executable, "-c", TRAINER, str(shm_path), str(tmp_path / "trainers")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as trainer:
        try:
            assert trainer.stdout is not None
            assert trainer.stdout.readline() == b"begun\n"
            deadline = time.monotonic() + chance.random()
            seen = 0
            while (
                time.monotonic() < deadline or not seen
            ):  # whoever looks meanwhile finds whole ones
                looked = find_staged(images)
                assert not looked.damaged
                seen += len(looked.shards)
        finally:
            trainer.kill()
    found = find_staged(images)
    assert not found.damaged
    assert len(found.shards) + len(found.incomplete) <= 2
    for number, shard in enumerate(found.shards):
        one = folder("t", tmp_path / str(number))
        shard.check()
        assert shard.send(one.backend) is not None
        rows = shard.description.fragment.chunks[0].shape[0]
        assert_restores(choose([one], "run"), shard.description.name.id.attempt, rows)
    StagingPool(str(shm_path)).close()
    assert list(shm_path.iterdir()) == []
