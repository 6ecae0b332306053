"""The command as such: help, mistakes, secrets, servers that are away, terminals, signals."""

from __future__ import annotations

import io
import json
import os
import pty
import shlex
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from tests import model_points
from tests.command import COMMAND, folders, ladder_file, save, start, tierstore
from tests.patience import PATIENCE, noted_retries
from tierstore import __version__
from tierstore.cli.main import main
from tierstore.testing.servers import free_port

LEFT = 141  # what the shell says of a program whose reader went away


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a bucket on a server that is not there."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    return f"s3://bucket/t?endpoint_url=http://127.0.0.1:{free_port()}"


@pytest.mark.parametrize(
    ("command", "purpose"),
    [
        ("ls", "List checkpoints, newest first"),
        ("show", "Show one checkpoint: its size, ranks, parent"),
        ("verify", "Read all of one checkpoint on every tier"),
        ("import", "Import a torch.save file"),
        ("export", "Export a step as a torch.save file"),
        ("doctor", "Check each tier: reachable, writable"),
        ("demo", "kill a rank while it saves, and resume"),
    ],
)
def test_help_says_what_each_command_does(command: str, purpose: str) -> None:
    done = tierstore(command, "--help")
    assert done.code == 0
    assert "Usage:" in done.out
    assert purpose in " ".join(done.out.split())
    assert "--json" in done.out
    assert purpose.split(",")[0][:30] in " ".join(tierstore("--help").out.split())


def test_every_help_has_no_line_broken_in_the_middle() -> None:
    """Paragraphs of docstrings are joined before they are folded."""
    out = tierstore("doctor", "--help").out
    (line,) = [line.strip() for line in out.splitlines() if "Writes and deletes" in line]
    assert len(line) > 70


def test_the_version() -> None:
    assert tierstore("--version") == (0, f"tierstore {__version__}\n", "")


def test_without_a_command_there_is_help() -> None:
    done = tierstore()
    assert done.code == 2
    assert "verify" in done.out + done.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sl"], "No such command 'sl'"),
        (["ls", "--josn"], "No such option '--josn'"),
        (["verify", "../run", "-c", "file:///nowhere"], "'../run'"),
        (["show"], "Missing argument"),
        (["show", "run", "latest"], "Invalid value for '[STEP]'"),
        (["ls", "file:///tmp/x"], "behind --config"),
        (["verify", "s3://bucket/x"], "behind --config"),
        (["ls", "-c", "a.toml", "-c", "file:///tmp/x"], "not a mixture"),
        (["ls", "../run", "-c", "memory://x"], "'../run'"),
        (["ls", "-c", "/nowhere/tierstore.toml"], "/nowhere/tierstore.toml: there is no such file"),
        (["show", "run", "-t", "tap", "-c", "file:///tmp/x"], "no tier 'tap' next: tiers: local"),
    ],
)
def test_a_mistake_exits_with_2_and_is_named(words: list[str], said: str) -> None:
    done = tierstore(*words)
    assert (done.code, done.out) == (2, "")
    assert said in done.said


def test_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    config = ladder_file(tmp_path / "t.toml", 'write_bandwith = "1"', t=f"file://{tmp_path}/t")
    for command in (["ls"], ["show", "run"], ["verify", "run"], ["doctor"], ["demo"]):
        done = tierstore(*command, "-c", config)
        assert done.code == 2
        assert "'write_bandwith'" in done.err
        assert "did you mean 'write_bandwidth'?" in done.err


def test_a_misspelt_url_is_named(tmp_path: Path) -> None:
    config = ladder_file(tmp_path / "t.toml", t=f"file://{tmp_path}/t")
    Path(config).write_text(Path(config).read_text().replace("url =", "ulr ="))
    done = tierstore("ls", "-c", config)
    assert (done.code, done.out) == (2, "")
    assert "has no 'url'" in done.err
    assert "next: is 'ulr' meant for it?" in done.err


def test_the_configuration_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(folders(tmp_path, "t"), 1)
    monkeypatch.chdir(tmp_path)
    nothing = tierstore("ls")
    assert nothing.code == 2
    assert "TIERSTORE_CONFIG is not set" in nothing.err
    ladder_file(tmp_path / "tierstore.toml", t=f"file://{tmp_path}/t")
    assert tierstore("ls", "--json").json[0]["tiers"] == ["t"]
    monkeypatch.setenv("TIERSTORE_CONFIG", f"file://{tmp_path}/empty")
    assert tierstore("ls", "--json").json == []


# Output that cannot be written


@pytest.fixture
def ladder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tier with a step, in a folder with points to predict from."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    save(folders(tmp_path, "t"), 1)
    model_points.write(tmp_path / "points.json")
    return ladder_file(tmp_path / "tierstore.toml", t=f"file://{tmp_path}/t")


@pytest.mark.parametrize(
    "words",
    [
        *("--help", "--version", "ls --help", "ls", "ls --json", "show run", "show run --tensors"),
        *("verify run", "verify run --json", "doctor", "doctor --json", "export run out.pt"),
        *("migrate t ./to", "migrate t ./to --json", "migrate t ./to -n", "sync t ./to -n"),
        *("cp tierstore.toml to/", "bench --dry-run", "bench --dry-run --json"),
        *(
            f"{name} --params 8e9 --nodes 9 --mtbf 9d -p points.json"
            for name in ("predict", "plan")
        ),
    ],
)
def test_a_full_disk_ends_every_command_in_words(ladder: str, words: str) -> None:
    del ladder
    err = io.StringIO()
    with (
        Path("/dev/full").open("w") as full,
        redirect_stdout(full),
        redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        main(words.split())
    said = err.getvalue()
    assert ended.value.code == 1, said
    assert "error: standard output cannot be written: No space left on device" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("words", [["--help"], ["ls"], ["ls", "--json"], ["predict", "--help"]])
def test_nothing_more_is_said_as_the_process_ends(ladder: str, words: list[str]) -> None:
    del ladder
    with Path("/dev/full").open("w") as full:
        process = start(*words, stdout=full, stderr=subprocess.PIPE)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert err == "error: standard output cannot be written: No space left on device\n"


def test_streams_that_were_closed(ladder: str) -> None:
    del ladder
    shell = f"{shlex.join(COMMAND)} ls"
    for closed, code in ((">&-", 0), ("2>&-", 0), (">&- 2>&-", 0), ("-x 2>/dev/full", 2)):
        ended = subprocess.run(f"{shell} {closed}", shell=True, capture_output=True, check=False)
        assert (ended.returncode, ended.stderr) == (code, b""), closed


def test_what_a_stream_of_ascii_cannot_hold(tmp_path: Path) -> None:
    named = ladder_file(tmp_path / "t.toml", t=f"file://{tmp_path}/ü€")
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with redirect_stdout(out), pytest.raises(SystemExit) as ended:
        main(["doctor", "--json", "-c", named])
    assert not ended.value.code
    out.seek(0)
    assert json.load(out)["t"]["url"] == f"file://{tmp_path}/ü€"


# Secrets


@pytest.mark.parametrize(
    "url", ["s3://key:hunter2@bucket/x", "s3://bucket/x?secret_access_key=hunter2"]
)
@pytest.mark.parametrize(
    "words",
    [
        ["ls", "-c"],
        ["doctor", "--config="],
        ["demo", "-c"],
        ["ls"],
        ["show", "run"],
        ["verify", "run", "1"],
        ["nonsense"],
    ],
)
def test_a_secret_is_refused_and_never_repeated(words: list[str], url: str) -> None:
    joined = words[-1].endswith("=")
    done = tierstore(*words[:-1], words[-1] + url) if joined else tierstore(*words, url)
    assert (done.code, done.out) == (2, "")
    assert "hunter2" not in done.err
    assert "holds" in done.err
    assert "AWS_PROFILE" in done.err


# Servers that are away


@pytest.mark.parametrize("words", [["ls"], ["ls", "run"], ["show", "run"], ["verify", "run", "3"]])
def test_a_dead_server_is_named_with_what_to_do(
    words: list[str], dead: str, tmp_path: Path
) -> None:
    config = ladder_file(tmp_path / "t.toml", "retry_seconds = 0.2", cold=dead)
    done = tierstore(*words, "--config", config)
    assert (done.code, done.out) == (1, "")
    assert "error: tier cold: " in done.err
    assert "127.0.0.1" in done.err
    assert "next: " in done.err
    assert "hunter2" not in done.err


def test_nobody_waits_long_for_a_dead_server(dead: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save would wait for two minutes."""
    retries = noted_retries(monkeypatch)
    assert tierstore("ls", "--config", dead).code == 1
    assert retries == [5.0]
    done = tierstore("doctor", "--config", dead)
    assert done.code == 1
    assert "failed  reachable" in done.out
    assert "hunter2" not in done.out + done.err
    assert retries == [5.0], "doctor tries once"


# Terminals and pipes


def terminal(*words: str) -> tuple[int, str]:
    """Run with a terminal for output and errors; return the exit code and what it shows."""
    main, side = pty.openpty()
    process = start(*words, stdout=side, stderr=side, stdin=subprocess.DEVNULL)
    os.close(side)
    seen = b""
    while True:
        try:
            seen += os.read(main, 65536)
        except OSError:  # the other side is closed
            break
        if process.poll() is not None and not seen:
            break
    os.close(main)
    return process.wait(timeout=PATIENCE), seen.decode()


@pytest.fixture
def plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.usefixtures("plain_terminal")
def test_a_terminal_has_colour_and_a_bar(tmp_path: Path) -> None:
    save(folders(tmp_path, "t"), 1)
    code, seen = terminal("verify", "run", "-c", f"file://{tmp_path}/t")
    assert code == 0
    assert "\x1b[32mgood" in seen
    assert "━" in seen  # the bar


@pytest.mark.usefixtures("plain_terminal")
@pytest.mark.parametrize("words", [["show", "run"], ["show", "other"]])
@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_the_environment_can_refuse_colour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], name: str, value: str
) -> None:
    save(folders(tmp_path, "t"), 1)
    monkeypatch.setenv(name, value)
    code, seen = terminal(*words, "-c", f"file://{tmp_path}/t")
    assert code == (words[1] == "other")
    assert "\x1b" not in seen


@pytest.mark.usefixtures("plain_terminal")
def test_a_pipe_has_neither(tmp_path: Path) -> None:
    save(folders(tmp_path, "t"), 1)
    words = ("verify", "run", "-c", f"file://{tmp_path}/t")
    with start(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (0, "")
    assert out.startswith("run step 1 on local: good")
    assert "\x1b" not in out


@pytest.mark.parametrize("words", [["ls"], ["ls", "--json"], ["show", "run"]])
def test_a_reader_that_leaves_early(tmp_path: Path, words: list[str]) -> None:
    """As in `tierstore ls | head -1`."""
    save(folders(tmp_path, "t"), 1)
    read, write = os.pipe()
    os.close(read)
    with start(
        *words, "-c", f"file://{tmp_path}/t", stdout=write, stderr=subprocess.PIPE
    ) as process:
        os.close(write)
        _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (LEFT, "")


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE)
        yield server


@pytest.mark.parametrize("command", [["ls"], ["verify", "run"], ["doctor"]])
@pytest.mark.usefixtures("dead")
def test_an_interrupt_ends_with_130_and_no_word(silent: socket.socket, command: list[str]) -> None:
    url = f"s3://b/t?endpoint_url=http://127.0.0.1:{silent.getsockname()[1]}"
    with start(*command, "-c", url, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        connection, _ = silent.accept()
        with connection:
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert err.strip() == ""
