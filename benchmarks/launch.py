"""Run a program and print what it cost, as JSON: `python -I -S launch.py DEADLINE PROGRAM ...`.

In a process of its own and without imports, because the peak memory that Linux counts for a program
begins with that of the process that starts it (getrusage(2), ru_maxrss over execve).
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time


def main(deadline: float, command: list[str]) -> dict[str, object]:
    """Return a sample, an error, or that it hung. What it left to be written is waited for."""
    with tempfile.TemporaryFile() as said:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
        )
        try:
            process.wait(deadline)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return {"unable": f"not done after {deadline:.0f} s"}
        returned = time.perf_counter() - started
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        os.sync()
        wall = time.perf_counter() - started
        if process.returncode:
            said.seek(max(0, said.seek(0, os.SEEK_END) - 1500))
            text = said.read().decode(errors="replace")
            return {"error": f"it ended with {process.returncode}: {text}"}
    cpu, memory = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024
    return {"wall": wall, "cpu": cpu, "extra_memory": memory, "read": 0, "stall": returned}


if __name__ == "__main__":
    print(json.dumps(main(float(sys.argv[1]), sys.argv[2:])))
