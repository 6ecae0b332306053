"""python -m tierstore.testing.servers install | run."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from tierstore.errors import TierstoreError
from tierstore.testing.servers.minio import find_minio, minio
from tierstore.testing.servers.programs import ServerUnavailableError
from tierstore.testing.servers.toxiproxy import find_toxiproxy

_PROGRAMS: dict[str, Callable[[], Path]] = {"MinIO": find_minio, "toxiproxy": find_toxiproxy}


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
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with minio(port=port) as server:
        server.client().create_bucket(Bucket="tierstore")
        lines = [f"export {key}={shlex.quote(v)}" for key, v in server.environment().items()]
        lines.append("tierstore doctor --config s3://tierstore/try")
        print(f"MinIO at {server.endpoint}, bucket 'tierstore'. In another shell:\n")  # noqa: T201
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
    serve = commands.add_parser("run", help="hold a MinIO until Ctrl-C")
    serve.add_argument("--port", type=int, default=9000)
    arguments = parser.parse_args()
    try:
        return install() if arguments.command == "install" else run(arguments.port)
    except TierstoreError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1


if __name__ == "__main__":
    sys.exit(main())
