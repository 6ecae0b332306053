"""S3 and everything that speaks its protocol, as a tier: `s3://bucket/prefix`."""

from __future__ import annotations

from tierstore_s3.backend import S3Backend, open_s3
from tierstore_s3.options import S3Options

__all__ = ["S3Backend", "S3Options", "open_s3"]
