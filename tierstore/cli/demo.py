"""`tierstore demo`: train, kill a rank in the middle of a save, resume, resume at another size."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tierstore.cli.output import ConfigOption, JsonOption, console, print_json
from tierstore.errors import ConfigError, TierstoreError

if TYPE_CHECKING:
    from rich.console import Console

_STEPS = 16
_EVERY = 4
_KILL_AT = 12
_RUN = "demo"
_RANK_SECONDS = 300


class DemoError(TierstoreError):
    """The demo did not show what it is there to show."""


@dataclass
class Job:
    """One launch of the training job and what its ranks reported."""

    code: int
    seconds: float
    events: list[dict[str, Any]]
    log: str = field(repr=False, default="")

    def losses(self) -> dict[int, float]:
        """Return the loss at every step it trained."""
        return {e["step"]: e["loss"] for e in self.events if e["event"] == "loss"}

    def last(self, event: str) -> dict[str, Any]:
        """Return the newest event of a kind.

        Raises:
            DemoError: there is none.
        """
        found = [e for e in self.events if e["event"] == event]
        if not found:
            raise DemoError(f"the job reported no {event!r}:\n{self.log[-2000:]}")
        return found[-1]


@dataclass
class Demo:
    """The folder and the tiers of one demonstration."""

    folder: Path
    config: str
    environment: dict[str, str]
    out: Console

    def launch(self, title: str, ranks: int, *extra: str, save: bool = True) -> Job:
        """Run the training job under torchrun until it ends."""
        self.out.print(f"[bold]{title}[/] ", end="")
        events = Path(tempfile.mkdtemp(dir=self.folder, prefix="events-"))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(ranks), "-m", "tierstore_torch.demo.train"]
        command += ["--steps", str(_STEPS), "--every", str(_EVERY), "--events", str(events)]
        command += ["--job", _RUN, *(["--config", self.config] if save else []), *extra]
        started = time.perf_counter()
        try:
            done = subprocess.run(
                command,
                env=os.environ | self.environment | {"OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=_RANK_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as late:
            raise DemoError(f"the job did not end within {_RANK_SECONDS} s") from late
        seconds = time.perf_counter() - started
        self.out.print(f"{seconds:.0f} s", style="dim")
        first = events / "0.jsonl"
        lines = first.read_text().splitlines() if first.exists() else []
        return Job(done.returncode, seconds, [json.loads(x) for x in lines], done.stdout)

    def finished(self, job: Job) -> Job:
        """Return the job if it ended well.

        Raises:
            DemoError: it did not; the message ends with its log.
        """
        if job.code:
            raise DemoError(f"the training job failed:\n{job.log[-3000:]}")
        return job


def run(
    config: ConfigOption = None,
    folder: Annotated[
        Path | None, typer.Option(help="An empty folder for it all; a temporary one if left out.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a small transformer with FSDP2, kill a rank while it saves, and resume.

    Saves to a local folder and to S3: MinIO if it is on PATH, otherwise moto in this process, or
    the tiers that --config names. Takes under two minutes.
    """
    for module, extra in (("torch", "torch"), ("boto3", "s3")):
        if find_spec(module) is None:
            raise ConfigError(
                f"the demo needs {module}", hint=f"pip install 'tierstore[{extra},testing]'"
            )
    out = console(stderr=as_json)
    place = _place(folder)
    with _tiers(config, place, out) as (source, environment):
        result = _story(Demo(place, source, environment, out))
    look = source if config else f"file://{place}/nvme"
    if as_json:
        print_json(result | {"folder": str(place), "config": look})
    else:
        _table(out, result, look)
        out.print(f"All of it lies in {place}; remove it when you have seen enough.")


def _place(folder: Path | None) -> Path:
    if folder is None:
        return Path(tempfile.mkdtemp(prefix="tierstore-demo-"))
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty", hint="give --folder a new folder")
    return folder.resolve()


@contextlib.contextmanager
def _tiers(
    config: list[str] | None, folder: Path, out: Console
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the configuration's path and the environment that its credentials need."""
    if config and len(config) == 1 and "://" not in config[0]:
        yield str(Path(config[0]).resolve()), {}
        return
    path = folder / "tierstore.toml"
    if config:
        path.write_text("".join(_tier(f"tier{i}", url) for i, url in enumerate(config, 1)))
        yield str(path), {}
        return
    from tierstore.testing import servers

    real = bool(shutil.which("minio") or os.environ.get("TIERSTORE_TEST_S3"))
    with servers.minio() if real else servers.moto() as server:
        out.print(f"S3 is {'MinIO' if real else 'moto, in this process'} at {server.endpoint}")
        bucket = server.new_bucket()
        path.write_text(_tier("nvme", f"file://{folder}/nvme") + _tier("s3", server.url(bucket)))
        try:
            yield str(path), server.environment()
        finally:
            server.remove_bucket(bucket)


def _tier(name: str, url: str) -> str:
    return f'[[tier]]\nname = "{name}"\nurl = "{url}"\n'


def _story(demo: Demo) -> dict[str, Any]:
    """Run every act and check what it shows.

    Raises:
        DemoError: a loss or a tensor differs from what it must be.
    """
    whole = demo.finished(
        demo.launch(f"1. never interrupted: 2 ranks, {_STEPS} steps", 2, save=False)
    )
    killed = demo.launch(
        f"2. saving every {_EVERY} steps; rank 1 gets SIGKILL while it saves step {_KILL_AT}",
        2,
        "--kill-at",
        str(_KILL_AT),
    )
    if not killed.code:
        raise DemoError("the job that lost a rank ended as if it had not")
    resumed = demo.finished(demo.launch("3. the same command again: resumes, 2 ranks", 2))
    step = resumed.last("restored")["step"]
    if step != _KILL_AT - _EVERY:
        raise DemoError(f"resumed from step {step}, not from {_KILL_AT - _EVERY}")
    _same("loss", whole.losses(), killed.losses() | resumed.losses())
    demo.out.print(
        f"   resumed from step {step}; all {_STEPS} losses equal the uninterrupted run's",
        style="green",
    )
    wider = demo.finished(demo.launch("4. resumes with 3 ranks", 3))
    before, after = resumed.last("digest"), wider.last("digest")
    _same("tensors", before, after)
    demo.out.print(
        f"   every tensor of step {after['step']} is identical (CRC32C {after['digest']:08x})",
        style="green",
    )
    saves = [e for job in (killed, resumed) for e in job.events if e["event"] == "saved"]
    return {
        "losses": whole.losses(),
        "resumed_from": step,
        "digest": f"{after['digest']:08x}",
        "saves": saves,
        "restore_seconds": {"2 ranks": resumed.last("restored")["seconds"]}
        | {"3 ranks": wider.last("restored")["seconds"]},
    }


def _same(what: str, expected: object, found: object) -> None:
    if expected != found:
        raise DemoError(f"the {what} differ:\n  {expected}\n  {found}")


def _table(out: Console, result: dict[str, Any], look: str) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, title="saves of rank 0", title_justify="left")
    for column in ("step", "stall, ms", "tier", "seconds", "GB/s"):
        table.add_column(column, justify="left" if column == "tier" else "right")
    roots: dict[str, str] = {}
    for save in result["saves"]:
        for index, tier in enumerate(save["tiers"]):
            first = (str(save["step"]), f"{save['stall'] * 1000:.1f}") if not index else ("", "")
            rate = f"{tier['gb_per_s']:.3f}" if tier["gb_per_s"] else ""
            seconds = f"{tier['seconds']:.2f}" if tier["seconds"] is not None else tier["state"]
            table.add_row(*first, tier["tier"], seconds, rate)
            roots[tier["tier"]] = tier["where"].partition("/runs/")[0]
    out.print()
    out.print(table)
    out.print("\nThe checkpoints are in")
    for name, root in roots.items():
        out.print(f"  {name}: {root}", markup=False, soft_wrap=True)
    out.print("\nLook at them:")
    for command in (f"ls {_RUN}", f"show {_RUN}", f"verify {_RUN}"):
        out.print(f"  tierstore {command} --config {look}", soft_wrap=True)
