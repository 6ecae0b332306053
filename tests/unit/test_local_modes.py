"""Who may read what lies on a local tier: the umask decides, or `mode` does for all of it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from tests.command import tierstore
from tests.patience import PATIENCE
from tests.shards import launch, stage
from tierstore.backends.local.backend import LocalBackend, LocalOptions
from tierstore.backends.local.scratch import NAME
from tierstore.blocks import crc32c
from tierstore.config import TierConfig, load_config
from tierstore.errors import ConfigError
from tierstore.keys import Attempt
from tierstore.ladder.save import Saver
from tierstore.ladder.tiers import OpenTier


@pytest.fixture(params=[0o022, 0o077, 0o000])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    old = os.umask(request.param)
    yield request.param
    os.umask(old)


def modes(root: Path) -> tuple[set[int], set[int]]:
    """The modes of all files, and of all folders, the root's included."""
    found: tuple[set[int], set[int]] = set(), {stat.S_IMODE(root.stat().st_mode)}
    for path in root.rglob("*"):
        found[path.is_dir()].add(stat.S_IMODE(path.stat().st_mode))
    return found


def write_all(backend: LocalBackend) -> None:
    """Write in every way, and leave an upload that can be resumed."""
    backend.create("a/small", b"x")
    backend.create("a/once", b"x", if_absent=True)
    backend.create("b/hasty", b"x", durable=False)
    backend.create("c/hasty", b"x", if_absent=True, durable=False)
    backend.flush()
    for key in ("d/e/large", "left"):
        upload = backend.upload(key, 8192)
        upload.write(0, bytes(8192), crc32c(bytes(8192)))
        if key == "left":
            assert upload.token
        else:
            upload.commit()
    backend.close()


@pytest.mark.parametrize(
    ("mode", "files", "folders"),
    [("0600", 0o600, 0o700), ("640", 0o640, 0o750), ("0660", 0o660, 0o770), ("644", 0o644, 0o755)],
)
@pytest.mark.usefixtures("umask")
def test_everything_has_the_mode(tmp_path: Path, mode: str, files: int, folders: int) -> None:
    root = tmp_path / "above" / "tier"
    write_all(LocalBackend(str(root), LocalOptions(mode=mode)))
    assert len(list((root / NAME).iterdir())) == 2, "an unfinished file, and its list of parts"
    found, found_folders = modes(root)
    assert found_folders == {folders}
    assert found | {files} == {files} or found == {files, files & ~os_umask()}


def os_umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


def test_by_default_the_umask_decides(tmp_path: Path, umask: int) -> None:
    write_all(LocalBackend(str(tmp_path / "tier")))
    assert modes(tmp_path / "tier") == ({0o666 & ~umask}, {0o777 & ~umask})


def test_a_folder_is_never_open_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even until it gets its mode."""
    begun: list[int] = []
    chmod = os.chmod

    def noted(path: str, mode: int) -> None:
        begun.append(stat.S_IMODE(Path(path).stat().st_mode))
        chmod(path, mode)

    monkeypatch.setattr(os, "chmod", noted)
    write_all(LocalBackend(str(tmp_path / "tier"), LocalOptions(mode="0600")))
    assert set(begun) == {0o700}


def test_what_is_there_keeps_its_mode(tmp_path: Path) -> None:
    root = tmp_path / "tier"
    (root / "a").mkdir(parents=True)
    (root / "a").chmod(0o2755)
    LocalBackend(str(root), LocalOptions(mode="0600")).create("a/b/x", b"")
    assert stat.S_IMODE((root / "a").stat().st_mode) == 0o2755
    below = stat.S_IMODE((root / "a" / "b").stat().st_mode)
    assert below == 0o2700, "the group of the folder above is inherited, as everywhere"


@pytest.mark.parametrize(
    "mode", ["", "600x", "0400", "0777", "0700", "1600", "00600", "rw", "0602"]
)
def test_other_modes(mode: str) -> None:
    with pytest.raises(ConfigError, match='write "0600"'):
        LocalOptions(mode=mode)


def test_it_is_text(tmp_path: Path) -> None:
    """600 would be 01130."""
    config = tmp_path / "tierstore.toml"
    config.write_text('[[tier]]\nname = "x"\nurl = "file:///x"\nmode = 600\n')
    with pytest.raises(ConfigError, match="'mode' is 600, which is not of type str"):
        load_config(config)


def test_a_save(tmp_path: Path) -> None:
    backend = LocalBackend(str(tmp_path / "tier"), LocalOptions(mode="0600"))
    tier = OpenTier(TierConfig("x", backend.url), backend, (0,))
    with closing(Saver([tier], "run")) as saver:
        saver.submit(*stage(Attempt(1, 1, 1), launch())).wait(timeout=PATIENCE)
    assert modes(tmp_path / "tier") == ({0o600}, {0o700})


def test_imports_exports_and_copies(tmp_path: Path) -> None:
    import numpy as np

    save_file({"w": np.ones(3)}, tmp_path / "in.safetensors")
    tier, out = f"file://{tmp_path}/tier?mode=0600", f"file://{tmp_path}/out"
    for words in (
        ("import", str(tmp_path / "in.safetensors"), "r", "1"),
        ("export", "r", f"{out}/folder?mode=0640", "--to", "hf"),
        ("export", "r", f"{out}/one/x.safetensors?mode=0600"),
    ):
        done = tierstore(*words, "-c", tier)
        assert done.code == 0, done.err
    assert tierstore("sync", f"file://{tmp_path}/tier", f"{out}/copy?mode=0600").code == 0
    assert modes(tmp_path / "tier") == modes(tmp_path / "out" / "copy") == ({0o600}, {0o700})
    assert modes(tmp_path / "out" / "folder") == ({0o640}, {0o750})
    assert modes(tmp_path / "out" / "one") == ({0o600}, {0o700})
