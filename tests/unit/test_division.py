"""Who saves what: complete, without doubles, balanced, and the same whatever the order."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierstore.errors import PlanError
from tierstore_torch.state.division import ChunkOffer, Offer, ValueOffer, compare, decide

pytestmark = pytest.mark.torch


def chunk(name: str, offset: int = 0, size: int = 4, total: int = 4, **other: object) -> ChunkOffer:
    fields = {"path": 1, "dtype": "float32", "origin": 0, **other}
    return ChunkOffer(
        name=name, shape=(total,), offsets=(offset,), sizes=(size,), nbytes=4 * size, **fields
    )  # type: ignore[arg-type]


def owned(offers: list[Offer]) -> list[list[tuple[str, tuple[int, ...]]]]:
    return [
        [(offer.chunks[i].name, offer.chunks[i].offsets) for i in part.chunks]
        for offer, part in zip(offers, decide(offers), strict=True)
    ]


@given(
    st.lists(st.tuples(st.integers(1, 500), st.sets(st.integers(0, 3), min_size=1)), max_size=40),
    st.randoms(use_true_random=False),
)
def test_every_chunk_has_one_owner_who_holds_it(
    tensors: list[tuple[int, set[int]]], rng: random.Random
) -> None:
    def offers(shuffled: bool) -> list[Offer]:
        held: list[list[ChunkOffer]] = [[] for _ in range(4)]
        for number, (size, holders) in enumerate(tensors):
            for rank in holders:
                held[rank].append(chunk(f"w{number:03d}", size=size, total=size))
        for chunks in held:
            if shuffled:
                rng.shuffle(chunks)
        return [Offer(chunks, []) for chunks in held]

    plan = owned(offers(shuffled=False))
    everything = [name for part in plan for name, _ in part]
    assert sorted(everything) == [f"w{number:03d}" for number in range(len(tensors))]
    for rank, part in enumerate(plan):
        assert all(rank in tensors[int(name[1:])][1] for name, _ in part)
    # Equal offers in another order give the same owners.
    assert list(map(sorted, owned(offers(shuffled=True)))) == list(map(sorted, plan))


def test_replicas_are_balanced_by_bytes() -> None:
    sizes = [1000, 900, 500, 400, 300, 300, 200, 100, 100, 100]
    chunks = [chunk(f"w{i}", size=size, total=size) for i, size in enumerate(sizes)]
    alone = chunk("mine", size=1300, total=1300)
    offers = [Offer(chunks, []), Offer(chunks, []), Offer([*chunks, alone], [])]
    loads = [
        sum(offer.chunks[i].nbytes for i in part.chunks)
        for offer, part in zip(offers, decide(offers), strict=True)
    ]
    assert sum(loads) == 4 * (sum(sizes) + 1300)
    assert max(loads) - min(loads) <= 4 * 200


def test_declared_counts_what_each_rank_writes() -> None:
    offers = [
        Offer([chunk("a"), chunk("b")], [ValueOffer("v", 1, 7)]),
        Offer([chunk("a")], [ValueOffer("v", 1, 7), ValueOffer("w", 1, 8)]),
    ]
    parts = decide(offers)
    assert {part.declared for part in parts} == {(2, 2)}
    assert [len(part.chunks) + len(part.values) for part in parts] == [2, 2]


def test_only_doubtful_replicas_are_compared() -> None:
    def parts(*origins: int) -> list[list[int]]:
        return [p.compare for p in decide([Offer([chunk("a", origin=o)], []) for o in origins])]

    assert parts(5, 5) == [[], []]  # the tensor library vouches for them
    assert parts(0, 0) == [[0], [0]]
    assert parts(5, 6) == [[0], [0]]  # two meshes, one name
    assert parts(0) == [[]]
    assert all(p.comparing for p in decide([Offer([chunk("a")], [])] * 2 + [Offer([], [])]))


def test_names_with_two_paths_are_ambiguous() -> None:
    offers = [Offer([chunk("a.b", path=1)], []), Offer([chunk("a.b", path=2), chunk("c")], [])]
    assert [part.ambiguous for part in decide(offers)] == [frozenset({"a.b"})] * 2
    assert Counter(len(part.chunks) for part in decide(offers)) == Counter([1, 2])


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (chunk("w"), chunk("w", dtype="int32"), "w: rank 0 holds a float32 of shape"),
        (chunk("w"), chunk("w", size=5, total=5), r"rank 1 a float32 of shape \(5,\)"),
        (
            chunk("w", 0, 2),
            chunk("w", 0, 3),
            r"at offset \(0,\) rank 0 .* \(2,\), rank 1 .* \(3,\)",
        ),
        (chunk("w", 0, 1), chunk("w", 2, 2), "the ranks hold 3 of the 4 elements"),
        (chunk("w", 0, 4), chunk("w", 2, 2), "the ranks hold 6 of the 4 elements"),
    ],
)
def test_contradictions_name_the_tensor_and_the_ranks(
    first: ChunkOffer, second: ChunkOffer, message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        decide([Offer([first], []), Offer([second], [])])


def test_values_that_differ_are_refused() -> None:
    with pytest.raises(PlanError, match=r"rng: ranks 1 and 2 hold different values .*per_rank"):
        decide([Offer([], []), *(Offer([], [ValueOffer("rng", 1, crc)]) for crc in (4, 5))])
    with pytest.raises(PlanError, match="w: a tensor on rank 0, a value on rank 1"):
        decide([Offer([chunk("w")], []), Offer([], [ValueOffer("w", 1, 4)])])


def test_contents_that_differ_are_refused() -> None:
    assert compare([[("a", (0,), 1)], [("a", (0,), 1), ("b", (0,), 2)]]) == [None, None]
    with pytest.raises(PlanError, match="a: ranks 0 and 2 hold different tensors"):
        compare([[("a", (0,), 1)], [], [("a", (0,), 9)]])
