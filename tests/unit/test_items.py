"""Which part of a tensor a rank holds: the same that torch gives it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

from tierstore.errors import PlanError
from tierstore_torch import torch_private
from tierstore_torch.state.items import byte_view, dtype_named, is_storable, tensor_chunks

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    file = tmp_path_factory.mktemp("world") / "rendezvous"
    dist.init_process_group("gloo", init_method=f"file://{Path(file)}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_tensor_is_one_chunk_that_shares_its_memory() -> None:
    tensor = torch.nn.Parameter(torch.zeros(2, 3))
    ((chunk, local),) = tensor_chunks("w", tensor, '["w"]')
    assert (chunk.name, chunk.dtype, chunk.path) == ("w", "float32", '["w"]')
    assert (chunk.shape, chunk.offsets, chunk.sizes) == ((2, 3), (0, 0), (2, 3))
    assert not local.requires_grad
    local.fill_(1)
    assert tensor.sum() == 6


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (5,)])
def test_byte_view_is_the_tensors_memory(shape: tuple[int, ...]) -> None:
    tensor = torch.zeros(shape, dtype=torch.int16)
    view = byte_view(tensor)
    assert view.nbytes == tensor.numel() * 2
    view[:] = b"\x01" * view.nbytes
    assert tensor.eq(0x0101).all()


@pytest.mark.parametrize("shape", [(), (0,), (3, 0)])
def test_tensors_without_extent_are_kept(shape: tuple[int, ...]) -> None:
    ((chunk, local),) = tensor_chunks("w", torch.zeros(shape))
    assert chunk.shape == chunk.sizes == tuple(local.shape) == shape


placements = st.sampled_from(
    [
        Replicate(),
        Shard(0),
        Shard(1),
        *(_StridedShard(d, split_factor=f) for d in (0, 1) for f in (2, 3)),
    ]
)


@settings(max_examples=300, deadline=None)
@given(
    st.tuples(st.integers(1, 13), st.integers(1, 9)),
    st.lists(st.tuples(st.integers(1, 4), placements), min_size=1, max_size=3),
    st.data(),
)
def test_boxes_are_where_torch_puts_the_elements(
    shape: tuple[int, int], axes: list[tuple[int, object]], data: st.DataObject
) -> None:
    """Split a tensor of its own indices as torch does, for any rank of any mesh."""
    whole = torch.arange(shape[0] * shape[1]).view(shape)
    coordinate = tuple(data.draw(st.integers(0, size - 1)) for size, _ in axes)
    local = whole
    for (size, placement), index in zip(axes, coordinate, strict=True):
        if not isinstance(placement, Replicate):
            pieces, _ = placement._split_tensor(local, size, with_padding=False, contiguous=False)
            local = pieces[index]
    boxes = torch_private._boxes(
        shape, tuple(size for size, _ in axes), coordinate, tuple(p for _, p in axes)
    )
    rebuilt = torch.full(shape, -1)
    for start, offsets, sizes in boxes:
        here = tuple(slice(a, a + n) for a, n in zip(start, sizes, strict=True))
        there = tuple(slice(a, a + n) for a, n in zip(offsets, sizes, strict=True))
        rebuilt[there] = local[here]
    held = rebuilt >= 0
    assert int(held.sum()) == local.numel()
    assert torch.equal(rebuilt[held], whole[held])


@pytest.mark.usefixtures("world")
def test_dtensors_of_one_rank() -> None:
    mesh = init_device_mesh("cpu", (1,))
    ((chunk, local),) = tensor_chunks("w", distribute_tensor(torch.ones(3, 2), mesh, [Shard(1)]))
    assert (chunk.offsets, chunk.sizes) == ((0, 0), (3, 2))
    assert not isinstance(local, DTensor)
    empty = distribute_tensor(torch.ones(0, 2), mesh, [Shard(0)])
    assert len(tensor_chunks("e", empty)) == 1
    with pytest.raises(PlanError, match=r"w: its placement .* still pending"):
        tensor_chunks("w", DTensor.from_local(torch.ones(2), mesh, [Partial()]))
    short = DTensor.from_local(
        torch.ones(2), mesh, [Shard(0)], run_check=False, shape=torch.Size([3]), stride=(1,)
    )
    with pytest.raises(PlanError, match=r"w: the local tensor has shape \(2,\), but .* 3 elements"):
        tensor_chunks("w", short)


class Parts(torch.Tensor):
    """What DCP calls a CheckpointableTensor: one buffer that holds several boxes."""

    global_shape = (4, 6)
    global_offsets = ((0, 0), (2, 3))
    local_offsets = ((0, 0), (2, 0))
    local_sizes = ((2, 3), (2, 3))


def test_tensors_that_list_their_own_shards() -> None:
    buffer = torch.arange(15.0).view(5, 3).as_subclass(Parts)
    chunks = tensor_chunks("w", buffer)
    assert [(c.shape, c.offsets, c.sizes) for c, _ in chunks] == [
        ((4, 6), (0, 0), (2, 3)),
        ((4, 6), (2, 3), (2, 3)),
    ]
    assert [t.flatten().tolist() for _, t in chunks] == [
        [0, 1, 2, 3, 4, 5],
        [6, 7, 8, 9, 10, 11],
    ]


@pytest.mark.parametrize(
    ("leaf", "storable"),
    [
        (torch.ones(2), True),
        (torch.nn.Parameter(torch.ones(2)), True),
        (torch.empty(2, device="meta"), True),  # refused by tensor_chunks, with a reason
        (torch.eye(2).to_sparse(), False),
        (torch.nested.nested_tensor([torch.ones(1)], layout=torch.jagged), False),
        (3, False),
        (None, False),
        ([torch.ones(2)], False),
    ],
    ids=repr,
)
def test_which_leaves_are_tensors(leaf: object, storable: bool) -> None:
    assert is_storable(leaf) is storable


def test_meta_tensors_are_refused() -> None:
    with pytest.raises(PlanError, match="w: a meta tensor has no numbers"):
        tensor_chunks("w", torch.empty(2, device="meta"))


@pytest.mark.parametrize("name", ["float2_e9m9", "nn", "__name__"])
def test_a_dtype_that_this_torch_does_not_know(name: str) -> None:
    with pytest.raises(PlanError, match=f"tensors of {name}, which torch .* does not know"):
        dtype_named(name)
    assert dtype_named("bfloat16") is torch.bfloat16
