"""HDFS as a tier, over WebHDFS: `hdfs://namenode:9870/path`."""

from __future__ import annotations

from tierstore_hdfs.backend import HdfsBackend, open_hdfs
from tierstore_hdfs.options import HdfsOptions

__all__ = ["HdfsBackend", "HdfsOptions", "open_hdfs"]
