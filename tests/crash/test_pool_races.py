"""Pools of several processes in one folder, some of them killed at any moment."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time

import pytest

from tests.patience import PATIENCE
from tierstore.image.pool import StagingPool

WORK = """
import os, select, sys
from tierstore.image.pool import StagingPool, open_image
number, turn = int(sys.argv[2]), 0
while not (turn and select.select([sys.stdin], [], [], 0)[0]):
    pool = StagingPool(sys.argv[1])          # removes what others left
    for size in (4096, 65536, 65536):
        turn += 1
        image = pool.acquire(size, timeout=10)
        assert image.shared and os.path.exists(image.path), "a living pool lost its file"
        if turn == 1:
            print("holds an image", flush=True)
        mark = (number * 1_000_003 + turn).to_bytes(8, "little")
        image.buffer[:8] = mark
        reader = open_image(image.path, size)
        assert reader.buffer[:8] == mark, "two pools share memory"
        reader.release()
        image.release()
    pool.close()
"""


def start(folder: object, number: int) -> subprocess.Popen:
    """Start to make and close pools, until there is input; return once it has an image."""
    process = subprocess.Popen(
        [sys.executable, "-c", WORK, str(folder), str(number)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "holds an image\n"
    return process


@pytest.mark.parametrize("seed", [1, 2])
def test_the_dead_leave_nothing_and_the_living_lose_nothing(shm_path, seed):
    chance = random.Random(seed)
    survivors = [start(shm_path, number) for number in range(2)]
    for number in range(4):
        victim = start(shm_path, 10 + number)
        time.sleep(chance.random() * 0.2)
        victim.send_signal(signal.SIGKILL)
        victim.communicate()
    for process in survivors:
        _, err = process.communicate("enough", timeout=PATIENCE)
        assert process.returncode == 0, err
    StagingPool(str(shm_path)).close()
    assert list(shm_path.iterdir()) == []
