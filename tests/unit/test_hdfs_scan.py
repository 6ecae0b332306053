"""Walking HDFS: folders that may not be listed, or in which nothing is wanted."""

from __future__ import annotations

from typing import Any, cast

import pytest

from tierstore.errors import AccessError, TransientError
from tierstore.scan import Kind, LeftOut, Ways
from tierstore_hdfs.answers import FileStatus
from tierstore_hdfs.files import Files, tag_of
from tierstore_hdfs.listing import scanning
from tierstore_hdfs.paths import Paths

TREE = {
    "/t": ["a", "deep/", "no/", "z"],
    "/t/deep": ["b", "no/"],
}


class Namenode:
    """Answers as one does, and counts who was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def call(self, _method: str, path: str, _operation: str, **_: object) -> dict[str, Any]:
        self.asked.append(path)
        if path not in TREE:
            raise AccessError("Permission denied: user=trainer, access=READ_EXECUTE")
        found = [
            {
                "pathSuffix": name.rstrip("/"),
                "type": "DIRECTORY" if name.endswith("/") else "FILE",
                "length": 1,
                "modificationTime": 1000,
                "fileId": 16385,
            }
            for name in TREE[path]
        ]
        page = {"FileStatuses": {"FileStatus": found}}
        return {"DirectoryListing": {"partialListing": page, "remainingEntries": 0}}


class Some:
    """As much of `Files` as a walk needs."""

    info = Files.info
    url = "hdfs://nn:9870/t"

    def __init__(self) -> None:
        self.paths, self.client = Paths("/t"), Namenode()


@pytest.fixture
def files() -> Some:
    return Some()


def test_what_may_not_be_listed_is_told(files: Some) -> None:
    found = list(scanning(cast("Files", files), Ways(), ""))
    assert [each.key for each in found] == ["a", "deep/b", "deep/no/", "no/", "z"]
    left = [each for each in found if isinstance(each, LeftOut)]
    assert {each.kind for each in left} == {Kind.UNREADABLE}
    assert "Permission denied" in left[0].why


def test_where_nothing_is_wanted_nobody_looks(files: Some) -> None:
    found = list(scanning(cast("Files", files), Ways(wants=lambda folder: "no" not in folder), ""))
    assert [each.key for each in found] == ["a", "deep/b", "deep/no/", "no/", "z"]
    assert files.client.asked == ["/t", "/t/deep"]


def test_other_errors_end_it(files: Some, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise TransientError("no answer")

    monkeypatch.setattr(files.client, "call", fail)
    with pytest.raises(TransientError):
        list(scanning(cast("Files", files), Ways(), ""))


def test_a_file_with_another_id_is_another_one() -> None:
    """Though it has the size and the time of the one before."""
    one, other = (FileStatus("a", "FILE", 1, 1000, file_id=number) for number in (7, 8))
    assert tag_of(one) != tag_of(other)
    assert tag_of(FileStatus("a", "FILE", 1, 1000)) == ""  # of a gateway that tells none
