"""`tierstore demo`: train, kill a rank in the middle of a save, resume, resume at another size."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tierstore.cli.options import PLACE, json_option
from tierstore.cli.output import console, print_json, size, table
from tierstore.errors import ConfigError, TierstoreError
from tierstore.text import printable
from tierstore.waiting import on

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_STEPS = 16
_EVERY = 4
_KILL_AT = 12
_RUN = "demo"
_RANK_SECONDS = 300
_END_SECONDS = 20
_LOG_CHARACTERS = 3000
_NOTE = """The first save of a job also plans who writes what, and allocates memory;
later ones only copy."""


class DemoError(TierstoreError):
    """The demo did not show what it is there to show."""

    def __str__(self) -> str:
        return printable(self.message, keep="\n")  # the end of a log has lines


@dataclass
class DemoJob:
    """One launch of the training job and what its ranks reported."""

    code: int
    seconds: float
    events: list[dict[str, Any]]
    log: str = field(repr=False, default="")

    def losses(self) -> dict[int, float]:
        """Return the loss at every step it trained."""
        return {e["step"]: e["loss"] for e in self.events if e["event"] == "loss"}

    def saves(self) -> list[dict[str, Any]]:
        """Return its saves, each with whether it was the first, which plans."""
        found = [e for e in self.events if e["event"] == "saved"]
        return [save | {"first": not number} for number, save in enumerate(found)]

    def last(self, event: str) -> dict[str, Any]:
        """Return the newest event of a kind.

        Raises:
            DemoError: there is none.
        """
        found = [e for e in self.events if e["event"] == event]
        if not found:
            raise DemoError(f"the job reported no {event!r}:\n{self.end_of_log()}")
        return found[-1]

    def end_of_log(self) -> str:
        """Return what its ranks printed last."""
        return self.log[-_LOG_CHARACTERS:].strip()


@dataclass
class Demo:
    """The folder, the run and the tiers of one demonstration."""

    folder: Path
    run: str
    config: str
    environment: dict[str, str]
    out: Console
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1), repr=False)

    def launch(self, title: str, ranks: int, *extra: str, save: bool = True) -> DemoJob:
        """Run the training job until it ends."""
        self.out.print(title, style="bold", end=" ", soft_wrap=True)
        events = self.folder / "events" / str(next(self._numbers))
        events.mkdir(parents=True)
        command = [sys.executable, "-m", "tierstore_torch.demo.train", "--ranks", str(ranks)]
        command += ["--steps", str(_STEPS), "--every", str(_EVERY), "--events", str(events)]
        command += ["--job", self.run, *(["--config", self.config] if save else []), *extra]
        started = time.perf_counter()
        code, log = _run_to_end(
            command, os.environ | self.environment | {"OMP_NUM_THREADS": "1"}, _RANK_SECONDS
        )
        seconds = time.perf_counter() - started
        self.out.print(f"{seconds:.0f} s", style="dim")
        return DemoJob(code, seconds, _events(events / "0.jsonl"), log)

    def finished(self, job: DemoJob) -> DemoJob:
        """Return the job if it ended well.

        Raises:
            DemoError: it did not; the message ends with its log.
        """
        if job.code:
            raise DemoError(f"the training job failed:\n{job.end_of_log()}")
        return job


def _run_to_end(command: list[str], environment: dict[str, str], seconds: float) -> tuple[int, str]:
    """Run the job and return its exit code and what its ranks printed.

    Raises:
        DemoError: it did not end in time.
    """
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # a Ctrl-C is ours to pass on, once
    )
    try:
        log, _ = process.communicate(timeout=seconds)
    except BaseException as error:
        log = _end(process)
        if isinstance(error, subprocess.TimeoutExpired):
            text = f"the job did not end within {seconds:g} s:\n{log[-_LOG_CHARACTERS:]}"
            raise DemoError(text) from error
        raise
    return process.returncode, log


def _end(process: subprocess.Popen[str]) -> str:
    process.terminate()
    try:
        return process.communicate(timeout=_END_SECONDS)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return ""


def _events(path: Path) -> list[dict[str, Any]]:
    """Return what a rank reported; a line that it died in is left out."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


@click.command
@click.option(
    "--config",
    "-c",
    multiple=True,
    type=PLACE,
    metavar="FILE|URL",
    help="Save to these tiers instead: a configuration file, or URLs, one each.",
)
@click.option(
    "--folder",
    type=click.Path(file_okay=False, readable=False, path_type=Path),
    help="An empty folder for everything. Default: a temporary one.",
)
@json_option("as_json")
def run(config: tuple[str, ...], folder: Path | None, as_json: bool) -> None:
    """Train a small transformer with FSDP2, kill a rank while it saves, and resume.

    Saves to a local folder, to S3 (MinIO if it is on PATH, otherwise moto in this process) and to
    the HDFS at TIERSTORE_TEST_HDFS (http://user@namenode:9870), if that is set; or to the tiers
    that --config names. Takes under a minute.
    """
    _check_packages(own=bool(config))
    own = _own_tiers(config)
    out = console(stderr=as_json)
    place = _place(folder)
    name = f"{_RUN}-{secrets.token_hex(3)}" if config else _RUN  # it may not be the first there
    try:
        with _tiers(own, place, out) as (source, environment):
            result = _story(Demo(place, name, source, environment, out))
    except DemoError as error:
        error.hint = f"what it left lies in {place}"
        raise
    except TierstoreError:
        with contextlib.suppress(OSError):
            place.rmdir()  # no server, so nothing was begun
        raise
    look = source if config else f"file://{place}/nvme"
    if as_json:
        print_json(result | {"run": name, "folder": str(place), "config": look})
    else:
        _print(out, result, name, look)
        enough = "remove it when you have seen enough"
        out.print(f"\nThe rest lies in {place}; {enough}.", soft_wrap=True)


def _check_packages(*, own: bool) -> None:
    """Raise ConfigError if a package is missing; tiers of one's own may need no S3."""
    for module, extra in (("torch", "torch"), *(() if own else (("boto3", "s3"),))):
        if find_spec(module) is None:
            raise ConfigError(
                f"the demo needs {module}", hint=f"pip install 'tierstore[{extra},testing]'"
            )


def _own_tiers(config: tuple[str, ...]) -> Path | str | None:
    """Return the file of the tiers that were asked for, or TOML of their URLs; None if none were.

    Raises:
        ConfigError: it is wrong. The job would find out only after a while.
    """
    from tierstore.config import load_config
    from tierstore.registry import is_url
    from tierstore.wrappers import open_tier

    if not config:
        return None
    tiers = load_config(*config).tiers
    for tier in tiers:
        with contextlib.closing(open_tier(tier)) as backend:
            if backend.capabilities.seen_by == "process":
                raise ConfigError(
                    f"{tier.url} lives in one process and the demo has several",
                    hint="write file:///dev/shm/... for a tier in memory",
                )
    if not is_url(config[0]):
        return Path(config[0]).resolve()
    pairs = zip(tiers, config, strict=True)
    return "".join(_tier(tier.name, url) for tier, url in pairs)


def _place(folder: Path | None) -> Path:
    if folder is None:
        return Path(tempfile.mkdtemp(prefix="tierstore-demo-"))
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty", hint="give --folder a new folder")
    return folder.resolve()


@contextlib.contextmanager
def _tiers(
    own: Path | str | None, folder: Path, out: Console
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the configuration's path and the environment that its credentials need."""
    path = folder / "tierstore.toml"
    if isinstance(own, Path):
        yield str(own), {}
        return
    if own is not None:
        path.write_text(own)
        yield str(path), {}
        return
    from tierstore.testing import servers

    real = bool(shutil.which("minio") or os.environ.get("TIERSTORE_TEST_S3"))
    with _hdfs(out) as (hdfs, user), contextlib.ExitStack() as started:
        with on("MinIO" if real else "moto", "its start"):
            server = started.enter_context(servers.minio() if real else servers.moto())
        out.print(f"S3 is {'MinIO' if real else 'moto, in this process'} at {server.endpoint}")
        bucket = server.new_bucket()
        nvme = _tier("nvme", f"file://{folder}/nvme")
        path.write_text(nvme + _tier("s3", server.url(bucket)) + hdfs)
        try:
            yield str(path), server.environment() | user
        finally:
            server.remove_bucket(bucket)
            path.write_text(nvme)  # who looks there later finds what is still there


@contextlib.contextmanager
def _hdfs(out: Console) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the tier of a new folder on HDFS, and its owner; nothing if no HDFS is configured.

    None is started: its JVMs take ten seconds.
    """
    from tierstore.testing import servers

    if not os.environ.get("TIERSTORE_TEST_HDFS"):
        yield "", {}
        return
    with servers.hdfs() as server, server.folder() as folder:
        out.print(f"HDFS is at {server.endpoint}")
        yield _tier("hdfs", server.url(folder)), server.environment()


def _tier(name: str, url: str) -> str:
    return f"[[tier]]\nname = {json.dumps(name)}\nurl = {json.dumps(url)}\n"


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
        text = "the job that lost a rank ended as if it had not"
        raise DemoError(f"{text}:\n{killed.end_of_log()}")
    resumed = demo.finished(demo.launch("3. the same command again: resumes, 2 ranks", 2))
    step = resumed.last("restored")["step"]
    if step != _KILL_AT - _EVERY:
        text = f"resumed from step {step}, not from {_KILL_AT - _EVERY}; the killed job said"
        raise DemoError(f"{text}:\n{killed.end_of_log()}")
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
    saves = [save for job in (killed, resumed) for save in job.saves()]
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


def _print(out: Console, result: dict[str, Any], name: str, look: str) -> None:
    out.print("\nsaves of rank 0", style="italic")
    out.print(_table(result))
    out.print(_NOTE, style="dim", soft_wrap=True)
    tiers = [tier for save in result["saves"] for tier in save["tiers"]]
    roots = {tier["tier"]: tier["where"].rpartition(f"/runs/{name}/")[0] for tier in tiers}
    out.print("\nThe checkpoints are in")
    for tier, root in roots.items():
        gone = "" if root.startswith("file:") or name != _RUN else "  (removed again)"
        out.print(f"  {tier}: {root}{gone}", soft_wrap=True)
    out.print("\nLook at them:")
    for command in ("ls", "show", "verify"):
        out.print(f"  tierstore {command} {name} --config {shlex.quote(look)}", soft_wrap=True)


def _table(result: dict[str, Any]) -> Table:
    columns = ("step", "save", "stall, ms", "tier", "seconds", "size", "GB/s")
    rows = table(columns, right=[column for column in columns if column not in ("save", "tier")])
    for save in result["saves"]:
        for index, tier in enumerate(save["tiers"]):
            kind = "first" if save["first"] else "later"
            first = (str(save["step"]), kind, f"{save['stall'] * 1000:.1f}")
            if tier["state"] == "committed":
                times = f"{tier['seconds']:.2f}", size(tier["bytes"]), f"{tier['gb_per_s']:.3f}"
            else:
                times = tier["state"], "", ""
            rows.add_row(*(("", "", "") if index else first), tier["tier"], *times)
    return rows
