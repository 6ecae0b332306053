"""python -m tierstore.testing.servers install | run."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from tierstore.errors import TierstoreError
from tierstore.testing.servers.hadoop import find_hadoop
from tierstore.testing.servers.hdfs import hdfs
from tierstore.testing.servers.minio import find_minio, minio
from tierstore.testing.servers.programs import ServerUnavailableError
from tierstore.testing.servers.toxiproxy import find_toxiproxy

_PROGRAMS: dict[str, Callable[[], Path]] = {
    "MinIO": find_minio,
    "toxiproxy": find_toxiproxy,
    "HDFS": lambda: find_hadoop().jars[0].parent,
}


def install() -> int:
    """Find or install every program that tests need; say what is missing."""
    missing = 0
    for name, find in _PROGRAMS.items():
        try:
            print(f"{name}: {find()}")  # noqa: T201
        except ServerUnavailableError as error:
            missing += 1
            print(f"LEFT OUT: tests that need {name}: {error}", file=sys.stderr)  # noqa: T201
    required = os.environ.get("TIERSTORE_REQUIRE_SERVERS") == "1"
    return 1 if missing and required else 0


def run(port: int) -> int:
    """Hold a MinIO with an empty bucket until Ctrl-C."""
    with minio(port=port) as server:
        server.client().create_bucket(Bucket="tierstore")
        return _hold(
            f"MinIO at {server.endpoint}, bucket 'tierstore'",
            server.environment(),
            "s3://tierstore/try",
        )


def run_hdfs(port: int) -> int:
    """Hold an HDFS until Ctrl-C."""
    with hdfs(port=port) as server:
        return _hold(
            f"HDFS at {server.endpoint}, two datanodes", server.environment(), server.url("/try")
        )


def _hold(what: str, environment: Mapping[str, str], url: str) -> int:
    lines = [f"export {key}={shlex.quote(value)}" for key, value in environment.items()]
    lines.append(f"tierstore doctor --config {url}")
    print(f"{what}. In another shell:\n")  # noqa: T201
    print("\n".join(lines), "\n\nCtrl-C stops it and removes its data.", flush=True)  # noqa: T201
    try:
        signal.pause()
    except KeyboardInterrupt:
        print("stopping")  # noqa: T201
    return 0


def main() -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(prog="tierstore.testing.servers", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("install", help="find or install the servers that tests use")
    serve = commands.add_parser("run", help="hold a server until Ctrl-C")
    serve.add_argument("server", nargs="?", choices=("minio", "hdfs"), default="minio")
    serve.add_argument("--port", type=int, help="of MinIO (9000) or of the namenode (9870)")
    arguments = parser.parse_args()
    try:
        if arguments.command == "install":
            return install()
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        if arguments.server == "hdfs":
            return run_hdfs(arguments.port or 9870)
        return run(arguments.port or 9000)
    except TierstoreError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1


if __name__ == "__main__":
    sys.exit(main())
