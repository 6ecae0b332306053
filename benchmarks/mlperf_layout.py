"""Which tensors each rank saves of an MLPerf Storage checkpoint, in the published layout.

Ranks are numbered as Megatron-LM does: tensor-parallel ones next to each other, then replicas, then
pipeline stages. ZeRO cuts each tensor into flat, equal shards for the replicas: with stage 3 model
and optimizer, with stage 1 the optimizer only, and the first replica saves the model.
"""

from __future__ import annotations

from collections.abc import Iterator

from tierstore.model.workload import Shape

VOCABULARY = 128_256

OPTIMIZER = ("master", "exp_avg", "exp_avg_sq")
"""AdamW's float32 tensors of a parameter: 12 bytes each, beside 2 of the model in bfloat16."""


def shards(shape: Shape, rank: int) -> dict[str, tuple[int, str]]:
    """Return name -> (elements, dtype) of what one rank saves.

    Raises:
        ValueError: the layout has fewer ranks.
    """
    if not 0 <= rank < shape.ranks:
        raise ValueError(f"the layout has {shape.ranks} ranks, so none is number {rank}")
    replica, stage = rank // shape.tensor % shape.data, rank // (shape.tensor * shape.data)
    found = {}
    for name, count in parameters(shape, stage):
        flat = -(-count // shape.data)
        if shape.zero == 3:
            found[f"model.{name}"] = flat, "bfloat16"
        elif not replica:
            found[f"model.{name}"] = count, "bfloat16"
        for part in OPTIMIZER:
            found[f"optimizer.{part}.{name}"] = flat, "float32"
    return found


def parameters(shape: Shape, stage: int) -> Iterator[tuple[str, int]]:
    """Yield the parameters of one pipeline stage and their elements on one tensor-parallel rank.

    Norms, which ranks do not share out while they train, are saved in parts: so the sum over all
    ranks is what is published.
    """
    h, cut = shape.hidden, shape.tensor
    kv = h // shape.heads * shape.kv_heads
    layer = {
        "attention.q": h * h,
        "attention.k": h * kv,
        "attention.v": h * kv,
        "attention.o": h * h,
        "ffn.gate": h * shape.ffn,
        "ffn.up": h * shape.ffn,
        "ffn.down": h * shape.ffn,
        "attention.norm": h,
        "ffn.norm": h,
    }
    first, last = (shape.layers * n // shape.pipeline for n in (stage, stage + 1))
    if not stage:
        yield "embedding", VOCABULARY * h // cut
    for number in range(first, last):
        for name, count in layer.items():
            yield f"layers.{number}.{name}", count // cut
    if stage == shape.pipeline - 1:
        yield "norm", h // cut
        yield "output", VOCABULARY * h // cut
