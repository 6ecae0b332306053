"""fsspec's copying as a program: `python -m benchmarks.migrate_fsspec S3-ENDPOINT SRC DST`."""

from __future__ import annotations

import sys
from typing import Any
from urllib.parse import urlsplit


def main(endpoint: str, source: str, target: str) -> None:
    """Copy all that is below one folder to below another."""
    import s3fs

    files = s3fs.S3FileSystem(endpoint_url=endpoint)
    if "://" not in source:
        files.put(f"{source}/", target.removeprefix("s3://"), recursive=True)
    elif "://" not in target:
        files.get(f"{source.removeprefix('s3://')}/", target, recursive=True)
    else:
        _rsync(files, source, target)


def _rsync(files: Any, source: str, target: str) -> None:
    from fsspec import generic
    from fsspec.implementations.webhdfs import WebHDFS

    (hdfs,) = (urlsplit(url) for url in (source, target) if url.startswith("webhdfs://"))
    generic._generic_fs["s3"] = files  # noqa: SLF001 - as its documentation of "generic" says
    generic._generic_fs["webhdfs"] = WebHDFS(  # noqa: SLF001
        host=hdfs.hostname, port=hdfs.port, user="tierstore"
    )
    generic.rsync(source, target, inst_kwargs={"default_method": "generic"})


if __name__ == "__main__":
    main(*sys.argv[1:])
