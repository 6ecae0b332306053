"""tierstore: sharded checkpoints over memory, NVMe, HDFS and S3."""

from __future__ import annotations

__version__ = "0.1.0"
