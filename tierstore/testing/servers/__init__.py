"""Real servers on loopback ports, for tests, the demo and anyone who wants to try a tier.

Each starter is a context manager that yields once the server answers and stops it on the way out,
also when the starting process is killed::

    with minio() as s3:                      # a fresh, empty MinIO
        s3.client().create_bucket(Bucket="b")
        with toxiproxy() as toxics:
            proxy = toxics.proxy(s3.address)
            proxy.add("latency", latency=200)
"""

from __future__ import annotations

from tierstore.testing.servers.daemon import Daemon
from tierstore.testing.servers.hdfs import hdfs
from tierstore.testing.servers.hdfs_server import HdfsServer
from tierstore.testing.servers.minio import minio
from tierstore.testing.servers.moto import moto
from tierstore.testing.servers.process import ServerProcess, free_port
from tierstore.testing.servers.programs import ServerUnavailableError
from tierstore.testing.servers.s3 import S3Server
from tierstore.testing.servers.toxiproxy import Proxy, Toxiproxy, toxiproxy
from tierstore.testing.servers.webhdfs import HdfsError, WebHdfs

__all__ = [
    "Daemon",
    "HdfsError",
    "HdfsServer",
    "Proxy",
    "S3Server",
    "ServerProcess",
    "ServerUnavailableError",
    "Toxiproxy",
    "WebHdfs",
    "free_port",
    "hdfs",
    "minio",
    "moto",
    "toxiproxy",
]
