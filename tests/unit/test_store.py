"""A run in memory and in a local folder; on S3, see tests/integration."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attempts import contents, nonce_of, save, write_rank
from tests.collect_rules import CollectRules
from tests.mirror_rules import MirrorRules
from tests.patience import PATIENCE
from tests.store_rules import A, StoreRules
from tierstore.backend import Backend
from tierstore.backends.local.backend import open_local
from tierstore.backends.memory import open_memory
from tierstore.checkpoint.objects import read_record
from tierstore.checkpoint.store import RunStore
from tierstore.errors import FormatError, TruncatedFileError
from tierstore.wrappers.delegate import Call
from tierstore.wrappers.faults import Fault, Faulty


class TestMemory(StoreRules, CollectRules, MirrorRules):
    @pytest.fixture
    def backend(self) -> Iterator[Backend]:
        backend = open_memory(f"memory://{secrets.token_hex(8)}")
        yield backend
        backend.close()


@pytest.mark.usefixtures("no_leaks")
class TestLocal(StoreRules, CollectRules, MirrorRules):
    @pytest.fixture
    def backend(self, tmp_path: Path) -> Iterator[Backend]:
        backend = open_local(f"file://{tmp_path}/tier")
        yield backend
        backend.close()

    def test_committers_in_several_processes_write_the_same(
        self, store: RunStore, tmp_path: Path
    ) -> None:
        for rank in range(2):
            write_rank(store, A, rank)
        code = (
            "import sys, time, pathlib\n"
            "from tierstore.backends.local.backend import open_local\n"
            "from tierstore.checkpoint.store import RunStore\n"
            "from tierstore.keys import Attempt\n"
            "import pyarrow.compute\n"
            "print('ready', flush=True)\n"
            "sys.stdin.readline()\n"
            "store = RunStore(open_local(sys.argv[1]), 'run')\n"
            "print(store.try_commit(Attempt.parse(sys.argv[2]), sys.argv[3]).to_bytes())\n"
        )
        arguments = [sys.executable, "-c", code, f"file://{tmp_path}/tier", str(A), nonce_of(1)]
        processes = [
            subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(3)
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        answers = {process.communicate("go\n", timeout=PATIENCE)[0] for process in processes}
        assert answers == {f"{store.read_commit(A).to_bytes()!r}\n"}
        assert sum("manifest-" in key for key in contents(store.backend)) == 1

    def test_a_manifest_outlives_its_file(self, store: RunStore) -> None:
        """Cut short, or on a disk that fails, a mapped one would be SIGBUS."""
        commit = save(store, A)
        keys = store.keys.attempt(A, commit.nonce)
        manifest = store.open_manifest(commit)
        path = store.backend.local_path(keys.manifest(commit.manifest_crc32c))  # type: ignore[attr-defined]
        child = os.fork()
        if not child:
            os.truncate(path, 0)
            os._exit(manifest.find("w") is None)
        assert os.waitpid(child, 0)[1] == 0
        with pytest.raises(
            TruncatedFileError, match=f"has 0 bytes instead of {commit.manifest_size}"
        ):
            store.open_manifest(commit)


def test_a_record_replaced_between_stat_and_read() -> None:
    backend = open_memory(f"memory://{secrets.token_hex(8)}")
    backend.create("key", b"long record")

    def bury(call: Call) -> None:
        backend.create(call.key, b"")

    assert read_record(Faulty(backend, Fault("read_into", action=bury)), "key") == b""


def test_a_record_that_is_truly_short_is_an_error() -> None:
    backend = open_memory(f"memory://{secrets.token_hex(8)}")
    backend.create("key", b"record")
    short = Fault("read_into", times=9, error=TruncatedFileError("short"))
    with pytest.raises(TruncatedFileError):
        read_record(Faulty(backend, short), "key")


def test_no_record_and_no_fragment_is_read_whole_whatever_its_size(tmp_path: Path) -> None:
    """A terabyte, sparse: it takes no room on the disk, and would take all memory."""
    store = RunStore(open_local(f"file://{tmp_path}"), "run")
    keys = store.keys.attempt(A, nonce_of(1))
    for key in (store.keys.commit(A), keys.fragment(0)):
        path = tmp_path / key
        path.parent.mkdir(parents=True)
        path.touch()
        os.truncate(path, 1 << 40)
    with pytest.raises(FormatError, match=r"has 1,099,511,627,776 bytes, more than the 1,048,576"):
        store.read_commit(A)
    (tmp_path / store.keys.commit(A)).unlink()
    with pytest.raises(FormatError, match="more than the 1,073,741,824"):
        store.try_commit(A, nonce_of(1))
