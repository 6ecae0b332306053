"""`.metadata` of a folder of torch.distributed.checkpoint, as an import reads it."""

from __future__ import annotations

import pickle
import pickletools
from functools import cache
from pathlib import PurePosixPath
from random import Random

import torch
from torch.distributed.checkpoint import metadata as dcp

from tierstore_torch import torch_private
from tierstore_torch.convert.unpickle import load_metadata

_PIECES = [
    b"cos\nsystem\n", b"cpathlib\nPurePosixPath\n", b")\x81", b")R", b"b", b"}", b"]", b"(", b"0",
    b"1", b"2", b"e", b"u", b"s", b"a", b"t", b"\x85", b"\x86", b"\x87", b"N", b"\x88", b"\x93",
    b"\x94", b"h\x00", b"r\xff\xff\xff\x7f", b"j\xff\xff\xff\x7f", b"X\xff\xff\xff\x7f",
    b"\x82\xf0", b"\x8a\xff", b"\x8b\xff\xff\xff\x7f", b"J\xff\xff\xff\xff", b"K\xff", b".",
    b"Q", b"Px\n", b"\x8d" + b"\xff" * 8, b"\x8e" + b"\x7f" * 8, b"\x95" + b"\x00" * 8,
    b"\x97", b"\x90", b"\x8f",
]  # fmt: skip


def SEEDS() -> list[bytes]:
    size, half = torch.Size([4, 2]), torch.Size([2, 2])
    chunks = [dcp.ChunkStorageMetadata(torch.Size([row, 0]), half) for row in (0, 2)]
    whole = dcp.Metadata(
        {
            "w": dcp.TensorStorageMetadata(dcp.TensorProperties(torch.bfloat16), size, chunks),
            "step": dcp.BytesStorageMetadata(),
        },
        {"w": ("model", 0, "w"), "step": ("step",)},
        {
            dcp.MetadataIndex("w", torch.Size([0, 0]), 0): torch_private.storage_info("a", 0, 9),
            dcp.MetadataIndex("step"): torch_private.storage_info("b", 9, 9),
        },
        dcp.StorageMeta(checkpoint_id=PurePosixPath("/x"), modules=["x"]),
    )
    return [pickle.dumps(whole, protocol) for protocol in (2, 4, 5)]


_PATHS = dict(vars(PurePosixPath))


def parse(data: bytes) -> None:
    try:
        load_metadata(data, "d/.metadata", allow_pickle=False)
    finally:
        assert dict(vars(PurePosixPath)) == _PATHS


@cache
def _starts(data: bytes) -> list[int]:
    return [at for _, _, at in pickletools.genops(data) if at is not None]


def mutate(data: bytes, rng: Random) -> bytes:
    """Instructions of the pickle are others, gone, or more."""
    starts = _starts(data)
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        number = rng.randrange(1, len(starts))
        begin = starts[number]
        end = rng.choice((begin, begin, (starts[number + 1 :] or [len(data)])[0]))
        out[begin:end] = b"".join(rng.choices(_PIECES, k=rng.choice((0, 1, 1, 2, 4))))
    return bytes(out)
