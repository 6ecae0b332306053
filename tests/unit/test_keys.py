"""The names of what is stored: what is printed is parsed, and nothing else is."""

from __future__ import annotations

import pytest

from tierstore.checkpoint.timeline import next_try
from tierstore.errors import InvalidKeyError
from tierstore.keys import Attempt, RunKeys, commit_of, parse_part

KEYS = RunKeys("run")
NONCE = "0123456789abcdef"


@pytest.mark.parametrize("number", [0, 1, 99, 100, 999, 10**6, 10**12 - 1])
def test_a_try_has_as_many_digits_as_it_needs(number: int) -> None:
    attempt = Attempt(7, 3, number)
    assert str(attempt) == f"000000000007-000003-{number:02d}"
    assert Attempt.parse(str(attempt)) == attempt
    assert KEYS.parse_commit(KEYS.commit(attempt)) == attempt
    assert commit_of(KEYS.commit(attempt)) == ("run", attempt)
    folder = KEYS.attempt(attempt, NONCE)
    assert KEYS.parse_data(folder.root) == (attempt, NONCE)
    commit, fragment = parse_part(KEYS.commit(attempt)), parse_part(folder.fragment(2))
    assert commit is not None
    assert fragment is not None
    assert commit.group == fragment.group == KEYS.rivals(attempt)


def test_tries_are_compared_as_numbers() -> None:
    tries = [Attempt(7, 3, number) for number in (1, 9, 10, 11, 99, 100, 101, 1000)]
    assert sorted({*tries}) == tries
    assert sorted(map(str, tries)) != [str(each) for each in tries]
    for number, attempt in enumerate(tries):
        assert next_try(tries[: number + 1], 7, 3).number == attempt.number + 1
        rivals = [
            each
            for each in tries
            if KEYS.attempt(each, NONCE).root.startswith(KEYS.rivals(attempt))
        ]
        assert rivals == [attempt]


@pytest.mark.parametrize(
    "text",
    [
        "000000000007-000003-1",
        "000000000007-000003-001",
        "000000000007-000003-0100",
        "000000000007-000003-1000000000000",
        "000000000007-000003-\u0660\u0661",
        "00000000000\u0667-000003-01",
        "000000000007-000003-01\n",
        "7-3-01",
    ],
)
def test_what_is_written_otherwise_is_no_attempt(text: str) -> None:
    with pytest.raises(InvalidKeyError, match="is not an attempt"):
        Attempt.parse(text)
    assert KEYS.parse_commit(f"{KEYS.commits}{text}.json") is None
    assert KEYS.parse_data(f"{KEYS.data}{text}-{NONCE}/") is None
    assert parse_part(f"{KEYS.commits}{text}.json") is None


def test_a_launch_beyond_all_numbers_is_told_what_to_do() -> None:
    with pytest.raises(InvalidKeyError, match=r"launch 1000000 is not between.*another run name"):
        Attempt(7, 10**6, 1)
