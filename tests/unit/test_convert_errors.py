"""What cannot be converted is named, and nothing that could run code is unpickled."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

from tests.command import Done, tierstore
from tierstore.errors import PlanError
from tierstore_torch.state.nested import nested

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning"),
]

Command = Callable[..., Done]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a command in the test's folder, on a tier there."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: tierstore(*map(str, words), "-c", f"file://{tmp_path}/tier")


class Evil:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> Any:
        return exec, ("open('pwned', 'w').close()",)


def test_a_torch_file_is_not_unpickled(command: Command, tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2), "x": Evil()}, "in.pt")
    done = command("import", "in.pt", "r", 1)
    assert done.code == 1
    assert "exec" in done.err
    assert "--allow-pickle" in done.err
    assert not (tmp_path / "pwned").exists()
    assert not (tmp_path / "tier").exists()


@pytest.mark.parametrize("name", ["getattr", "open"])
def test_dcps_metadata_is_not_unpickled(command: Command, tmp_path: Path, name: str) -> None:
    dcp.save({"w": torch.ones(2)}, checkpoint_id="d", no_dist=True)

    class Named:
        def __reduce__(self) -> Any:
            return {"getattr": getattr, "open": open}[name], ("pwned", "w")

    Path("d/.metadata").write_bytes(pickle.dumps(Named()))
    done = command("import", "d", "r", 1)
    assert done.code == 1
    assert f".{name}" in done.err
    assert not (tmp_path / "pwned").exists()


def test_a_torch_file_is_not_decompressed(command: Command, tmp_path: Path) -> None:
    """1.5 MB became 1.5 GB; a compressed tensor's bytes would be taken as they lie."""
    torch.save({"w": torch.ones(20)}, "in.pt")
    for packed in ("data.pkl", "data/0"):
        with zipfile.ZipFile("in.pt") as was, zipfile.ZipFile("packed.pt", "w") as new:
            for info in was.infolist():
                kind = zipfile.ZIP_DEFLATED if info.filename.endswith(packed) else None
                new.writestr(info.filename, was.read(info), kind)
        done = command("import", "packed.pt", "r", 1)
        assert done.code == 1
        assert "is no archive that torch.save writes: it is compressed" in done.err
    assert not (tmp_path / "tier").exists()


def test_a_path_of_any_depth_is_no_raw_error() -> None:
    """Whoever writes a manifest writes its paths."""
    for depth in (3000, 100_000):
        with pytest.raises(PlanError, match="too deep"):
            nested([("x", json.dumps(["a"] * depth), 1)])
        with pytest.raises(PlanError, match="too deep"):
            nested([("x", json.dumps([{"item": 0}] * depth), 1)])


def test_dcps_values_are_not_unpickled(command: Command, tmp_path: Path) -> None:
    """One that is not plain is kept as the pickle that it is, and looked at by nobody."""
    dcp.save({"w": torch.ones(2), "x": Evil(), "y": 3}, checkpoint_id="d", no_dist=True)
    (tmp_path / "pwned").unlink(missing_ok=True)
    done = command("import", "d", "r", 1, "--json")
    assert done.json["pickles"] == ["x"]
    done = command("export", "r", "out.pt")
    assert done.code == 1
    assert "x is stored as a pickle" in done.err
    assert command("export", "r", "e", "--to", "dcp").code == 0
    assert not (tmp_path / "pwned").exists()
    target = {"w": torch.zeros(2), "y": 0}
    dcp.load(target, checkpoint_id="e", no_dist=True)
    assert target["y"] == 3
    assert command("export", "r", "out.pt", "--allow-pickle").code == 0
    assert (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.ones(2, device="meta"), "x.y: a meta tensor has no numbers"),
        (torch.ones(2).to_sparse(), ""),
    ],
    ids=["meta", "sparse"],
)
def test_tensors_that_are_no_plain_memory(command: Command, value: object, said: str) -> None:
    torch.save({"x": {"y": value}, "w": torch.ones(1)}, "in.pt")
    done = command("import", "in.pt", "r", 1, "--json")
    if said:
        assert done.code == 1
        assert said in done.err
    else:  # as a save does: kept as a pickle, which is said
        assert done.json["pickles"] == ["x.y"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is no archive that torch.save writes"),
        (b"not a zip" * 100, "is no archive that torch.save writes"),
        (None, "holds a Tensor"),
    ],
)
def test_other_files(command: Command, content: bytes | None, said: str) -> None:
    if content is None:
        torch.save(torch.ones(2), "in.pt")
    else:
        Path("in.pt").write_bytes(content)
    done = command("import", "in.pt", "r", 1)
    assert done.code == 1
    assert said in done.err
    torch.save({"w": torch.ones(2)}, "old.pt", _use_new_zipfile_serialization=False)
    assert "before torch 1.6" in command("import", "old.pt", "r", 1).err


@pytest.mark.parametrize("dtype", ["complex128", "complex32", "bits8"])
def test_safetensors_names_what_it_cannot_hold(command: Command, dtype: str) -> None:
    kind: torch.dtype = getattr(torch, dtype)
    torch.save({"ok": torch.ones(1), "z": torch.zeros(16, dtype=torch.uint8).view(kind)}, "in.pt")
    assert command("import", "in.pt", "r", 1).code == 0
    done = command("export", "r", "out", "--to", "hf")
    assert done.code == 1
    assert f"z is of {dtype}, which safetensors does not hold" in done.err
    assert command("export", "r", "out", "--to", "hf", "--exclude", "z").code == 0


def test_values_have_no_place_in_safetensors(command: Command) -> None:
    torch.save({"model": {"w": torch.ones(1), "extra": 5}, "step": 3}, "in.pt")
    assert command("import", "in.pt", "r", 1).code == 0
    done = command("export", "r", "out.safetensors")
    assert done.code == 1
    assert "model.extra, step" in done.err
    assert "--only 'model.*'" in done.err
    done = command("export", "r", "out.safetensors", "--only", "model.*", "--json")
    assert done.json["left_out"] == ["model.extra"]
    assert done.json["not_selected"] == 1
    done = command("export", "r", "out.safetensors", "--only", "model", "--force")
    assert "left out, no tensors: model.extra" in done.out


def test_one_file_has_a_size(command: Command) -> None:
    torch.save({"a": torch.ones(100), "b": torch.ones(100)}, "in.pt")
    command("import", "in.pt", "r", 1)
    done = command("export", "r", "out.safetensors", "--max-shard-size", "500B")
    assert done.code == 1
    assert "out.safetensors would have more than 500 bytes" in done.err


def damaged_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("{}")


def missing_file(folder: Path) -> None:
    (folder / "model-00002-of-00002.safetensors").unlink()


def cut_file(folder: Path) -> None:
    path = folder / "model-00001-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def other_name(folder: Path) -> None:
    path = folder / "model.safetensors.index.json"
    path.write_text(path.read_text().replace('"a"', '"c"'))


def endless_index(folder: Path) -> None:
    path = folder / "model.safetensors.index.json"
    path.write_text(path.read_text()[:-1] + ',"x":[' + "[]," * 1_000_000 + "1]}")


def escaping(folder: Path) -> None:
    path = folder / "model.safetensors.index.json"
    path.write_text(path.read_text().replace("model-00001", "../model-00001"))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damaged_index, "is no index: KeyError('weight_map')"),
        (missing_file, "model-00002-of-00002.safetensors is missing, and the index names it"),
        (cut_file, "and its header says otherwise"),
        (other_name, "the index names c, which no file has"),
        (escaping, "'..' component"),
        (endless_index, "it has too many members"),
    ],
)
def test_a_damaged_model_folder(
    command: Command, damage: Callable[[Path], None], said: str
) -> None:
    folder = Path("hf")
    folder.mkdir()
    weights = {}
    for number, name in enumerate("ab", 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: torch.ones(3)}, folder / file)
        weights[name] = file
    index = {"metadata": {}, "weight_map": weights}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert command("import", "hf", "r", 1).code == 0
    damage(folder)
    done = command("import", "hf", "r", 2)
    assert done.code in (1, 2)
    assert said in done.err


def test_bytes_that_belong_to_no_tensor(command: Command) -> None:
    save_file({}, "in.safetensors")
    with Path("in.safetensors").open("ab") as file:
        file.write(b"model")
    done = command("import", "in.safetensors", "r", 1)
    assert done.code == 1
    assert "and its header says otherwise" in done.err


def test_a_folder_of_models_wants_a_name(command: Command) -> None:
    Path("hf").mkdir()
    for name in "ab":
        save_file({name: torch.ones(3)}, f"hf/{name}.safetensors")
    done = command("import", "hf", "r", 1)
    assert done.code == 2
    assert "no index files and 2 .safetensors files" in done.err
    assert command("import", "hf/a.safetensors", "r", 1).code == 0


def swapped(path: Path) -> None:
    """Make a file of torch.save one of a machine of other byte order."""
    data = path.read_bytes()
    assert data.count(b"little") == 1
    path.write_bytes(data.replace(b"little", b"bigend"))


def test_numbers_of_other_machines_are_refused(command: Command) -> None:
    torch.save({"w": torch.arange(9)}, "in.pt")
    dcp.save({"w": torch.arange(9)}, checkpoint_id="d", no_dist=True)
    for path in ("in.pt", "d/__0_0.distcp"):
        swapped(Path(path))
    for source in ("in.pt", "d"):
        done = command("import", source, "r", 1)
        assert done.code == 1
        assert "a machine of other byte order" in done.err


def test_one_of_one_is_the_whole_model(command: Command) -> None:
    Path("hf").mkdir()
    save_file({"w": torch.ones(3)}, "hf/model-00001-of-00001.safetensors")
    assert command("import", "hf", "r", 1).code == 0
    Path("hf/model-00001-of-00001.safetensors").rename("hf/model-00001-of-00002.safetensors")
    assert "it is not the whole model" in command("import", "hf", "r", 2).err


def test_dcp_says_what_is_wrong(command: Command) -> None:
    dcp.save({"w": torch.arange(100)}, checkpoint_id="d", no_dist=True)
    data = Path("d/__0_0.distcp").read_bytes()
    Path("d/__0_0.distcp").write_bytes(data[:-100])
    done = command("import", "d", "r", 1)
    assert done.code == 1
    assert "__0_0.distcp" in done.err
    Path("d/__0_0.distcp").write_bytes(b"\0" * len(data))
    done = command("import", "d", "r", 1)
    assert done.code == 1
    assert "w at (0,) is no archive that torch.save writes" in done.err
    Path("d/.metadata").unlink()
    done = command("import", "d", "r", 1, "--from", "dcp")
    assert done.code == 1
    assert ".metadata is missing" in done.err


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize(
    ("quantised", "said"),
    [
        (False, "m.0.s: this value is stored as a pickle and holds tensors of its own"),
        (True, "m.0.s: torch cannot save this value: Cannot serialize qtensor"),
    ],
)
def test_a_pickle_that_torch_files_cannot_have_is_named(
    command: Command, said: str, *, quantised: bool
) -> None:
    ones = torch.ones(2)
    value = torch.quantize_per_tensor(ones, 0.1, 0, torch.qint8) if quantised else ones.to_sparse()
    torch.save({"t": ones, "m": [{"ok": 1, "s": value}]}, "in.pt")
    assert command("import", "in.pt", "r", "1", "--allow-pickle").code == 0
    done = command("export", "r", "out.pt", "--allow-pickle")
    assert done.code == 1
    assert said in done.err
