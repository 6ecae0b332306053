"""What a killed trainer had staged is sent to S3 by another process, and restored."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.shards import until
from tierstore.backends.images import ImagesBackend
from tierstore.config import TierConfig
from tierstore.image.pool import StagingPool
from tierstore.ladder.staged import find_staged
from tierstore.testing.servers import Toxiproxy
from tierstore.wrappers import open_tier
from tierstore_torch import Checkpointer

pytestmark = [pytest.mark.minio, pytest.mark.torch]

STATE = """
import torch

def make(fill):
    torch.manual_seed(fill)
    return {
        "model": {f"layer{i}": torch.randn(1000, 1024) for i in range(12)},
        "half": torch.randn(300, 7).bfloat16(),
        "empty": torch.zeros(0, 4),
        "optimizer": {0: {"step": torch.tensor(float(fill)), "betas": (0.9, 0.95)}},
        "epoch": fill,
    }
"""

TRAINER = f"""
import os, signal, sys, time
from tierstore.image import pool
from tierstore_torch import Checkpointer, torch_private
{STATE}
url, pool.DEFAULT_DIRECTORY, what = sys.argv[1:]
if what == "half":
    def copy_half(views, sources, *, wait):
        for view, source in zip(views[: len(views) // 2], sources):
            view.copy_(source)
        print("copying", flush=True)
        time.sleep(600)
    torch_private.copy_all = copy_half
checkpointer = Checkpointer(url, run="run", segment_bytes=16 * 1024**2)
checkpointer.save(7, make(7))
print("staged", flush=True)
time.sleep(600)
"""


def killed_trainer(url: str, folder: Path, what: str, ready: Any) -> None:
    """Run a trainer until it has staged, or half of it, and kill it."""
    command = [sys.executable, "-c", TRAINER, url, str(folder), what]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as trainer:
        try:
            assert trainer.stdout is not None
            assert trainer.stdout.readline() == ("staged\n" if what == "whole" else "copying\n")
            until(ready)
        finally:
            trainer.kill()


def test_a_staged_image_of_a_killed_trainer_is_listed_verified_and_sent(
    minio_bucket: Any, toxics: Toxiproxy, shm_path: Path
) -> None:
    proxy, url = toxics.proxy(minio_bucket.server.address), f"s3://{minio_bucket.name}/t"
    slow = f"{url}?endpoint_url={proxy.endpoint}"
    images = ImagesBackend(shm_path)
    with proxy.toxic("bandwidth", stream="upstream", rate=64):  # 48 MiB would take 12 minutes
        killed_trainer(slow, shm_path, "whole", lambda: find_staged(images).shards)
    stored = minio_bucket.keys()
    assert not [key for key in stored if "fragments/" in key or key.endswith(".safetensors")]

    found = find_staged(images)
    assert (found.incomplete, found.damaged) == ((), ())
    (shard,) = found.shards
    told = shard.description
    assert (told.run, told.name.id.step, told.name.rank, shard.image.owned) == ("run", 7, 0, False)
    assert len(told.fragment.files) >= 3
    shard.check()
    with closing(open_tier(TierConfig("s3", url))) as backend:
        commit = shard.send(backend)
    assert commit is not None
    assert commit.whole

    namespace: dict[str, Any] = {}
    exec(STATE, namespace)
    here, saved = namespace["make"](1), namespace["make"](7)
    with Checkpointer(url, run="run") as checkpointer:
        assert checkpointer.restore(here) == 7
    torch.testing.assert_close(here, saved, rtol=0, atol=0)
    assert here["epoch"] == 7


def test_an_image_that_was_being_copied_to_is_incomplete_and_never_sent(
    minio_bucket: Any, shm_path: Path
) -> None:
    images = ImagesBackend(shm_path)
    killed_trainer(f"s3://{minio_bucket.name}/t", shm_path, "half", images.images)
    found = find_staged(images)
    assert (found.shards, found.damaged) == ((), ())
    (state,) = found.incomplete
    assert (state.shard, state.owned) == (None, False)
    assert sum(file.stat().st_size for file in state.path.iterdir()) > 48_000_000
    assert list(images.list("")) == []
    StagingPool(str(shm_path)).close()
    assert list(shm_path.iterdir()) == []
