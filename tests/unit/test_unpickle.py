"""DCP's `.metadata` as somebody else may have written it: nothing is called, set or filled."""

from __future__ import annotations

import copyreg
import importlib
import pickle
import struct
import tracemalloc
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import metadata as made

from tests.command import tierstore
from tierstore.errors import FormatError, UnsafePickleError
from tierstore_torch import torch_private
from tierstore_torch.convert.unpickle import load_metadata

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning"),
]

MODULE = "torch.distributed.checkpoint.metadata"
FILESYSTEM = "torch.distributed.checkpoint.filesystem"


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def load(data: bytes) -> made.Metadata:
    return load_metadata(data, "d/.metadata", allow_pickle=False)


def metadata(**changed: Any) -> made.Metadata:
    """A small one, such as DCP writes."""
    size, half = torch.Size([4, 2]), torch.Size([2, 2])
    chunks = [made.ChunkStorageMetadata(torch.Size([row, 0]), half) for row in (0, 2)]
    whole = {
        "state_dict_metadata": {
            "w": made.TensorStorageMetadata(made.TensorProperties(torch.bfloat16), size, chunks),
            "step": made.BytesStorageMetadata(),
        },
        "planner_data": {"w": ("model", 0, "w"), "step": ("step",), "odd": {"not": "a path"}},
        "storage_data": {
            made.MetadataIndex("w", torch.Size([0, 0]), 0): torch_private.storage_info("a", 0, 9),
            made.MetadataIndex("step"): torch_private.storage_info("b", 9, 9),
        },
        "storage_meta": made.StorageMeta(checkpoint_id=Path("/some/where"), modules=["x"]),
    }
    return made.Metadata(**{**whole, **changed})


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_dcp_writes_is_read(protocol: int, tmp_path: Path) -> None:
    state = {"w": torch.ones(3, 2), "o": {"l": [torch.zeros(0), torch.tensor(1)]}, "n": 5, "f": 0.5}
    dcp.save(state, checkpoint_id=tmp_path, no_dist=True)
    written = pickle.loads((tmp_path / ".metadata").read_bytes())
    for whole in (written, metadata()):
        found = load(pickle.dumps(whole, protocol=protocol))
        assert found.storage_data == whole.storage_data
        paths = {key: path for key, path in whole.planner_data.items() if type(path) is tuple}
        assert found.planner_data == paths
        assert list(found.state_dict_metadata) == list(whole.state_dict_metadata)
        for key, entry in whole.state_dict_metadata.items():
            ours = found.state_dict_metadata[key]
            assert type(ours) is type(entry)
            if isinstance(entry, made.TensorStorageMetadata):
                assert isinstance(ours, made.TensorStorageMetadata)
                assert (ours.size, ours.chunks) == (entry.size, entry.chunks)
                assert ours.properties.dtype == entry.properties.dtype


@pytest.mark.parametrize(
    "named",
    [
        ("pathlib", "PurePosixPath"),
        ("pathlib", "PosixPath"),
        ("torch", "Size"),
        ("torch", "float32"),
        ("torch.serialization", "_get_layout"),
        (MODULE, "Metadata"),
        (MODULE, "MetadataIndex"),
        (MODULE, "TensorProperties"),
        (MODULE, "_MEM_FORMAT_ENCODING"),
        (FILESYSTEM, "_StorageInfo"),
    ],
)
@pytest.mark.parametrize("state", ["dict", "slots"])
def test_nothing_that_is_named_can_be_changed(named: tuple[str, str], state: str) -> None:
    """Setting `_parse_path` of the class of paths once broke them for the whole process."""
    module, attribute = named
    told = b"}" + text("_parse_path") + b"Ns"
    whole = told if state == "dict" else b"N" + told + b"\x86"
    owner: Any = getattr(importlib.import_module(module), attribute)
    before = dict(vars(owner)) if hasattr(owner, "__dict__") else {}
    for begin in (b"", b")\x81", b"]\x85R", b")R"):  # the class itself, and what it makes
        with pytest.raises(FormatError):
            load(b"\x80\x04" + name(module, attribute) + begin + whole + b"b.")
    assert (dict(vars(owner)) if hasattr(owner, "__dict__") else {}) == before
    assert str(PurePosixPath("a/../b")) == "a/../b"


@pytest.mark.parametrize(
    ("module", "attribute"),
    [
        ("os", "system"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("builtins", "dict"),
        ("builtins", "list"),
        ("collections", "OrderedDict"),
        ("torch", "load"),
        ("torch", "ops"),
        ("torch", "Tensor"),
        ("torch", "_dynamo"),
        ("torch", "float32.to_real"),
        (MODULE, "os"),
        (MODULE, "Metadata.__init__"),
        (MODULE, "dataclass"),
        (f"{MODULE}.Metadata", "__init__"),
        (FILESYSTEM, "os"),
        ("pathlib", "os"),
        ("copyreg", "_reconstructor"),
        ("\x1b[2J", "x" * 10_000),
    ],
)
def test_only_what_is_needed_can_be_named(module: str, attribute: str) -> None:
    stacked = text(module) + text(attribute) + b"\x93"
    for naming in (name(module, attribute), stacked):
        with pytest.raises(UnsafePickleError, match="--allow-pickle") as caught:
            load(b"\x80\x04" + naming + b".")
        assert len(str(caught.value)) < 500


def test_no_extension_is_looked_up() -> None:
    """Python's own unpickler takes one that was used before from a cache, and asks nobody."""
    copyreg.add_extension("os", "getcwd", 0xF0)
    try:
        assert callable(pickle.loads(b"\x80\x02\x82\xf0."))
        for code in (b"\x82\xf0", b"\x83\xf0\x00", b"\x84\xf0\x00\x00\x00"):
            with pytest.raises(FormatError, match="instruction"):
                load(b"\x80\x02" + code + b")R.")
    finally:
        copyreg.remove_extension("os", "getcwd", 0xF0)
        copyreg.clear_extension_cache()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"\x80\x04",
        b"\x80\x04.",
        b"\x80\x04N",
        b"\x80\x04N.",
        b"\x80\x04(.",
        b"\x80\x04t.",
        b"\x80\x04u.",
        b"\x80\x04}N\x85u.",
        b"\x80\x04}(NNNu.",
        b"\x80\x04]NNs.",
        b"\x80\x04}Na.",
        b"\x80\x04NN\x87.",
        b"\x80\x04h\x05.",
        b"\x80\x04P1\n.",  # persistent ids
        b"\x80\x04NQ.",
        b"\x80\x05\x97.",
        b"\x80\x04X\xff\xff\xff\xffabc.",
        b"\x80\x04\x8d" + b"\xff" * 8 + b"abc.",
        b"\x80\x04\x8e" + b"\x7f" * 8 + b"abc.",
        b"\x80\x04X\x01\x00\x00\x00\xff.",
        b"\x80\x04\x8b\xff\xff\xff\x7f.",
        b"cos\n",
        b"\x80\x04]\x94h\x00a.",  # a list in itself
        b"\x80\x04" + b"(" * 10_000 + b".",
        b"\x80\x04" + b"]" * 10_000 + b"a" * 9_999 + b".",
        b"\x80\x04" + b")" + b"\x85" * 100_000 + b".",
        b"\x80\x04" + b"2" * 100 + b".",
        b"I" + b"9" * 10_000 + b"\n.",
        pickle.dumps([1]),
        pickle.dumps(torch.Size([1])),
        pickle.dumps(PurePosixPath("x")),
        pickle.dumps(metadata())[:-20],
    ],
)
def test_what_is_no_metadata(data: bytes) -> None:
    with pytest.raises(FormatError, match=r"d/\.metadata"):
        load(data)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04Nr\xff\xff\xff\x7f.",  # a memo of 16 GiB, in Python's own
        b"\x80\x04N" + b"r\xff\xff\xff\xff" * 50 + b".",
        b"\x80\x04]" + b"]" * 200_000 + b".",
        b"\x80\x04" + b"}" * 200_000 + b".",
        b"\x80\x04N" + b"\x85" * 200_000 + b".",
    ],
)
def test_a_small_file_takes_little_memory(data: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(FormatError):
        load(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30 * len(data) + (1 << 20)


def test_values_that_share_are_not_spread_out() -> None:
    """A hundred instructions make 2**100 values, for whoever walks through them."""
    whole = b"\x80\x04)\x94" + b"".join(b"h%ch%c\x86\x94" % (n, n) for n in range(100)) + b"."
    with pytest.raises(FormatError, match="holds a tuple"):
        load(whole)
    fields = b"}" + text("state_dict_metadata") + whole[2:-1] + b"s"
    with pytest.raises(FormatError):
        load(b"\x80\x04" + name(MODULE, "Metadata") + b")\x81" + fields + b"b.")


class Told:
    """Pickled as an object of another class, with a state of its own."""

    def __init__(self, kind: type, state: object) -> None:
        self.kind, self.state = kind, state

    def __reduce__(self) -> Any:
        return self.kind, (), self.state


def tensor(**changed: Any) -> Told:
    whole = {"properties": made.TensorProperties(torch.int8), "size": torch.Size([4]), "chunks": []}
    return Told(made.TensorStorageMetadata, {**whole, **changed})


def chunk(*told: Any) -> Told:
    return Told(made.ChunkStorageMetadata, dict(zip(("offsets", "sizes"), told, strict=False)))


def place(**changed: Any) -> Told:
    whole = {"relative_path": "a", "offset": 0, "length": 1}
    return Told(type(torch_private.storage_info("", 0, 0)), {**whole, **changed})


WRONG: list[dict[str, Any]] = [
    {"state_dict_metadata": [1]},
    {"state_dict_metadata": {1: tensor()}},
    {"state_dict_metadata": {"w": None}},
    {"state_dict_metadata": {"w": torch.float32}},
    {"state_dict_metadata": {"w": tensor(properties=1)}},
    {"state_dict_metadata": {"w": tensor(properties=Told(made.TensorProperties, (1,)))}},
    {"state_dict_metadata": {"w": tensor(properties=Told(made.TensorProperties, ()))}},
    {"state_dict_metadata": {"w": tensor(size=(4,))}},
    {"state_dict_metadata": {"w": tensor(size=torch.Size([2**62, 2**62]))}},
    {"state_dict_metadata": {"w": tensor(size=torch.Size([1] * 100))}},
    {"state_dict_metadata": {"w": tensor(chunks=None)}},
    {"state_dict_metadata": {"w": tensor(chunks=[None])}},
    {"state_dict_metadata": {"w": tensor(chunks=[chunk(torch.Size([0]))])}},
    {"state_dict_metadata": {"w": tensor(chunks=[chunk(torch.Size([0]), torch.Size([5]))])}},
    {"state_dict_metadata": {"w": tensor(chunks=[chunk(torch.Size([-1]), torch.Size([1]))])}},
    {"state_dict_metadata": {"w": tensor(chunks=[chunk(torch.Size([0, 0]), torch.Size([1, 1]))])}},
    {"storage_data": 1},
    {"storage_data": {"w": place()}},
    {"storage_data": {made.MetadataIndex("w"): 1}},
    {"storage_data": {made.MetadataIndex("w"): place(offset=-1)}},
    {"storage_data": {made.MetadataIndex("w"): place(length=2**64)}},
    {"storage_data": {made.MetadataIndex("w"): place(length=True)}},
    {"storage_data": {made.MetadataIndex("w"): place(relative_path=7)}},
    {"storage_data": {made.MetadataIndex("w"): place(transform_descriptors=["zip"])}},
    {"storage_data": {made.MetadataIndex("w", index=-1): place()}},
]


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_metadata_that_contradicts_itself(number: int) -> None:
    with pytest.raises(FormatError, match=r"d/\.metadata"):
        load(pickle.dumps(metadata(**WRONG[number])))


def test_an_item_is_no_longer_than_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """10**15 bytes were asked for at once."""
    monkeypatch.chdir(tmp_path)
    dcp.save({"n": 5}, checkpoint_id="d", no_dist=True)
    whole = pickle.loads(Path("d/.metadata").read_bytes())
    for info in whole.storage_data.values():
        info.length = 10**15
    Path("d/.metadata").write_bytes(pickle.dumps(whole))
    done = tierstore("import", "d", "r", "1", "-c", f"file://{tmp_path}/tier")
    assert done.code == 1
    assert "__0_0.distcp ends before byte" in done.err
    assert "copy it again" in done.err
