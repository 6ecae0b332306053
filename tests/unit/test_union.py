"""A ladder as one backend: what is read, listed, written and deleted where."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.attempts import contents, save
from tests.store_rules import A
from tierstore.backend import Backend, Check, abort_uploads, diagnose, local_path
from tierstore.backends.local.backend import open_local
from tierstore.backends.memory import open_memory
from tierstore.blocks import crc32c
from tierstore.checkpoint.delete import bury
from tierstore.checkpoint.store import RunStore
from tierstore.config import Policy, TierConfig
from tierstore.errors import (
    AccessError,
    AlreadyExistsError,
    ConfigError,
    CorruptBlockError,
    DamagedInTransitError,
    DeadlineError,
    IntegrityError,
    InvalidKeyError,
    NotFoundError,
    TierstoreError,
    TruncatedFileError,
    UnreachableError,
)
from tierstore.ladder import union
from tierstore.ladder.tiers import OpenTier
from tierstore.ladder.union import UnionBackend
from tierstore.scan import Kind, LeftOut, Ways, scan
from tierstore.testing.servers import free_port
from tierstore.wrappers import open_tier
from tierstore.wrappers.delegate import Call, Delegate
from tierstore.wrappers.faults import Fault, Faulty

NAMES = ("memory", "nvme", "s3")
READS: list[Callable[[Backend], object]] = [
    lambda ladder: ladder.stat("x").size,
    lambda ladder: ladder.read_into("x", 0, memoryview(bytearray(5))),
    lambda ladder: ladder.fetch("x", memoryview(bytearray(5))).size,
]


@pytest.fixture
def stores() -> list[Backend]:
    return [open_memory(f"memory://{secrets.token_hex(8)}") for _ in NAMES]


def ladder(stores: Sequence[Backend], write_to: str = "") -> UnionBackend:
    tiers = [
        OpenTier(TierConfig(name, store.url), store)
        for name, store in zip(NAMES, stores, strict=True)
    ]
    return UnionBackend(tiers, write_to)


def faulty(store: Backend, error: Exception, *, times: int = 1_000_000) -> Faulty:
    return Faulty(store, Fault("*", times=times, error=error))


def read(backend: Backend, key: str = "x", length: int = 5) -> bytes:
    buffer = bytearray(length)
    backend.read_into(key, 0, memoryview(buffer))
    return bytes(buffer)


# Reading


def test_the_highest_tier_that_has_it(stores: list[Backend]) -> None:
    for number, store in enumerate(stores):
        store.create("x", b"tier%d" % number)
    for number, store in enumerate(stores):
        assert read(ladder(stores)) == b"tier%d" % number
        assert ladder(stores).stat("x") == store.stat("x")
        assert ladder(stores).fetch("x", memoryview(bytearray(5))) == store.stat("x")
        store.delete(["x"])
    for use in READS:
        with pytest.raises(NotFoundError, match="no tier has it") as caught:
            use(ladder(stores))
        assert (caught.value.url, caught.value.key) == ("ladder://memory,nvme,s3", "x")


@pytest.mark.parametrize("use", READS)
@pytest.mark.parametrize(
    "error",
    [
        *(UnreachableError("no route"), DeadlineError("silent"), AccessError("expired")),
        *(TruncatedFileError("short"), CorruptBlockError("x", 0, []), IntegrityError("damaged")),
        DamagedInTransitError("twice"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_a_tier_does_not_give_the_next_one_does(
    stores: list[Backend],
    error: TierstoreError,
    use: Callable[[Backend], object],
    caplog: pytest.LogCaptureFixture,
) -> None:
    stores[2].create("x", b"whole")
    use(ladder([faulty(stores[0], error), stores[1], stores[2]]))
    assert f"x is not read from tier memory: {error}" in caplog.text
    for above in (0, 1):  # else it is raised, wherever the others are asked
        broken = [*stores[:2]]
        broken[above] = faulty(stores[above], error)
        with pytest.raises(type(error)) as caught:
            use(ladder([*broken, open_memory(f"memory://{secrets.token_hex(8)}")]))
        assert str(caught.value) == str(error)


def test_a_file_that_is_cut_is_read_whole_from_below(stores: list[Backend]) -> None:
    stores[0].create("x", b"who")
    stores[1].create("x", b"whole")
    assert read(ladder(stores)) == b"whole"
    buffer = memoryview(bytearray(5))
    assert ladder(stores).fetch("x", buffer).size == 5
    assert buffer == b"whole"
    stores[1].create("x", b"w")
    with pytest.raises(TruncatedFileError, match="x"):
        read(ladder(stores))
    assert contents(stores[0]) == {"x": b"who"}  # nothing is healed


def test_the_first_trouble_is_told(stores: list[Backend]) -> None:
    """That no tier has it is not known as long as one does not say so."""
    down = [faulty(stores[0], IntegrityError("damaged")), faulty(stores[1], DeadlineError("late"))]
    with pytest.raises(IntegrityError, match="damaged"):
        read(ladder([*down, stores[2]]))
    with pytest.raises(DeadlineError, match="late"):
        read(ladder([stores[0], *reversed(down)]))


def test_who_does_not_answer_is_asked_last_for_a_while(
    stores: list[Backend], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its deadline is waited for once, and not for every block."""
    monkeypatch.setattr(union, "AWAY", 3600.0)
    for store in stores:
        store.create("x", b"whole")
    asked: list[Call] = []
    counted = Fault("*", times=1_000_000, action=asked.append)
    down = Fault("*", error=UnreachableError("no route"))
    one = ladder([Faulty(stores[0], counted, down), *stores[1:]])
    for _ in range(5):
        assert read(one) == b"whole"
    assert len(asked) == 1
    stores[0].create("y", b"alone")
    assert read(one, "y") == b"alone"  # no other has it, so it is asked, and answers again
    stores[0].create("x", b"upper")
    assert read(one) == b"upper"


@pytest.mark.parametrize("error", [TruncatedFileError("cut"), DamagedInTransitError("twice")])
def test_damage_is_of_one_file(stores: list[Backend], error: TierstoreError) -> None:
    """The tier answers, so it is asked first for all others."""
    for store in stores:
        store.create("x", b"lower")
    one = ladder([faulty(stores[0], error, times=1), *stores[1:]])
    assert read(one) == b"lower"
    stores[0].create("x", b"upper")
    assert read(one) == b"upper"


def test_a_key_that_a_tier_cannot_hold_is_not_there(stores: list[Backend]) -> None:
    class NoColon(Delegate):
        def check_key(self, key: str) -> None:
            if ":" in key:
                raise InvalidKeyError(f"key {key!r} has a colon")

        def stat(self, key: str):
            self.check_key(key)
            return super().stat(key)

        def delete(self, keys) -> None:
            for key in (held := [*keys]):
                self.check_key(key)
            super().delete(held)

    stores[2].create("a:b", b"there")
    one = ladder([NoColon(stores[0]), NoColon(stores[1]), stores[2]], "s3")
    assert one.stat("a:b").size == 5
    one.create("a:c", b"too")
    one.delete(["a:b", "a:c"])
    assert contents(stores[2]) == {}
    for call in (one.stat, lambda key: one.delete([key])):
        with pytest.raises(InvalidKeyError):
            call("a//b")


def test_a_server_that_is_not_there(
    stores: list[Backend], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("boto3")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    url = f"s3://bucket/t?endpoint_url=http://127.0.0.1:{free_port()}"
    dead = open_tier(TierConfig("nvme", url, policy=Policy(retry_seconds=0)))
    one = ladder([stores[0], dead, stores[2]])
    stores[2].create("x", b"whole")
    assert read(one) == b"whole"
    assert "x is not read from tier nvme: " in caplog.text
    assert "Connection refused" in caplog.text
    for use in (lambda: one.stat("y"), lambda: list(one.list("")), lambda: one.delete(["x"])):
        with pytest.raises(UnreachableError, match="Connection refused"):
            use()
    stores[0].create("x", b"upper")
    assert read(one) == b"upper"
    one.close()


# Listing


def test_the_union_is_listed_in_order(stores: list[Backend]) -> None:
    keys = ["a/x", "a!", "é/x", "\U0001f600", "\ufffd", "b/1", "b/2"]
    for index, key in enumerate(keys):
        stores[index % 3].create(key, b"only")
    for number, store in enumerate(stores):
        store.create("b/all", b"x" * (number + 1))
    one = ladder(stores)
    wanted = sorted([*keys, "b/all"], key=str.encode)
    assert [info.key for info in one.list("")] == wanted
    (shared,) = one.list("b/all")
    assert shared == stores[0].stat("b/all")
    for after in ("a", "b/1", "\ufffd"):
        assert [info.key for info in one.list("", after=after)] == [
            key for key in wanted if key.encode() > after.encode()
        ]
    assert [info.key for info in one.list("", delimiter=True)] == [
        *("a!", "a/", "b/", "é/", "\ufffd", "\U0001f600")
    ]


def test_a_listing_without_a_tier_is_none(stores: list[Backend]) -> None:
    """Who compares two of them would take what is on that tier for gone."""
    stores[0].create("x", b"x")
    for error in (UnreachableError("no route"), AccessError("expired")):
        one = ladder([stores[0], faulty(stores[1], error), stores[2]])
        with pytest.raises(type(error)):
            list(one.list(""))
        with pytest.raises(type(error)):
            list(scan(one, Ways()))


def test_scanning_tells_what_a_folder_holds_besides(stores: list[Backend], tmp_path: Path) -> None:
    folder = open_local(f"file://{tmp_path}")
    folder.create("b/x", b"x")
    (tmp_path / "a-link").symlink_to("b")
    (tmp_path / "caf\udce9").write_bytes(b"")
    stores[0].create("b/x", b"upper")
    stores[0].create("z", b"z")
    one = ladder([stores[0], folder, stores[2]])
    found = list(scan(one, Ways(follow=False)))
    assert [each.key for each in found] == ["a-link/", "b/x", "caf\udce9", "z"]
    assert [each.kind for each in found if isinstance(each, LeftOut)] == [Kind.LINK, Kind.SPECIAL]
    folder.close()


# Writing


@pytest.mark.parametrize("where", range(3))
def test_it_writes_where_it_is_told(stores: list[Backend], where: int) -> None:
    one = ladder(stores, NAMES[where])
    one.create("a", b"a", durable=False)
    one.flush()
    upload = one.upload("b", 1)
    upload.write(0, b"b", crc32c(b"b"))
    upload.commit(crc32c=crc32c(b"b"))
    assert [contents(store) for store in stores] == [
        {"a": b"a", "b": b"b"} if number == where else {} for number in range(3)
    ]
    assert one.capabilities.part_size == stores[where].capabilities.part_size


def test_the_highest_tier_is_written_by_default(stores: list[Backend]) -> None:
    ladder(stores).create("a", b"a")
    assert contents(stores[0]) == {"a": b"a"}


@pytest.mark.parametrize(("where", "other"), [("memory", 2), ("s3", 0)])
@pytest.mark.parametrize("if_absent", [True, False])
def test_no_second_version(
    stores: list[Backend], where: str, other: int, *, if_absent: bool
) -> None:
    """Whichever was read would be chance; the same bytes are the same version."""
    one = ladder(stores, where)
    stores[other].create("x", b"their")
    for data in (b"other", b"longer", b""):
        with pytest.raises(AlreadyExistsError, match=f"tier {NAMES[other]} has another version"):
            one.create("x", data, if_absent=if_absent)
        upload = one.upload("x", len(data))
        if data:
            upload.write(0, data, crc32c(data))
        with pytest.raises(AlreadyExistsError, match="another version"):
            upload.commit(if_absent=if_absent, crc32c=crc32c(data))
        upload.abort()
    assert len(contents(stores[NAMES.index(where)])) == 0
    one.create("x", b"their", if_absent=if_absent)
    upload = one.upload("x", 5)
    upload.write(0, b"their", crc32c(b"their"))
    with pytest.raises(AlreadyExistsError):  # nobody says that it is the same
        upload.commit(if_absent=if_absent)
    upload.commit(if_absent=if_absent, crc32c=crc32c(b"their"))
    assert contents(stores[NAMES.index(where)]) == {"x": b"their"}
    one.delete(["x"])
    one.create("x", b"other", if_absent=if_absent)
    assert read(one) == b"other"


def test_a_write_wants_to_know_of_every_tier(stores: list[Backend]) -> None:
    one = ladder([stores[0], stores[1], faulty(stores[2], UnreachableError("no route"))])
    with pytest.raises(UnreachableError):
        one.create("x", b"x")
    upload = one.upload("x", 1)
    upload.write(0, b"x", crc32c(b"x"))
    with pytest.raises(UnreachableError):
        upload.commit()
    assert contents(stores[0]) == {}


def test_no_tombstone_for_one_tier_alone(stores: list[Backend]) -> None:
    """A commit would live on below it, without its data; `operations.delete` buries on all."""
    for store in stores:
        save(RunStore(store, "run"), A)
    one = ladder(stores)
    before = contents(stores[2])
    with pytest.raises(AlreadyExistsError, match="another version"):
        bury(one, RunStore(one, "run").keys.commit(A))
    assert contents(stores[0]) == contents(stores[2]) == before
    assert len(RunStore(one, "run").open_manifest(RunStore(one, "run").read_commit(A))) == 2


# Deleting


def test_it_deletes_from_every_tier(stores: list[Backend]) -> None:
    for store in stores:
        for key in ("x", "y"):
            store.create(key, b"x")
    ladder(stores).delete(key for key in ("x", "missing"))
    assert [*map(contents, stores)] == [{"y": b"x"}] * 3


def test_a_tier_that_does_not_delete_leaves_what_is_read(stores: list[Backend]) -> None:
    for number, store in enumerate(stores):
        store.create("x", b"tier%d" % number)
    for down in range(3):
        broken = [*stores]
        broken[down] = faulty(stores[down], UnreachableError("no route"))
        with pytest.raises(UnreachableError):
            ladder(broken).delete(["x"])
        assert read(ladder(stores)) == b"tier0"
    ladder(stores).delete(["x"])
    assert not any(map(contents, stores))


# The rest


def test_capabilities_are_true_for_all(stores: list[Backend], tmp_path: Path) -> None:
    folder = open_local(f"file://{tmp_path}")
    one, can = ladder([stores[0], folder, stores[2]], "nvme"), folder.capabilities
    assert one.capabilities.durable_on_commit == can.durable_on_commit
    assert one.capabilities.part_size == can.part_size
    assert one.capabilities.seen_by == stores[0].capabilities.seen_by == "process"
    assert one.capabilities.keeps_alignment == can.keeps_alignment
    assert local_path(one, "x") is None
    folder.close()


def test_every_tier_is_diagnosed_and_closed(stores: list[Backend]) -> None:
    closed = []

    class Told(Delegate):
        def diagnose(self):
            yield Check("O_DIRECT", "ok", "works")

        def close(self) -> None:
            closed.append(self)

        def abort_uploads(self, key: str) -> None:
            aborted.append((self, key))

    aborted: list[tuple[Told, str]] = []
    told = [Told(store) for store in stores]
    one = ladder(told, "nvme")
    assert [check.name for check in diagnose(one)] == [f"O_DIRECT on {name}" for name in NAMES]
    abort_uploads(one, "x")
    assert aborted == [(told[1], "x")]  # where its own are
    one.close()
    assert closed == told


def test_wrong_words(stores: list[Backend]) -> None:
    with pytest.raises(ConfigError, match="no tier 'hdfs'"):
        ladder(stores, "hdfs")
    with pytest.raises(ConfigError, match="one tier at least"):
        UnionBackend([])
