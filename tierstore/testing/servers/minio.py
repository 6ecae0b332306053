"""A real MinIO: one server, or a set of them that spreads every object."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tierstore.errors import ConfigError
from tierstore.testing.servers.process import ServerProcess, free_port
from tierstore.testing.servers.programs import ServerUnavailableError, find_program
from tierstore.testing.servers.s3 import S3Server

_MODULE = "github.com/minio/minio@latest"
_QUIET = {
    "MINIO_BROWSER": "off",
    "MINIO_UPDATE": "off",
    "MINIO_CALLHOME_ENABLE": "off",
    "MINIO_CI_CD": "on",  # allows a data folder on the root disk
}
_TRIES = 3
_LEAST_SET = 4
_READY = 60.0


def find_minio() -> Path:
    """Return the path of MinIO, installing it with Go when it is nowhere.

    Raises:
        ServerUnavailableError: it cannot be had.
    """
    return find_program(["minio"], _MODULE)


@contextlib.contextmanager
def minio(
    root: Path | None = None, *, port: int | None = None, nodes: int = 1
) -> Iterator[S3Server]:
    """Start MinIO, or use the one that TIERSTORE_TEST_S3 names.

    Args:
        root: folder for its data and log; a temporary one, removed at the end, if None.
        port: the loopback port of the (first) server; a free one if None.
        nodes: servers. Four or more are a distributed set with a folder each, in which every object
            is erasure-coded over all of them; the first one is the one to talk to.

    Raises:
        ServerUnavailableError: there is no MinIO and no Go to install it with, or it did not start.
        ConfigError: TIERSTORE_TEST_S3 is malformed, or a set of so many servers keeps no copies.
    """
    if nodes != 1 and nodes < _LEAST_SET:
        raise ConfigError(f"{nodes} MinIO servers make no set", hint="take 1, or 4 and more")
    if address := os.environ.get("TIERSTORE_TEST_S3"):
        yield S3Server.parse(address)
        return
    program = find_minio()
    with contextlib.ExitStack() as stack:
        if root is None:
            root = Path(
                stack.enter_context(
                    tempfile.TemporaryDirectory(
                        prefix="tierstore-minio-", ignore_cleanup_errors=True
                    )
                )
            )
        root.mkdir(parents=True, exist_ok=True)
        server, processes = _start(program, root, port, nodes)
        for process in processes:
            stack.enter_context(process)
        yield server


def _start(
    program: Path, root: Path, port: int | None, nodes: int
) -> tuple[S3Server, list[ServerProcess]]:
    user, secret = "tierstore", secrets.token_hex(16)
    environment = {**_QUIET, "MINIO_ROOT_USER": user, "MINIO_ROOT_PASSWORD": secret}
    for attempt in range(1, _TRIES + 1):
        ports = [port or free_port(), *(free_port() for _ in range(nodes - 1))]
        addresses = [f"127.0.0.1:{each}" for each in ports]
        processes = [
            ServerProcess(
                [str(program), "server", "--quiet", "--address", own, *_places(root, addresses)],
                log=root / f"minio{number or ''}.log",
                # Says which address is its own: in a container it would not take a loopback one.
                env=environment | ({"_MINIO_SERVER_LOCAL": own} if nodes > 1 else {}),
            )
            for number, own in enumerate(addresses)
        ]
        health = "live" if nodes == 1 else "cluster"
        try:
            for process, address in zip(processes, addresses, strict=True):
                process.wait_ready(f"http://{address}/minio/health/{health}", seconds=_READY)
        except ServerUnavailableError:
            for process in processes:
                process.stop()
            if port or attempt == _TRIES:  # someone may have taken the free port: try another
                raise
        else:
            process = processes[0]
            return S3Server(f"http://{addresses[0]}", user, secret, process=process), processes
    raise ServerUnavailableError("MinIO did not start")  # pragma: no cover


def _places(root: Path, addresses: list[str]) -> list[str]:
    """Return where the data is, as every server of a set has to be told."""
    if len(addresses) == 1:
        return [str(root / "data")]
    return [f"http://{each}{root}/data{number}" for number, each in enumerate(addresses, 1)]
