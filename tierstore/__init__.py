"""tierstore: sharded checkpoints over memory, NVMe, HDFS and S3."""

from __future__ import annotations

from importlib.metadata import version

__version__ = version("tierstore")
