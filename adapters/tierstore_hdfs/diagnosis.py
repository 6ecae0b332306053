"""What `tierstore doctor` says about an HDFS."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice

from tierstore.backend import Check
from tierstore.errors import StorageError
from tierstore_hdfs.answers import at, number
from tierstore_hdfs.files import Files
from tierstore_hdfs.uploads import Uploads

_LITTLE = 0.1  # of all datanodes
_GIB = 1024**3
_FORGOTTEN = 86_400.0  # seconds
_LOOKED_AT = 10_000


def diagnose(files: Files, uploads: Uploads) -> Iterator[Check]:
    """Yield findings on the folder and on the cluster that has it."""
    yield _space(files)
    yield from _folder(files)
    yield _unfinished(uploads)


def _space(files: Files) -> Check:
    try:
        op = "GETSTATUS"
        found = at(files.client.call("GET", files.paths.folder(""), op), op, "FsStatus")
        free, total = number(found, op, "remaining"), number(found, op, "capacity")
    except StorageError:
        return Check("free space", "ok", "not told by this HDFS")  # before 3.4
    detail = f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB, for all copies together"
    if free < _LITTLE * total:
        return Check("free space", "warning", detail, "delete old checkpoints or add datanodes")
    return Check("free space", "ok", detail)


def _folder(files: Files) -> Iterator[Check]:
    status = files.status(files.paths.folder(""))
    if status.erasure_coding:
        yield Check("replication", "ok", f"erasure coding, {status.erasure_coding}")
    else:
        op = "GETSERVERDEFAULTS"
        given = at(files.client.call("GET", "/", op), op, "FsServerDefaults")
        copies = files.options.replication or number(given, op, "replication")
        if copies > 1:
            yield Check("replication", "ok", f"{copies} copies of each block")
        else:
            advice = "a disk that fails takes checkpoints with it: set replication to 2 or more"
            yield Check("replication", "warning", "one copy of each block", advice)
    if status.encrypted:
        detail = "not in an encryption zone: each file is written once more, as one stream"
        yield Check("joining", "warning", detail, "a folder outside saves faster, unencrypted")


def _unfinished(uploads: Uploads) -> Check:
    name, before = "unfinished uploads", time.time() - _FORGOTTEN
    old = [each for each in islice(uploads.list(""), _LOOKED_AT) if each.begun < before]
    if not old:
        return Check(name, "ok", "none over a day old")
    advice = (
        "they take space: call HdfsBackend.abort_upload for those of HdfsBackend.uploads() begun "
        "over a day ago; a younger one may be under way"
    )
    detail = f"{len(old)} were begun over a day ago, the first of {old[0].key!r}"
    return Check(name, "warning", detail, advice)
