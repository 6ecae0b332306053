"""How much memory is left, from the files that kernels really write."""

from __future__ import annotations

from pathlib import Path

from tierstore.image.capacity import available_memory

KIB = 1024


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = "MemTotal:       100 kB\nMemAvailable:    80 kB\nSwapFree:        10 kB\nHugePages: 0\n"


def test_this_machine_has_some():
    room = available_memory()
    assert room is None or 0 <= room < 2**60


def test_host_without_groups(tmp_path):
    assert available_memory(write(tmp_path, {"proc/meminfo": MEMINFO})) == 90 * KIB


def test_nothing_known(tmp_path):
    assert available_memory(tmp_path) is None


def test_version_2_takes_the_tightest_group_and_counts_cache_as_free(tmp_path):
    group = "sys/fs/cgroup/job"
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/job/rank\n",
        f"{group}/memory.max": f"{40 * KIB}\n",
        f"{group}/memory.current": f"{30 * KIB}\n",
        f"{group}/memory.stat": f"anon 1\ninactive_file {4 * KIB}\nactive_file {1 * KIB}\n",
        f"{group}/rank/memory.max": "max\n",
        f"{group}/rank/memory.current": "1\n",
        f"{group}/rank/memory.stat": "anon 1\n",
    }
    assert available_memory(write(tmp_path, files)) == 15 * KIB


def test_version_2_in_a_container_that_sees_the_hosts_path(tmp_path):
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/kubepods/pod1/container2\n",
        "sys/fs/cgroup/memory.max": f"{40 * KIB}\n",
        "sys/fs/cgroup/memory.current": f"{30 * KIB}\n",
        "sys/fs/cgroup/memory.stat": "anon 1\n",
    }
    assert available_memory(write(tmp_path, files)) == 10 * KIB


def test_version_1_and_over_the_limit(tmp_path):
    group = "sys/fs/cgroup/memory/job"
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "5:cpu,cpuacct:/job\n4:memory:/job\n0::/\n",
        f"{group}/memory.limit_in_bytes": f"{20 * KIB}\n",
        f"{group}/memory.usage_in_bytes": f"{30 * KIB}\n",
        f"{group}/memory.stat": "inactive_file 9\ntotal_inactive_file 1024\ntotal_active_file 0\n",
    }
    assert available_memory(write(tmp_path, files)) == 0
