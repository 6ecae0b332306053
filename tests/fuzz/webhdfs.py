"""What a namenode answers: a status, a page of a listing, a datanode's place, a refusal."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from random import Random
from typing import Any

from tests.mutations import mutate_json
from tierstore.http import Response
from tierstore_hdfs import HdfsOptions, open_hdfs
from tierstore_hdfs.errors import answered

_FILE = {"pathSuffix": "", "type": "FILE", "length": 3, "modificationTime": 1_700_000_000_000}
_NAMED = [
    {**_FILE, "pathSuffix": "a"},
    {**_FILE, "pathSuffix": "d", "type": "DIRECTORY", "length": 0},
    {**_FILE, "pathSuffix": ".tierstore-0123456789abcdef", "ecPolicy": "RS", "encBit": True},
]


def _page(found: list[Any], remaining: int) -> bytes:
    inside = {"FileStatuses": {"FileStatus": found}}
    listing = {"partialListing": inside, "remainingEntries": remaining}
    return json.dumps({"DirectoryListing": listing}).encode()


_END = _page([], 0)


def SEEDS() -> list[bytes]:
    place = "http://127.0.0.1:1/webhdfs/v1/t/k?op=OPEN&delegation=s3cret&offset=0"
    said = {"exception": "IOException", "javaClassName": "x", "message": "quota of /t is exceeded"}
    return [
        json.dumps({"FileStatus": _FILE}).encode(),
        _page(_NAMED, 0),
        _page(_NAMED, 7),
        json.dumps({"Location": place}).encode(),
        json.dumps({"RemoteException": said}).encode(),
    ]


_BACKEND = open_hdfs("hdfs://127.0.0.1:1/t", HdfsOptions(user="me"))
_PATH = "/t/k"


class _Said:
    """A transport that has one answer, and then the end of a listing."""

    def __init__(self, data: bytes) -> None:
        self._answers: Iterator[Response] = iter([Response(200, {}, data)])

    def request(self, *_: Any, **__: Any) -> Response:
        return next(self._answers, Response(200, {}, _END))


def _listed() -> None:
    last = ""
    for info in _BACKEND.list(""):
        assert info.key > last
        assert 0 <= info.size < 1 << 63
        last = info.key


_USES: dict[bytes, Callable[[], object]] = {
    b"Location": lambda: _BACKEND._files.client.place("GET", _PATH, "OPEN"),
    b"Listing": _listed,
    b"FileStatus": lambda: _BACKEND.stat("k"),
}


def _open(said: _Said, **_: object) -> _Said:
    return said


def parse(data: bytes) -> None:
    for status in (403, 500):
        error = answered(Response(status, {}, data), doing="OPEN", who="token")
        assert len(str(error)) < 5000
    if b"RemoteException" in data:
        return
    use = next((use for name, use in _USES.items() if name in data), _listed)
    uses = (use, lambda: list(_BACKEND.uploads())) if use is _listed else (use,)
    for use in uses:
        said = _Said(data)
        _BACKEND._files.client._open = partial(_open, said)
        use()


def mutate(data: bytes, rng: Random) -> bytes:
    return mutate_json(data, rng)
