"""The source's formulas, as printed and as derived, and what is wrong with them."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.docs.pages import ROOT, tables
from tierstore.errors import ModelError
from tierstore.model import formulas
from tierstore.model.checks import share, whole

AMOUNT = st.floats(1e-3, 1e15)


def test_the_worked_example_and_its_errors() -> None:
    seconds, years, of_printed = formulas.worked_examples()
    assert seconds.computed == 1.01e11
    assert (seconds.printed, years.printed) == (1.001e12, 315)
    assert seconds.factor == pytest.approx(9.91, abs=0.01)
    assert years.computed == pytest.approx(3200, abs=1)
    assert years.factor == pytest.approx(1 / 10.16, rel=0.001)
    # The two printed numbers do not agree with each other either: one slip does not explain both.
    assert of_printed.computed == pytest.approx(31_720, abs=1)
    assert of_printed.factor == pytest.approx(0.01, rel=0.01)


def test_the_table_of_the_page_is_the_computed_one() -> None:
    rows = list(tables(ROOT / "docs/model.md", "worked example"))
    examples = formulas.worked_examples()
    assert [row[0].strip("`") for row in rows] == [each.what for each in examples]
    for row, each in zip(rows, examples, strict=True):
        printed, computed, factor = (float(cell.split()[0].replace(",", "")) for cell in row[1:])
        assert printed == each.printed
        assert computed == pytest.approx(each.computed, rel=0.001)
        assert factor == pytest.approx(each.factor, rel=0.01)


@given(AMOUNT, AMOUNT, AMOUNT, st.integers(1, 10**6))
def test_the_two_storage_times_agree_only_if_nodes_equal_the_rate(
    data: float, rate: float, capacity: float, nodes: int
) -> None:
    printed = formulas.storage_printed(data, rate, capacity, nodes)
    assert printed == pytest.approx(data / rate + capacity / nodes)
    derived = formulas.storage_derived(data, rate, capacity)
    assert derived == pytest.approx(data / rate + capacity / rate)
    assert formulas.storage_printed(data, nodes, capacity, nodes) == pytest.approx(
        formulas.storage_derived(data, nodes, capacity)
    )


@given(AMOUNT, st.integers(1, 10**6), AMOUNT)
def test_compute_as_printed_is_as_derived_only_if_k_is_n(p: float, n: int, v: float) -> None:
    assert formulas.compute_printed(p, n, n, v) == pytest.approx(formulas.compute_derived(p, v))
    twice = formulas.compute_printed(p, n, 2 * n, v)
    assert twice == pytest.approx(2 * formulas.compute_derived(p, v)), "more nodes take longer"


def test_scheduling() -> None:
    assert formulas.scheduling(30, 10, 2.0) == 6.0


@pytest.mark.parametrize("bad", [0, -1, math.nan, math.inf, "10", None, True])
@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda bad: formulas.storage_printed(1, bad, 1, 1), "transfer rate r"),
        (lambda bad: formulas.storage_derived(1, bad, 1), "transfer rate r"),
        (lambda bad: formulas.compute_derived(1, bad), "speed v"),
        (lambda bad: formulas.compute_printed(1, bad, 1, 1), "divisor K"),
        (lambda bad: formulas.scheduling(1, bad, 1), "resources R"),
    ],
)
def test_what_has_to_be_above_zero(call: Any, name: str, bad: Any) -> None:
    with pytest.raises(ModelError, match=rf"{name} is {bad}"):
        call(bad)


@pytest.mark.parametrize("nodes", [0, -3, 1.5, math.nan])
def test_zero_nodes(nodes: Any) -> None:
    with pytest.raises(ModelError, match=r"number of nodes N is .*, not a whole number from 1 up"):
        formulas.storage_printed(1, 1, 1, nodes)


@pytest.mark.parametrize("bad", [-1e-9, math.nan, -math.inf])
def test_what_may_be_zero_but_not_less(bad: float) -> None:
    for call in (
        lambda: formulas.storage_printed(bad, 1, 1, 1),
        lambda: formulas.storage_printed(1, 1, bad, 1),
        lambda: formulas.compute_derived(bad, 1),
        lambda: formulas.scheduling(1, 1, bad),
        lambda: formulas.scheduling(bad, 1, 1),
    ):
        with pytest.raises(ModelError, match="not a number from 0 up"):
            call()
    assert formulas.storage_derived(0, 1, 0) == 0


def test_shares_and_counts() -> None:
    assert (share("x", 1), whole("x", 3.0)) == (1.0, 3)
    with pytest.raises(ModelError, match=r"x is 1\.5, not from 0 to 1"):
        share("x", 1.5)
    with pytest.raises(ValueError, match="whole number from 2 up"):
        whole("x", 1, least=2)
