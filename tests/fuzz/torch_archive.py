"""Archives of torch.save, as far as they are looked at before torch does."""

from __future__ import annotations

import io
import zipfile
from random import Random

import torch

from tests.mutations import mutate_numbers
from tierstore_torch.convert.archive import check_archive


def SEEDS() -> list[bytes]:
    whole, small = io.BytesIO(), io.BytesIO()
    torch.save({"w": torch.ones(4), "n": [1, "x"]}, whole)
    with zipfile.ZipFile(small, "w") as archive:  # as torch wrote them before it told byte orders
        archive.writestr("a/data.pkl", b"\x80\x02N.")
    return [whole.getvalue(), small.getvalue()]


def parse(data: bytes) -> None:
    check_archive(io.BytesIO(data), "x.pt")


def mutate(data: bytes, rng: Random) -> bytes:
    """Damage the numbers of the directory, which is at the end."""
    return mutate_numbers(data, range(max(0, data.find(b"PK\x01\x02")), len(data)), rng)
