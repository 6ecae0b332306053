"""What each wrapper adds."""

from __future__ import annotations

import itertools
import threading

import pytest

from tests.patience import PATIENCE
from tierstore.backends.memory import MemoryBackend, open_memory
from tierstore.blocks import crc32c
from tierstore.config import Policy, TierConfig
from tierstore.errors import (
    AlreadyExistsError,
    DamagedInTransitError,
    NotFoundError,
    StorageError,
    ThrottledError,
    UnreachableError,
)
from tierstore.testing.contract_base import read, together
from tierstore.wrappers import open_tier
from tierstore.wrappers.bandwidth import Throttled, TokenBucket
from tierstore.wrappers.faults import Fault, Faulty
from tierstore.wrappers.limit import Limited
from tierstore.wrappers.metrics import Metered, Tally
from tierstore.wrappers.retry import Budget, Retrying

_numbers = itertools.count()
GONE = UnreachableError("gone")


class Time:
    """A clock that moves only when somebody waits."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waits: list[float] = []

    def clock(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        self.waits.append(seconds)
        self.now += seconds
        return False


@pytest.fixture
def memory() -> MemoryBackend:
    return open_memory(f"memory://wrappers/{next(_numbers)}")


@pytest.fixture
def time() -> Time:
    return Time()


def retrying(inner, time: Time, **options) -> Retrying:
    return Retrying(inner, clock=time.clock, pause=time.wait, **options)


class TestRetrying:
    def test_full_jitter_with_a_doubling_bound(self, memory, time):
        backend = retrying(Faulty(memory, Fault("stat", times=10**9, error=GONE)), time)
        with pytest.raises(UnreachableError) as caught:
            backend.stat("x")
        bounds = [min(20.0, 0.1 * 2**n) for n in range(len(time.waits))]
        assert all(0 <= wait <= bound for wait, bound in zip(time.waits, bounds, strict=True))
        assert sum(time.waits) > sum(bounds) / 10  # not always near nothing
        assert time.now - 1000 < 120
        assert "stat was tried" in caught.value.__notes__[0]
        assert "120 seconds" in caught.value.__notes__[0]

    def test_waits_as_long_as_the_server_asks(self, memory, time):
        busy = ThrottledError("slow down", retry_after=7.0)
        backend = retrying(Faulty(memory, Fault("create", error=busy)), time)
        backend.create("x", b"x")
        assert time.waits == [7.0]

    def test_gives_up_rather_than_wait_past_the_deadline(self, memory, time):
        busy = ThrottledError("slow down", retry_after=60.0)
        backend = retrying(Faulty(memory, Fault("stat", times=9, error=busy)), time, seconds=50.0)
        with pytest.raises(ThrottledError):
            backend.stat("x")
        assert time.waits == []

    def test_no_seconds_is_no_retry(self, memory, time):
        faulty = Faulty(memory, Fault("stat", error=GONE))
        with pytest.raises(UnreachableError) as caught:
            retrying(faulty, time, seconds=0).stat("x")
        assert len(faulty.calls) == 1
        assert not hasattr(caught.value, "__notes__")

    @pytest.mark.parametrize("error", [NotFoundError("no"), StorageError("no"), ValueError("no")])
    def test_only_transient_errors(self, memory, time, error):
        faulty = Faulty(memory, Fault("stat", error=error))
        with pytest.raises(type(error)):
            retrying(faulty, time).stat("x")
        assert len(faulty.calls) == 1

    def test_damage_is_tried_three_times(self, memory, time):
        faulty = Faulty(memory)
        upload = retrying(faulty, time).upload("x", 4)
        with pytest.raises(DamagedInTransitError):
            upload.write(0, b"baad", crc32c(b"good"))
        assert [call.operation for call in faulty.calls] == ["upload", "write", "write", "write"]

    def test_the_budget_ends_retries_of_a_dying_tier(self, memory, time):
        faulty = Faulty(memory, Fault("stat", times=10**9, error=GONE))
        backend = retrying(faulty, time, budget=Budget(5))
        for _ in range(50):
            with pytest.raises(UnreachableError):
                backend.stat("x")
        assert len(faulty.calls) == 50 + 5

    def test_successes_fill_the_budget(self):
        budget = Budget(2)
        assert [budget.spend() for _ in range(3)] == [True, True, False]
        for _ in range(9):
            budget.refund()
        assert not budget.spend()
        budget.refund()
        budget.refund()
        assert budget.spend()
        for _ in range(1000):
            budget.refund()
        assert [budget.spend() for _ in range(3)] == [True, True, False]

    def test_a_listing_goes_on_behind_the_last_key(self, memory, time):
        keys = [f"k{index:04d}" for index in range(1000)]
        for key in keys:
            memory.create(key, b"")
        faulty = Faulty(memory, Fault("list", nth=2, every=2, error=GONE))
        found = [item.key for item in retrying(faulty, time).list("k")]
        assert found == keys
        assert len(time.waits) >= 3

    def test_a_lost_answer_is_not_a_lost_race(self, memory, time):
        late = [Fault(op, error=GONE, after=True) for op in ("create", "commit")]
        backend = retrying(Faulty(memory, *late), time)
        backend.create("x", b"mine", if_absent=True)
        with pytest.raises(AlreadyExistsError):
            backend.create("x", b"other", if_absent=True)
        upload = backend.upload("y", 1)
        upload.write(0, b"y", crc32c(b"y"))
        assert upload.commit(if_absent=True).size == 1

    def test_deletes_what_an_iterator_yields_again(self, memory, time):
        for key in ("a", "b"):
            memory.create(key, b"")
        backend = retrying(Faulty(memory, Fault("delete", error=GONE)), time)
        backend.delete(iter(["a", "b"]))
        assert list(memory.list("")) == []

    def test_close_ends_the_pauses(self, memory):
        busy = ThrottledError("slow down", retry_after=100.0)
        paused = threading.Event()
        faulty = Faulty(
            memory, Fault("stat", times=10**9, action=lambda _: paused.set(), error=busy)
        )
        backend = Retrying(faulty)

        def work(index: int) -> None:
            if index:
                paused.wait(PATIENCE)
                backend.close()
            else:
                backend.stat("x")

        error, _ = together(2, work)
        assert isinstance(error, ThrottledError)
        assert "closed" in error.__notes__[0]


class TestLimited:
    def test_never_more_at_a_time(self, memory):
        lock, now, most = threading.Lock(), 0, 0
        full = threading.Event()

        def enter(_) -> None:
            nonlocal now, most
            with lock:
                now += 1
                most = max(most, now)
                if now == 3:
                    full.set()
            full.wait(PATIENCE)
            with lock:
                now -= 1

        memory.create("x", b"x")
        backend = Limited(Faulty(memory, Fault("*", times=10**9, action=enter)), 3)
        assert backend.capabilities.concurrency == 3
        assert together(12, lambda _: backend.stat("x").size) == [1] * 12
        assert most == 3

    def test_an_error_gives_the_turn_back(self, memory):
        backend = Limited(memory, 1)
        for _ in range(3):
            with pytest.raises(NotFoundError):
                backend.stat("x")

    def test_fewer_while_the_store_asks_for_fewer_and_then_more(self, memory):
        lock, now, capacity, most, refused = threading.Lock(), 0, 4, 0, 0

        def enter(_) -> None:
            nonlocal now, most, refused
            with lock:
                now += 1
                most = max(most, now)
                full = now > capacity
                refused += full
            threading.Event().wait(0.002)
            with lock:
                now -= 1
            if full:
                raise ThrottledError("slow down")

        memory.create("x", b"x")
        limited = Limited(Faulty(memory, Fault("*", times=10**9, action=enter)))
        backend = Retrying(limited, budget=Budget(1e9), pause=lambda _: False)
        together(16, lambda _: [backend.stat("x").size for _ in range(40)])
        few = refused
        assert few < 400  # for 640 that are answered; without a limit some 2,000
        capacity, most = 100, 0
        together(16, lambda _: [backend.stat("x").size for _ in range(40)])
        assert most > 8
        assert refused == few


class TestThrottled:
    def test_a_rate_after_a_burst(self, time):
        bucket = TokenBucket(100.0, clock=time.clock, sleep=time.wait)
        bucket.take(100)  # what was saved
        assert time.waits == []
        for _ in range(10):
            bucket.take(50)
        assert time.now - 1000 == pytest.approx(4.5)  # the last one is paid for later
        time.now += 100
        before = time.now
        for _ in range(5):
            bucket.take(100)
        assert time.now - before == pytest.approx(3.0)  # a burst is one second, not a hundred

    def test_threads_share_the_rate(self, memory):
        waits: list[float] = []
        backend = Throttled(memory, read=None, write=20_000)
        backend._write = TokenBucket(20_000, clock=lambda: 1000.0, sleep=waits.append)
        backend.create("warm", bytes(20_000))
        together(4, lambda i: backend.create(str(i), bytes(1000)))
        assert sorted(waits) == pytest.approx([0.05, 0.1, 0.15])

    def test_reads_and_writes_apart(self, memory, time):
        backend = Throttled(memory, read=10, write=None)
        backend._read = TokenBucket(10, clock=time.clock, sleep=time.wait)
        backend.create("x", bytes(100))
        assert time.waits == []
        read(backend, "x", 0, 100)
        read(backend, "x", 0, 100)
        assert time.waits == [pytest.approx(9.0)]


class TestMetered:
    def test_counts(self, memory, time):
        tally = Tally()
        faulty = Faulty(memory, Fault("write", error=GONE))
        backend = Metered(retrying(faulty, time, on_retry=tally.retried), tally)
        upload = backend.upload("x", 10)
        upload.write(0, b"0123456789", crc32c(b"0123456789"))
        upload.commit()
        backend.create("y", b"123")
        read(backend, "x", 2, 5)
        with pytest.raises(NotFoundError):
            read(backend, "missing", 0, 1000)
        assert [item.key for item in backend.list("")] == ["x", "y"]
        counters = backend.snapshot()
        assert counters.requests == {
            "upload": 1,
            "write": 1,
            "commit": 1,
            "create": 1,
            "read_into": 2,
            "list": 2,
        }
        assert counters.errors == {"read_into": 1}
        assert counters.retries == {"write": 1}
        assert (counters.bytes_read, counters.bytes_written) == (5, 13)
        assert counters.seconds.keys() == counters.requests.keys()
        backend.stat("x")
        assert "stat" not in counters.requests  # a snapshot stays


class TestFaulty:
    def test_flips_what_is_read_and_written_but_not_the_callers_bytes(self, memory):
        data = bytearray(b"abc")
        backend = Faulty(memory, Fault("create", flip=1), Fault("read_into", flip=0))
        backend.create("x", data)
        assert data == b"abc"
        assert read(memory, "x", 0, 3) == bytes([ord("a"), ord("b") ^ 0xFF, ord("c")])
        assert read(backend, "x", 0, 1) == bytes([ord("a") ^ 0xFF])

    def test_the_nth_of_a_key(self, memory):
        backend = Faulty(memory, Fault("create", nth=2, key="b", error=GONE))
        for key in ("a", "b1", "a", "a"):
            backend.create(key, b"")
        with pytest.raises(UnreachableError):
            backend.create("b2", b"")
        backend.create("b2", b"")

    def test_fails_before_or_after(self, memory):
        before = Faulty(memory, Fault("create", error=GONE))
        with pytest.raises(UnreachableError):
            before.create("x", b"")
        assert list(memory.list("")) == []
        after = Faulty(memory, Fault("create", error=GONE, after=True))
        with pytest.raises(UnreachableError):
            after.create("x", b"")
        assert [item.key for item in memory.list("")] == ["x"]

    def test_nothing_goes_around_it(self, tmp_path):
        tier = open_tier(TierConfig("nvme", f"file://{tmp_path}"))
        assert tier.local_path("a/b") == str(tmp_path / "a/b")
        assert Faulty(tier).local_path("a/b") is None


class TestOpenTier:
    def test_no_path_on_a_tier_without_files(self):
        assert open_tier(TierConfig("m", "memory://wrappers/stack")).local_path("x") is None

    def test_retries_are_counted_once_per_request(self, memory, monkeypatch):
        flaky = Faulty(memory, Fault("stat", nth=1, times=2, error=GONE))
        monkeypatch.setattr("tierstore.wrappers.open_backend", lambda url, options: flaky)
        memory.create("x", b"x")
        tier = open_tier(TierConfig("m", memory.url, policy=Policy(max_requests=2)))
        assert tier.stat("x").size == 1
        counters = tier.snapshot()
        assert (counters.requests, counters.retries) == ({"stat": 1}, {"stat": 2})
        assert tier.capabilities.concurrency == 2

    def test_every_failing_request_of_a_save_is_survived(self, memory, monkeypatch):
        """For every n, the n-th request fails once and the save succeeds all the same."""
        monkeypatch.setattr("random.uniform", lambda low, high: 0.0)
        for n in itertools.count(1):
            faulty = Faulty(memory, Fault("*", nth=n, error=GONE))
            monkeypatch.setattr("tierstore.wrappers.open_backend", lambda u, o, f=faulty: f)
            tier = open_tier(TierConfig("m", memory.url))
            upload = tier.upload("x", 8)
            for offset in (4, 0):
                upload.write(offset, b"four", crc32c(b"four"))
            upload.commit(crc32c=crc32c(b"fourfour"))
            tier.create("c", b"commit", if_absent=True)
            assert [(item.key, item.size) for item in tier.list("")] == [("c", 6), ("x", 8)]
            tier.delete(["x", "c"])
            if len(faulty.calls) < n:
                break
        assert n > 8
