"""A real MinIO."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

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


def find_minio() -> Path:
    """Return the path of MinIO, installing it with Go when it is nowhere.

    Raises:
        ServerUnavailableError: it cannot be had.
    """
    return find_program(["minio"], _MODULE)


@contextlib.contextmanager
def minio(root: Path | None = None, *, port: int | None = None) -> Iterator[S3Server]:
    """Start MinIO, or use the one that TIERSTORE_TEST_S3 names.

    Args:
        root: folder for its data and log; a temporary one, removed at the end, if None.
        port: the loopback port; a free one if None.

    Raises:
        ServerUnavailableError: there is no MinIO and no Go to install it with, or it did not start.
        ConfigError: TIERSTORE_TEST_S3 is malformed.
    """
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
        server, process = _start(program, root, port)
        stack.enter_context(process)
        yield server


def _start(program: Path, root: Path, port: int | None) -> tuple[S3Server, ServerProcess]:
    user, secret = "tierstore", secrets.token_hex(16)
    for attempt in range(1, _TRIES + 1):
        address = f"127.0.0.1:{port or free_port()}"
        process = ServerProcess(
            [str(program), "server", "--quiet", "--address", address, str(root / "data")],
            log=root / "minio.log",
            env={**_QUIET, "MINIO_ROOT_USER": user, "MINIO_ROOT_PASSWORD": secret},
        )
        try:
            process.wait_ready(f"http://{address}/minio/health/live")
        except ServerUnavailableError:
            process.stop()
            if port or attempt == _TRIES:  # someone may have taken the free port: try another
                raise
        else:
            return S3Server(f"http://{address}", user, secret, process=process), process
    raise ServerUnavailableError("MinIO did not start")  # pragma: no cover
