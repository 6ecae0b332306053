"""S3 in this process, by moto: quick to start, but it checks no checksums."""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Iterator

from tierstore.testing.servers.programs import ServerUnavailableError
from tierstore.testing.servers.s3 import S3Server


@contextlib.contextmanager
def moto() -> Iterator[S3Server]:
    """Start moto's S3 on a free loopback port, empty.

    Its objects live in this process: two servers at a time share them.

    Raises:
        ServerUnavailableError: moto is not installed.
    """
    try:
        server_type = importlib.import_module("moto.server").ThreadedMotoServer
    except ImportError as error:
        raise ServerUnavailableError(
            f"moto is not installed ({error.name} is missing)",
            hint="pip install 'tierstore[testing]'",
        ) from None
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # not a line per request
    server = server_type(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield S3Server(f"http://{host}:{port}", "tierstore", "tierstore-moto")
    finally:
        server.stop()
        server._server.server_close()  # noqa: SLF001 - moto leaves the socket open
