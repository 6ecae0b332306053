"""The archive of Hadoop's classes: noted once, made once, and of one JVM and its jars."""

from __future__ import annotations

from pathlib import Path

import pytest

from tierstore.testing.servers import class_archive

DUMPS = """#!/bin/sh
for word in "$@"; do case "$word" in
  -XX:SharedArchiveFile=*) archive="${word#*=}";;
  -XX:SharedClassListFile=*) listing="${word#*=}";;
esac; done
cp "$listing" "$archive"
"""


def java(folder: Path, script: str) -> Path:
    path = folder / "java"
    path.write_text(script)
    path.chmod(0o755)
    return path


def test_it_is_of_one_jvm_and_of_its_jars(tmp_path: Path) -> None:
    jvm, jar = java(tmp_path, DUMPS), tmp_path / "a.jar"
    jar.write_bytes(b"1")
    place = class_archive.place_of(jvm, [jar], tmp_path)
    assert class_archive.place_of(jvm, [jar], tmp_path) == place
    jar.write_bytes(b"12")
    changed = class_archive.place_of(jvm, [jar], tmp_path)
    java(tmp_path, f"{DUMPS}# another version")
    assert len({place, changed, class_archive.place_of(jvm, [jar], tmp_path)}) == 3


def test_what_is_noted_is_archived_once(tmp_path: Path) -> None:
    archive, root = tmp_path / "archive", tmp_path / "root"
    command = [str(java(tmp_path, DUMPS))]
    (root / "1").mkdir(parents=True)
    class_archive.make(archive, root, command)
    assert not archive.exists(), "nothing was noted"
    for classes in ("A\nB\n", "B\nC\n"):
        (option,) = (o for o in class_archive.options(archive, root / "1") if "List=" in o)
        Path(option.partition("=")[2]).write_text(classes)
    class_archive.make(archive, root, command)
    assert sorted(archive.read_text().split()) == ["A", "B", "C"]
    assert class_archive.options(archive, root) == (f"-XX:SharedArchiveFile={archive}",)
    class_archive.make(archive, root, ["/nowhere"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive", "java", "root"]


@pytest.mark.parametrize(
    "script", ["#!/bin/sh\nexit 1\n", "#!/nowhere\n", DUMPS.replace("cp", ":")]
)
def test_without_one_nothing_is_lost(tmp_path: Path, script: str) -> None:
    (tmp_path / "x.classes").write_text("A\n")
    class_archive.make(tmp_path / "archive", tmp_path, [str(java(tmp_path, script))])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["java", "x.classes"]
