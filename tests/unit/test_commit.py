"""The commit record: canonical, sealed, and honest about what it cannot read."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tierstore.checkpoint.commit import (
    TOMBSTONE_SIZE,
    Commit,
    looks_deleted,
    seal,
    tombstone,
)
from tierstore.errors import AttemptDeletedError, FormatError, NewerFormatError
from tierstore.keys import Attempt, AttemptId

COMMIT = Commit(
    attempt=Attempt(100, 2, 1),
    nonce="0123456789abcdef",
    manifest="manifest-0000abcd.arrow",
    manifest_size=5000,
    manifest_crc32c=0xABCD,
    ranks=(0, 1),
    world_size=2,
    tensors=3,
    chunks=6,
    files=2,
    nbytes=1 << 40,
    started=1.5,
    parent=AttemptId(Attempt(90, 1, 1), "fedcba9876543210"),
)
FORMAT_1 = (
    b'{"attempt":"000000000100-000002-01","chunks":6,"crc32c":"0601fb7c","files":2,"format":1,'
    b'"manifest":"manifest-0000abcd.arrow","manifest_crc32c":43981,"manifest_size":5000,'
    b'"nbytes":1099511627776,"nonce":"0123456789abcdef","ranks":[0,1],"tensors":3,'
    b'"world_size":2}\n'
)


def test_round_trip() -> None:
    assert Commit.from_bytes(COMMIT.to_bytes()) == COMMIT


def test_the_bytes_are_canonical_json_for_ever() -> None:
    assert COMMIT.to_bytes() == (
        b'{"attempt":"000000000100-000002-01","chunks":6,"crc32c":"3d34407a","files":2,"format":2,'
        b'"manifest":"manifest-0000abcd.arrow","manifest_crc32c":43981,"manifest_size":5000,'
        b'"nbytes":1099511627776,"nonce":"0123456789abcdef",'
        b'"parent":"000000000090-000001-01-fedcba9876543210","ranks":[0,1],"started":1.5,'
        b'"tensors":3,"world_size":2}\n'
    )


def test_format_1_is_read_and_written_as_it_was() -> None:
    old = replace(COMMIT, format=1, started=0.0, parent=None)
    assert Commit.from_bytes(FORMAT_1) == old
    assert old.to_bytes() == FORMAT_1


def test_a_tombstone_is_told_by_its_size_and_no_flipped_bit_makes_a_commit_of_it() -> None:
    data = tombstone(COMMIT.attempt)
    assert len(data) == TOMBSTONE_SIZE < len(COMMIT.to_bytes())
    assert looks_deleted(len(data))
    assert not looks_deleted(len(COMMIT.to_bytes()))
    with pytest.raises(AttemptDeletedError, match="the key is a tombstone"):
        Commit.from_bytes(data, "the key")
    for at in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[at // 8] ^= 1 << at % 8
        with pytest.raises((AttemptDeletedError, FormatError)):
            Commit.from_bytes(damaged)


@pytest.mark.parametrize("size", range(0, 420, 7))
def test_no_part_of_a_commit_is_a_tombstone(size: int) -> None:
    with pytest.raises(FormatError, match="damaged"):
        Commit.from_bytes(COMMIT.to_bytes()[: min(size, len(COMMIT.to_bytes()) - 2)])


@pytest.mark.parametrize(
    ("name", "value"),
    [("started", 1e300), ("started", "x"), ("started", None), ("parent", "x"), ("parent", 3)],
)
def test_a_sealed_commit_that_makes_no_sense(name: str, value: object) -> None:
    record = json.loads(COMMIT.to_bytes())
    del record["crc32c"]
    with pytest.raises(FormatError, match="is not a commit"):
        Commit.from_bytes(seal(record | {name: value}))


def test_every_flipped_bit_is_found() -> None:
    data = COMMIT.to_bytes()
    for at in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[at // 8] ^= 1 << at % 8
        if damaged.rstrip() == data.rstrip():
            continue  # white space at the end
        with pytest.raises(FormatError, match="the key"):
            Commit.from_bytes(damaged, "the key")


@pytest.mark.parametrize("size", [1, 50, -2])
def test_cut_short(size: int) -> None:
    with pytest.raises(FormatError, match="damaged"):
        Commit.from_bytes(COMMIT.to_bytes()[:size])


def test_a_newer_format_is_told_apart_even_if_nothing_else_is_known() -> None:
    with pytest.raises(NewerFormatError, match="format 3"):
        Commit.from_bytes(b'{"format":3}')


@pytest.mark.parametrize("data", [b"[]", b"null", b"1", b"{}", b"\xff\xfe", b"{", b"[" * 100_000])
def test_other_things(data: bytes) -> None:
    with pytest.raises(FormatError):
        Commit.from_bytes(data)


@pytest.mark.parametrize(
    "change",
    [
        {"attempt": "x"},
        {"attempt": 5},
        {"ranks": None},
        {"ranks": ["0"]},
        {"nbytes": "5"},
        {"tensors": True},
        {"manifest": "../manifest-0000abcd.arrow"},
        {"manifest": "manifest-0000abce.arrow"},
        {"nonce": 5},
        {"nonce": "../x"},
        {"unknown": 1},
        {"world_size": 300_000_000},
        {"world_size": 1},
        {"world_size": 0, "ranks": []},
        {"ranks": [1, 0]},
        {"ranks": [0, 0]},
        {"ranks": [-1, 0]},
        {"nbytes": -1},
        {"chunks": 2**63},
    ],
    ids=str,
)
def test_a_well_sealed_record_of_something_else(change: dict[str, Any]) -> None:
    record = json.loads(COMMIT.to_bytes())
    del record["crc32c"]
    with pytest.raises(FormatError, match="the key"):
        Commit.from_bytes(seal(record | change), "the key")


def test_whole() -> None:
    assert COMMIT.whole
    assert not replace(COMMIT, world_size=3).whole
    assert not replace(COMMIT, ranks=(1, 2)).whole
    assert not replace(COMMIT, world_size=10**18).whole, "and no list of all its ranks is made"
