"""Run one command for as long as standard input stays open.

The parent holds the other end of the pipe, so the command also ends when the parent is killed.
PR_SET_PDEATHSIG alone would not do: it fires when the *thread* that started the child ends. Here it
only covers the guard itself being killed, and the guard has one thread.

Run as a script, by path, so that it imports nothing of tierstore: it starts in milliseconds.
Prints the command's process id; exits with the command's status, 0 if it was stopped as asked.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys

_PR_SET_PDEATHSIG = 1
_TERMINATE_SECONDS = 5.0


def _die_with_guard() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait(child: subprocess.Popen[bytes], wake: int) -> int:
    stdin = sys.stdin.fileno()
    while child.poll() is None:
        ready, _, _ = select.select([stdin, wake], [], [])
        if wake in ready:
            os.read(wake, 512)
        if stdin in ready and not os.read(stdin, 512):
            return _stop(child)
    return child.returncode


def _stop(child: subprocess.Popen[bytes]) -> int:
    child.send_signal(signal.SIGCONT)  # a paused server cannot act on SIGTERM
    child.terminate()
    try:
        child.wait(_TERMINATE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    return 0


def main(command: list[str]) -> int:
    """Run `command` until it ends or standard input closes; return its exit status."""
    wake, notify = os.pipe()
    os.set_blocking(notify, False)
    signal.set_wakeup_fd(notify, warn_on_full_buffer=False)
    # SIGCHLD wakes the loop. Ctrl-C reaches the whole group, but it is the parent who decides.
    # Handlers, not SIG_IGN: the server would inherit that.
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    # start_new_session: Ctrl-C must not reach the server before its clients have finished.
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,  # the log; standard output is the pipe that takes the process id
        preexec_fn=_die_with_guard,  # noqa: PLW1509 - one thread
        start_new_session=True,
    )
    os.write(1, f"{child.pid}\n".encode())
    os.close(1)
    return _wait(child, wake)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
