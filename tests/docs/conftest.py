"""Where the examples of the pages run: a folder and a bucket that stand for /nvme and s3://bucket."""

from __future__ import annotations

import gc
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Bucket
from tests.ranks import Ranks

CONFIG = """\
[[tier]]
name = "nvme"
url = "file:///nvme/tierstore"

[[tier]]
name = "s3"
url = "s3://bucket/tierstore"
"""
STEPS = 300


@dataclass(frozen=True)
class Sandbox:
    """The current folder while examples run."""

    folder: Path
    bucket: Bucket
    checks: bool
    """Whether the server checks checksums, as moto does not."""

    def localise(self, text: str) -> str:
        """Put the folder and the bucket in the place of the pages' examples."""
        text = text.replace("file:///nvme/", f"file://{self.folder}/nvme/")
        return text.replace("s3://bucket/", f"s3://{self.bucket.name}/")

    def prepare(self, template: Path) -> None:
        """Give both tiers the checkpoints of `template`: a stored file is the same on each."""
        shutil.copytree(template, self.folder / "nvme/tierstore")
        for path in template.rglob("*"):
            if path.is_file():
                key = f"tierstore/{path.relative_to(template)}"
                self.bucket.write(key, path.read_bytes())


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tier with the run "llama-8b": two launches of two ranks, one step abandoned."""
    folder = tmp_path_factory.mktemp("saved")
    ranks = Ranks()
    try:
        from tests.docs import prepare

        ranks.run(2, prepare.save, folder.as_uri())
    finally:
        ranks.close()
    return folder


@pytest.fixture
def sandbox(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Sandbox:
    """An empty folder to run examples in, and a bucket: on MinIO, or on moto without one."""
    real = True
    try:
        bucket = request.getfixturevalue("minio_bucket")
    except pytest.skip.Exception:
        real, bucket = False, request.getfixturevalue("moto_bucket")
    made = Sandbox(tmp_path, bucket, real)
    (tmp_path / "tierstore.toml").write_text(made.localise(CONFIG))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return made


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What a training script has before a page's first example begins.

    `train` is on a machine that sends SIGTERM at step 17 to whoever listens, and must then stop.
    """
    import torch
    import torch.distributed as dist

    torch.manual_seed(0)
    model = torch.nn.Linear(8, 6)
    optimizer = torch.optim.AdamW(model.parameters())
    found: dict[str, Any] = {
        "torch": torch,
        "model": model,
        "optimizer": optimizer,
        "steps": STEPS,
    }

    told = False

    def train(step: int) -> None:
        nonlocal told
        listening = signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert not (told and listening), "the example goes on after SIGTERM"
        model(torch.full((8,), 1.0 + step)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        if step == 17 and listening:
            told = True
            os.kill(os.getpid(), signal.SIGTERM)

    found["train"] = train
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield found
    finally:
        _close_all()
        dist.destroy_process_group()


def _close_all() -> None:
    """Close what a failed example left open, before the process group that it uses is gone."""
    from tierstore_torch import Checkpointer
    from tierstore_torch.dcp.stage import close_staging

    close_staging()
    for thing in gc.get_objects():
        if type(thing) is Checkpointer:
            thing.close()
