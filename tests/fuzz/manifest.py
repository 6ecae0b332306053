"""Manifests, as `show` looks at them and a restore uses them."""

from __future__ import annotations

from math import prod
from random import Random

from tests.attempts import fragment
from tests.mutations import mutate_numbers
from tierstore.blocks import crc32c
from tierstore.checkpoint.commit import Commit
from tierstore.checkpoint.fragment import Fragment, ValueEntry
from tierstore.checkpoint.manifest import Manifest
from tierstore.checkpoint.merge import merge
from tierstore.checkpoint.values import decode
from tierstore.convert.ranges import range_wants
from tierstore.convert.selection import TensorSelection
from tierstore.image.dtypes import item_size
from tierstore.image.layout import Chunk
from tierstore.keys import Attempt
from tierstore.transfer.requests import plan_requests

ATTEMPT = Attempt(100, 1, 1)
_READ = 4096  # bytes of a tensor that are asked for at a time


def checkpoints() -> list[list[Fragment]]:
    """Checkpoints of two ranks, of many shapes, of values, of nothing."""
    shapes = [(), (0,), (2, 3), (4, 3, 2)]
    chunks = [Chunk(f"t{i}", "float32", s, (0,) * len(s), s, "") for i, s in enumerate(shapes)]
    halves = [Chunk("h", "int8", (4, 4), (r, c), (2, 2), '["h"]') for r in (0, 2) for c in (0, 2)]
    values = [ValueEntry(f"v{i}", "", "json", b'{"$tuple":[1,"x"]}') for i in range(2)]
    values += [ValueEntry("o", "", "opaque", b"\x80\x04")]
    kinds = [([*chunks, *halves], values, 11), ([], values, -1), ([], [], 0)]
    return [
        [fragment(ATTEMPT, rank) for rank in range(2)],
        *([fragment(ATTEMPT, 0, 1, chunks=c, values=v, declared=n)] for c, v, n in kinds),
    ]


def SEEDS() -> list[bytes]:
    return [bytes(merge([part.to_bytes() for part in each]).buffer) for each in checkpoints()]


def parse(data: bytes) -> None:
    manifest = Manifest.open(data)
    look(manifest)
    restore(manifest, data)


def _commit(data: bytes, manifest: Manifest) -> Commit:
    """What whoever wrote the manifest would also have written."""
    crc = crc32c(data)
    return Commit(
        attempt=manifest.attempt,
        nonce=manifest.nonce,
        manifest=f"manifest-{crc:08x}.arrow",
        manifest_size=len(data),
        manifest_crc32c=crc,
        ranks=manifest.ranks,
        world_size=manifest.world_size,
        tensors=len(manifest),
        chunks=sum(len(tensor.files) for tensor in manifest),
        files=len(manifest.files),
        nbytes=0,
    )


def mutate(data: bytes, rng: Random) -> bytes:
    """Damage the numbers of the one batch, or how it is laid out, rather than the schema."""
    end = len(data) - 10 - int.from_bytes(data[-10:-6], "little")
    start = rng.choice((end // 2, end - 800, end - 800))
    return mutate_numbers(data, range(max(8, start), end), rng)


def look(manifest: Manifest) -> None:
    """Do what `show` does."""
    for name in manifest.names():
        tensor = manifest.find(name)
        assert tensor is not None
        tensor.chunks  # noqa: B018
    for value in manifest.values():
        assert manifest.find_value(value.name) is not None
        if value.kind == "json":
            value.data.decode()


def restore(manifest: Manifest, data: bytes) -> None:
    """Do what a restore does; every byte that it asks for has a place in a file."""
    commit = _commit(data, manifest)
    manifest.checked(commit)
    for value in manifest.values():
        if value.kind == "json":
            decode(value.data.decode())
    files = {file.name: file for file in manifest.files}
    names, wants = list(files), []
    for tensor in manifest:
        TensorSelection(strip="w", add="m.").rename(tensor.name, tensor.path)
        nbytes = prod(tensor.shape) * item_size(tensor.dtype)
        for begin in {0, max(0, nbytes - _READ)}:
            into = memoryview(bytearray(min(_READ, nbytes - begin)))
            found = list(range_wants(tensor, names, begin, into))
            if commit.whole:
                assert sum(want.length for want in found) == len(into), "some bytes stay zero"
            wants += found
    for _ in plan_requests(wants, files, 8 * 1024**2):
        pass
