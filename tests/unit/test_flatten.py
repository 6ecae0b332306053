"""Typed paths: nothing of a state dict's structure is lost, and later saves only compare it."""

from __future__ import annotations

import json
from collections import OrderedDict, defaultdict
from typing import Any, NamedTuple

import pytest
import torch

from tierstore.checkpoint.paths import Containers
from tierstore.errors import PlanError
from tierstore_torch.state.flatten import Leaf, Tree, per_rank, rank_of

pytestmark = pytest.mark.torch
T = torch.ones(1)


class Pair(NamedTuple):
    left: object
    right: object


class Thing:
    """A stateful object that is not of torch."""

    def __init__(self, **state: Any) -> None:
        self.state = state

    def __repr__(self) -> str:  # names tests, the same in every process
        return f"Thing({self.state})"

    def state_dict(self) -> dict[str, Any]:
        return dict(self.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = dict(state)


def names(state: object) -> list[str]:
    return [leaf.name for leaf in Tree(state, rank=3).leaves]


def test_names_are_keys_joined_with_dots() -> None:
    state = {"model": {"layers.0.weight": T, "b": [T, {"x": 1}]}, 7: T, (1, 2): T, None: 0}
    assert names(state) == [
        "model.layers.0.weight",
        "model.b.0",
        "model.b.1.x",
        "7",
        "(1, 2)",
        "None",
    ]


def test_paths_tell_apart_what_names_do_not() -> None:
    state = {"a.b": T, "a": {"b": T}, 1: T, "1": T, "l": [T], "m": {"0": T}}
    tree = Tree(state, rank=0)
    assert len({leaf.path for leaf in tree.leaves}) == len(tree.leaves) == len(state)
    assert [json.loads(leaf.path) for leaf in tree.leaves] == [
        ["a.b"],
        ["a", "b"],
        [{"key": 1}],
        ["1"],
        ["l", {"item": 0}],
        ["m", "0"],
    ]
    assert len({leaf.exact_name for leaf in tree.leaves}) == len(tree.leaves)


@pytest.mark.parametrize(
    "value",
    [1, "x", None, [], {}, (), [1, 2], [[1], [2, (3,)]], (1, {"a": 2}), {1, 2}, b"", Pair(1, 2)],
    ids=repr,
)
def test_plain_values_are_one_leaf(value: object) -> None:
    assert names({"v": value}) == ["v"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([{"lr": 1}], ["v.0.lr"]),
        ([1, {}], ["v.0", "v.1"]),
        ((T, 1), ["v.0", "v.1"]),
        (Pair(1, {"x": T}), ["v.0", "v.1.x"]),
        (OrderedDict(a=1), ["v.a"]),
        (Thing(a=T, b=2), ["v.a", "v.b"]),
        ([Thing(a=1)], ["v.0.a"]),
    ],
)
def test_what_may_hold_tensors_is_entered(value: object, expected: list[str]) -> None:
    assert names({"v": value}) == expected


def test_a_ranks_own_part_has_its_number() -> None:
    (leaf,) = Tree({"rng": per_rank({"cpu": T})}, rank=3).leaves
    path = '[{"rank": 3}, "rng", "cpu"]'
    assert leaf == Leaf("rank00003/rng.cpu", path, 3, inside=Containers(own=1))
    assert leaf.stored_path == '[{"rank": 3}, "rng", "cpu", {"own": 1}]'
    assert rank_of(leaf.path) == 3
    assert rank_of('["rank", "x"]') is None


def test_keys_that_cannot_be_stored_are_named() -> None:
    with pytest.raises(PlanError, match="a key of type object cannot be stored"):
        Tree({object(): T}, rank=0)


def test_match_takes_the_same_shape_in_any_order() -> None:
    tree = Tree({"a": T, "b": {"c": 1}, 3: [T, (T, 2)]}, rank=0)
    other = {3: [5 * T, (6 * T, 7)], "b": {"c": 8}, "a": 9 * T}
    values = tree.match(other)
    assert values is not None
    assert [float(value) for value in values] == [9, 8, 5, 6, 7]


@pytest.mark.parametrize(
    "other",
    [
        {"a": T, "b": {"c": 1}},
        {"a": T, "b": {"c": 1}, 3: [T], "x": 1},
        {"a": T, "b": {"d": 1}, 3: [T]},
        {"a": T, "b": {"c": 1}, "3": [T]},
        {"a": T, "b": {"c": 1}, 3: [T, T]},
        {"a": T, "b": {"c": 1}, 3: (T,)},
        {"a": T, "b": {"c": {"d": 1}}, 3: [T]},
        {"a": [T], "b": {"c": 1}, 3: [T]},
        {"a": T, "b": OrderedDict(c=1), 3: [T]},
        {"a": T, "b": {"c": (T,)}, 3: [T]},
        {"a": T, "b": {"c": Thing(x=1)}, 3: [T]},
        {"a": T, "b": {"c": per_rank(1)}, 3: [T]},
        T,
    ],
    ids=repr,
)
def test_match_refuses_another_shape(other: object) -> None:
    assert Tree({"a": T, "b": {"c": 1}, 3: [T]}, rank=0).match(other) is None


def test_match_does_not_fill_a_defaultdict() -> None:
    tree = Tree({"d": defaultdict(list, a=T)}, rank=0)
    other = {"d": defaultdict(list, b=T)}
    assert tree.match(other) is None
    assert list(other["d"]) == ["b"]


def test_match_tells_true_from_one() -> None:
    assert Tree({1: T}, rank=0).match({True: T}) is None


def test_fill_works_in_place_and_rebuilds_only_tuples() -> None:
    inner, items, thing = {"c": 1}, [T, 2], Thing(x=3, y=4)
    pair = Pair(T, 5)
    state = {"b": inner, "l": items, "p": pair, "t": thing, "r": per_rank(6)}
    tree = Tree(state, rank=0, hold=True)
    tree.fill(state, iter([10, T, 20, T, 50, 30, 40, 60]))
    assert state["b"] is inner
    assert inner == {"c": 10}
    assert state["l"] is items
    assert items[1] == 20
    assert state["p"] == Pair(T, 50)
    assert type(state["p"]) is Pair
    assert thing.state == {"x": 30, "y": 40}
    assert state["r"] == per_rank(60)


@pytest.mark.parametrize("state", [5, None, "x", (1, 2), (T, 1), per_rank(5)], ids=repr)
def test_what_cannot_be_filled_is_refused(state: object) -> None:
    with pytest.raises(PlanError, match=r"cannot be restored in place .*put it into a dict"):
        Tree(state, rank=0).check_in_place(state)


@pytest.mark.parametrize(
    "state",
    [{}, {"a": 1}, [], [1, 2], T, (T, T), Thing(), per_rank({}), per_rank(Thing())],
    ids=repr,
)
def test_what_can_be_filled(state: object) -> None:
    Tree(state, rank=0).check_in_place(state)
