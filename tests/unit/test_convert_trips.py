"""Round trips from format to format, with the real libraries at both ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests import states
from tests.command import tierstore

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings(
        "ignore:.*ComplexHalf:UserWarning",
        "ignore:.*bcomplex32:UserWarning",
        "ignore::UserWarning:torch",
        "ignore::FutureWarning:torch",
    ),
]

Trip = Callable[..., Any]


@pytest.fixture
def run(tmp_path: Path) -> Trip:
    """Run a command on a tier in a folder; it must succeed; return what it says in JSON."""

    def trip(*words: object) -> Any:
        done = tierstore(*map(str, words), "--json", "-c", f"file://{tmp_path}/tier")
        assert done.code == 0, done.err
        return done.json

    return trip


def test_a_training_state_through_torch_save(run: Trip, tmp_path: Path) -> None:
    state = states.training([*states.HELD, *states.TORCH_ONLY, "bits8", "bits16"])
    torch.save(state, tmp_path / "in.pt")
    facts = run("import", tmp_path / "in.pt", "r", 12)
    assert facts["format"] == "torch"
    assert facts["pickles"] == facts["left_out"] == []
    run("export", "r", tmp_path / "out.pt")
    for mmap in (False, True):
        loaded = torch.load(tmp_path / "out.pt", weights_only=True, mmap=mmap)
        assert list(states.differences(state, loaded)) == []


def test_through_every_format(run: Trip, tmp_path: Path) -> None:
    """torch.save -> DCP -> Hugging Face -> torch.save, by way of tierstore."""
    state = states.training()
    torch.save(state, tmp_path / "in.pt")
    run("import", tmp_path / "in.pt", "a", 1)
    run("export", "a", tmp_path / "dcp", "--to", "dcp")
    assert run("import", tmp_path / "dcp", "b", 1)["format"] == "dcp"
    run("export", "b", tmp_path / "hf", "--to", "hf", "--only", "model", "--strip-prefix", "model.")
    assert run("import", tmp_path / "hf", "c", 1)["format"] == "hf"
    run("export", "c", tmp_path / "out.pt")
    assert list(states.differences(state["model"], torch.load(tmp_path / "out.pt"))) == []


def test_plain_values_come_out_of_dcp(run: Trip, tmp_path: Path) -> None:
    """DCP makes strings of the optimizer's numbers; all else is as it was."""
    state = states.training()
    torch.save(state, tmp_path / "in.pt")
    run("import", tmp_path / "in.pt", "r", 1)
    run("export", "r", tmp_path / "dcp", "--to", "dcp")
    run("import", tmp_path / "dcp", "r", 2)
    run("export", "r", tmp_path / "out.pt")
    known = state["optimizer"]["state"]
    state["optimizer"]["state"] = {str(key): value for key, value in known.items()}
    assert list(states.differences(state, torch.load(tmp_path / "out.pt"))) == []


def test_dcp_loads_what_is_exported(run: Trip, tmp_path: Path) -> None:
    state = states.training()
    torch.save(state, tmp_path / "in.pt")
    run("import", tmp_path / "in.pt", "r", 1)
    facts = run("export", "r", tmp_path / "dcp", "--to", "dcp", "--max-shard-size", "5MB")
    assert facts["files"][-1] == ".metadata"
    assert len(facts["files"]) > 3
    model = {name: torch.zeros_like(value.contiguous()) for name, value in state["model"].items()}
    target: dict[str, Any] = {"model": model, "step": 0, "seen": None}
    dcp.load(target, checkpoint_id=tmp_path / "dcp", no_dist=True)
    assert list(states.differences(state["model"], model)) == []
    assert (target["step"], target["seen"]) == (12, state["seen"])


def test_what_dcp_saved_is_imported(run: Trip, tmp_path: Path) -> None:
    state = states.training()
    dcp.save(state, checkpoint_id=tmp_path / "dcp", no_dist=True)
    run("import", tmp_path / "dcp", "r", 1)
    run("export", "r", tmp_path / "out.pt")
    loaded = torch.load(tmp_path / "out.pt")
    assert list(states.differences(state["model"], loaded["model"])) == []
    assert (loaded["step"], loaded["seen"]) == (12, state["seen"])


def test_safetensors_loads_what_is_exported(run: Trip, tmp_path: Path) -> None:
    model = {name: value.contiguous().clone() for name, value in states.tensors().items()}
    torch.save({"model": model, "step": 3}, tmp_path / "in.pt")
    run("import", tmp_path / "in.pt", "r", 1)
    choice = ("--only", "model.*", "--strip-prefix", "model.")
    facts = run("export", "r", tmp_path / "hf", "--to", "hf", "--max-shard-size", "20kB", *choice)
    assert facts["files"][0].startswith("model-00001-of-0000")
    assert facts["not_selected"] == 1
    index = json.loads((tmp_path / "hf/model.safetensors.index.json").read_text())
    loaded = {}
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / "hf" / file, "pt") as opened:
            loaded[name] = opened.get_tensor(name)
            assert opened.metadata() == {"format": "pt"}
    assert list(states.differences(model, loaded)) == []
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in model.values())
    assert sorted(set(index["weight_map"].values())) == facts["files"][:-1]
    for file in facts["files"][:-1]:  # only a tensor that is larger alone has more
        with safe_open(tmp_path / "hf" / file, "pt") as opened:
            sizes = [opened.get_tensor(name).nbytes for name in opened.keys()]  # noqa: SIM118
        assert sum(sizes) <= 20_000 or len([size for size in sizes if size]) == 1
    run("export", "r", tmp_path / "one.safetensors", *choice)
    assert list(states.differences(model, load_file(tmp_path / "one.safetensors"))) == []


def test_what_safetensors_saved_is_imported(run: Trip, tmp_path: Path) -> None:
    model = {name: value.contiguous().clone() for name, value in states.tensors().items()}
    model["block@0,1"] = torch.ones(2)  # as tierstore would call a chunk
    (tmp_path / "hf").mkdir()
    save_file(model, tmp_path / "hf/model.safetensors")
    (tmp_path / "hf/config.json").write_text("{}")
    (tmp_path / "hf/onnx").mkdir()
    facts = run("import", tmp_path / "hf", "r", 1, "--add-prefix", "model.")
    assert facts["left_out"] == ["config.json", "onnx/"]
    run("export", "r", tmp_path / "out.pt", "--strip-prefix", "model.")
    assert list(states.differences(model, torch.load(tmp_path / "out.pt"))) == []


def test_a_model_cache_consists_of_links(run: Trip, tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    save_file({"w": torch.arange(3)}, tmp_path / "blobs/0123")
    (tmp_path / "snapshot/model.safetensors").symlink_to("../blobs/0123")
    assert run("import", tmp_path / "snapshot", "r", 1)["tensors"] == 1


def test_a_state_of_many_small_tensors(run: Trip, tmp_path: Path) -> None:
    state = {f"w{index}": torch.full((3,), float(index)) for index in range(1000)}
    torch.save(state, tmp_path / "in.pt")
    run("import", tmp_path / "in.pt", "r", 1)
    for target in ("out.pt", "out.safetensors"):
        run("export", "r", tmp_path / target)
    assert list(states.differences(state, torch.load(tmp_path / "out.pt"))) == []
    assert list(states.differences(state, load_file(tmp_path / "out.safetensors"))) == []


def test_keys_that_look_alike_stay_apart(run: Trip, tmp_path: Path) -> None:
    state = {1: torch.ones(2), "1": torch.zeros(2), "a.b": torch.ones(1), "a": {"b": 5}}
    torch.save(state, tmp_path / "in.pt")
    run("import", tmp_path / "in.pt", "r", 1)
    run("export", "r", tmp_path / "out.pt")
    assert list(states.differences(state, torch.load(tmp_path / "out.pt"))) == []
