"""Importing, exporting and examining as a notebook calls it: values in, results and errors out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tierstore.errors import AlreadyExistsError, CheckpointNotFoundError, InvalidKeyError
from tierstore.operations import inspect
from tierstore.operations.convert import ConvertOptions, _Terms, export_step, import_step
from tierstore.operations.doctor import Check, examine
from tierstore.testing.servers import free_port


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.safetensors"
    save_file({"a": np.arange(5), "b": np.ones((2, 3), np.float16)}, path)
    return path


def test_there_and_back(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tier = (tmp_path / "t").as_uri()
    bars: list[tuple[str, int]] = []
    moved: list[int] = []

    def progress(what: str, nbytes: int) -> object:
        bars.append((what, nbytes))
        return moved.append

    dry = import_step(model, "run", 7, tier, dry_run=True)
    assert (dry.tensors, dry.nbytes, dry.form, dry.launch) == (2, 52, "hf", None)
    assert inspect.runs(tier).names == ()
    done = import_step(model, "run", 7, tier, progress=progress, add_prefix="m.")
    assert (done.tensors, done.launch, done.tiers) == (2, 1, ("local",))
    out = export_step("run", tmp_path / "out.safetensors", ladder=tier, strip_prefix="m.")
    assert (out.step, out.files) == (7, ("out.safetensors",))
    assert load_file(tmp_path / "out.safetensors")["a"].tolist() == [0, 1, 2, 3, 4]
    ((what, total),) = bars
    assert (what, sum(moved)) == ("run", total)
    assert capfd.readouterr() == ("", "")


def test_what_cannot_be_done_is_an_error(model: Path, tmp_path: Path) -> None:
    tier = (tmp_path / "t").as_uri()
    import_step(model, "run", 7, tier)
    with pytest.raises(AlreadyExistsError, match="step 7"):
        import_step(model, "run", 7, tier)
    with pytest.raises(InvalidKeyError):
        import_step(model, "run", -1, tier)
    with pytest.raises(CheckpointNotFoundError, match="no checkpoint of step 8"):
        export_step("run", tmp_path / "o.safetensors", 8, tier)
    with pytest.raises(TypeError, match="replace"):
        export_step("run", tmp_path / "o.safetensors", ladder=tier, replace=True)


def test_every_option_has_a_default_of_its_type() -> None:
    options = {n: t.__forward_arg__ for n, t in ConvertOptions.__annotations__.items()}
    assert options == _Terms.__annotations__


def test_findings_are_heard_as_they_are_made(tmp_path: Path) -> None:
    dead = f"hdfs://127.0.0.1:{free_port()}/t"
    heard: list[tuple[str, Check]] = []
    found = examine(
        [(tmp_path / "t").as_uri(), dead],
        hears=lambda name, _url: lambda check: heard.append((name, check)),
    )
    looked_at = [*found.tiers.items(), ("staging memory", found.staging)]
    assert heard == [(name, check) for name, part in looked_at for check in part.checks]
    assert not found.good
    assert [check.outcome for check in found.tiers["hdfs"].checks] == ["failed"]
    assert examine((tmp_path / "t").as_uri()).good
