"""Images between processes: borrowed, killed, forked, limited. Every process is a real one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.patience import PATIENCE
from tierstore.errors import CheckpointError, DeadlineError, NotFoundError, TruncatedFileError
from tierstore.image.folder import collect_leftovers
from tierstore.image.pool import StagingPool, open_image

MIB = 1024**2


@pytest.fixture
def folder(shm_path):
    return shm_path / "pool"


@pytest.fixture
def pool(folder):
    with_room = StagingPool(str(folder), limit=1)
    yield with_room
    with_room.close()


def images(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.image"))


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def run(code: str, *args: object, check: bool = True, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, check=check, capture_output=True, text=True, **options)


def test_file_size_limit_means_anonymous_memory(folder):
    code = """
import resource, sys
from tierstore.image.pool import StagingPool
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
image = StagingPool(sys.argv[1]).acquire(1 << 20, timeout=1)
image.buffer[-1:] = b"x"
print(image.shared)
"""
    done = run(code, folder)
    assert done.stdout.strip() == "False"
    assert "staging in anonymous memory" in done.stderr
    assert images(folder) == []


def on_a_small_tmpfs(code: str, folder: Path, *args: str) -> str:
    """Return what `code` prints whose first argument is a tmpfs of 1 MiB."""
    folder.mkdir()
    mount = f"mount -t tmpfs -o size=1m tmpfs '{folder}'"
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    try:
        subprocess.run([*inside, mount], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this kernel does not let us mount a small tmpfs")
    command = [*inside, f'{mount} && exec "$@"', "sh", sys.executable, "-c", code, folder, *args]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_a_small_tmpfs_is_left_to_its_other_users(folder):
    code = """
import os, sys
from tierstore.image.pool import StagingPool
pool = StagingPool(sys.argv[1], limit=2)
small = pool.acquire(512 << 10, timeout=1)
large = pool.acquire(900 << 10, timeout=1)
large.buffer[:] = bytes(len(large.buffer))
print(small.shared, large.shared, len(os.listdir(sys.argv[1])))
"""
    assert on_a_small_tmpfs(code, folder).split() == ["True", "False", "1"]


@pytest.mark.parametrize("advice", ["populate", "older"])
def test_a_full_tmpfs_is_an_error_and_no_signal(folder, advice):
    """Its other users may take the room between the question for it and the use of it."""
    code = """
import errno, os, sys
from pathlib import Path
from tierstore.image import memory
if sys.argv[2] == "older":
    memory._POPULATE_WRITE = 12345
memory.tmpfs_room = lambda folder: None
folder = Path(sys.argv[1])
made = memory.create_shared(folder, 1 << 19)
made.view[:] = bytes(1 << 19)
made.discard(unlink=True)
try:
    memory.create_shared(folder, 64 << 20)
except OSError as error:
    print(errno.errorcode[error.errno], os.listdir(folder), memory.tmpfs_room(folder))
"""
    assert on_a_small_tmpfs(code, folder, advice) == "ENOSPC [] None\n"


HOLD = """
import sys, time
from tierstore.image.pool import StagingPool, open_image
if sys.argv[2] == "own":
    image = StagingPool(sys.argv[1]).acquire(1 << 20, timeout=1)
    image.buffer[:4] = b"kept"
else:
    image = open_image(sys.argv[1], 1 << 20)
print(bytes(image.buffer[:4]).decode(), image.path, flush=True)
sys.stdin.readline()
image.release()
print("released", flush=True)
sys.stdin.readline()
"""


class Holder:
    """Another process that owns or borrows an image until told otherwise."""

    def __init__(self, place: object, role: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(place), role],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.content, self.path = self.process.stdout.readline().split()

    def release(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "released\n"

    def stop(self, sig: int = signal.SIGKILL) -> None:
        self.process.send_signal(sig)
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def hold():
    holders = []

    def start(place: object, role: str) -> Holder:
        holders.append(Holder(place, role))
        return holders[-1]

    yield start
    for holder in holders:
        holder.stop()


def test_what_a_killed_process_left_is_removed_and_the_living_spared(folder, hold):
    dead, alive = hold(folder, "own"), hold(folder, "own")
    stranger = folder / "somebody.image"
    stranger.write_text("not ours")
    dead.stop()
    assert len(images(folder)) == 3
    pool = StagingPool(str(folder))
    assert images(folder) == sorted([Path(alive.path), stranger])
    pool.close()


def test_what_is_staged_outlives_its_process_while_a_reader_has_it(folder, hold):
    owner = hold(folder, "own")
    reader = open_image(owner.path, MIB)
    owner.stop()
    assert collect_leftovers(folder) == {}
    assert bytes(reader.buffer[:4]) == b"kept"
    reader.release()
    assert collect_leftovers(folder) == {Path(owner.path): None}


def test_a_normal_exit_removes_the_files(folder):
    code = """
import sys
from tierstore.image.pool import StagingPool
pool = StagingPool(sys.argv[1])
image = pool.acquire(1 << 20, timeout=1)
"""
    run(code, folder)
    assert images(folder) == []


def test_lent_image_stays_busy_until_the_borrower_is_done(pool, hold):
    image = pool.acquire(MIB, timeout=1)
    image.buffer[:4] = b"lent"
    image.lend()
    with pytest.raises(DeadlineError):
        pool.acquire(MIB, timeout=0.05)
    borrower = hold(image.path, "borrow")
    assert borrower.content == "lent"
    with pytest.raises(DeadlineError):
        pool.acquire(MIB, timeout=0.05)
    borrower.release()
    again = pool.acquire(MIB, timeout=PATIENCE)
    assert again.address == image.address
    assert again.path == image.path


def test_borrowers_death_frees_the_image(pool, hold):
    image = pool.acquire(MIB, timeout=1)
    image.buffer[:4] = b"lent"
    image.lend()
    borrower = hold(image.path, "borrow")
    threading.Timer(0.1, borrower.stop).start()
    assert pool.acquire(MIB, timeout=PATIENCE).path == image.path


def test_lent_image_can_be_taken_back(pool):
    image = pool.acquire(MIB, timeout=1)
    image.lend()
    image.release()
    again = pool.acquire(MIB, timeout=0)
    assert again.path == image.path
    with pytest.raises(DeadlineError):  # the state of the last lease means nothing to this one
        pool.acquire(MIB, timeout=0.05)


def test_image_with_a_reader_is_replaced_not_overwritten(pool, folder):
    image = pool.acquire(MIB, timeout=1)
    image.buffer[:3] = b"old"
    reader = open_image(image.path, MIB)
    image.release()
    fresh = pool.acquire(MIB, timeout=1)
    assert fresh.path != image.path
    fresh.buffer[:3] = b"new"
    assert bytes(reader.buffer[:3]) == b"old"
    assert [str(path) for path in images(folder)] == [fresh.path]
    reader.release()


def test_opening_tells_what_is_wrong(pool):
    image = pool.acquire(MIB, timeout=1)
    with pytest.raises(TruncatedFileError):
        open_image(image.path, MIB + 1)
    pool.close()
    with pytest.raises(NotFoundError, match="removed"):
        open_image(image.path, MIB)


def test_opening_a_removed_file_leaks_no_descriptor(pool):
    image = pool.acquire(MIB, timeout=1)
    before = descriptors()
    for _ in range(3):
        with pytest.raises(TruncatedFileError):
            open_image(image.path, 2 * MIB)
    assert descriptors() == before


def test_borrowers_second_release_touches_nothing(pool):
    image = pool.acquire(MIB, timeout=1)
    image.lend()
    borrowed = open_image(image.path, MIB)
    borrowed.release()
    again = pool.acquire(MIB, timeout=1)
    again.lend()
    borrowed.release()
    with pytest.raises(DeadlineError):
        pool.acquire(MIB, timeout=0.05)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_forked_child_leaves_the_parents_files_alone(pool, folder):
    pool.acquire(MIB, timeout=1).release()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        answer = b"?"
        try:
            pool.acquire(MIB, timeout=0)
        except CheckpointError:
            answer = b"refused"
        finally:
            pool.close()
            os.write(write, answer)
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    assert os.read(read, 100) == b"refused"
    os.close(read)
    assert len(images(folder)) == 1
    assert collect_leftovers(folder) == {}
    image = pool.acquire(MIB, timeout=0)
    assert [image.path] == [str(path) for path in images(folder)]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_fork_while_another_thread_holds_the_pools_lock(pool):
    image = pool.acquire(MIB, timeout=1)
    entered, leave = threading.Event(), threading.Event()

    def hold_lock() -> None:
        with pool._changed:
            entered.set()
            leave.wait(PATIENCE)

    thread = threading.Thread(target=hold_lock)
    thread.start()
    assert entered.wait(PATIENCE)
    child = os.fork()
    if child == 0:
        signal.alarm(int(PATIENCE))  # a deadlock ends the child
        image.release()
        pool.close()
        try:
            pool.acquire(MIB, timeout=0)
        except CheckpointError:
            os._exit(7)
        os._exit(1)
    leave.set()
    thread.join()
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7
