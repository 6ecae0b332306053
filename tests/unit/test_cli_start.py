"""What a command needs before it begins: little is imported, and <TAB> knows what there is."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import COMMAND, tierstore
from tierstore.cli.commands import COMMANDS, Deferred
from tierstore.cli.main import program

HEAVY = {"numpy", "pyarrow", "pydantic", "rich", "typer"}
IMPORTED = """
import sys
from tierstore.cli.main import main
try:
    main()
except SystemExit:
    print(*sys.modules)
"""


def commands() -> dict[str, Deferred]:
    return {n: c for n, c in program().commands.items() if isinstance(c, Deferred)}


def imported(*words: str, **environment: str) -> set[str]:
    """Return the modules that a command has imported at its end."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED, *words],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | environment,
    )
    return set(done.stdout.splitlines()[-1].split())


def completing(shell: str, typed: str) -> dict[str, str]:
    """Return the environment in which a shell asks what completes the last word."""
    *before, last = typed.split(" ")
    at = last if shell == "fish" else str(len(before))
    complete = f"{shell}_complete"
    return {"_TIERSTORE_COMPLETE": complete, "COMP_WORDS": typed, "COMP_CWORD": at}


# What is imported


@pytest.mark.parametrize(
    ("words", "environment"),
    [
        (["--help"], {}),
        (["--version"], {}),
        (["nonsense"], {}),
        ([], completing("bash", "tierstore ")),
        ([], completing("zsh", "tierstore m")),
        ([], completing("fish", "tierstore --")),
    ],
)
def test_no_command_is_imported_that_is_not_called(
    words: list[str], environment: dict[str, str]
) -> None:
    modules = imported(*words, **environment)
    assert "tierstore.cli.main" in modules
    assert not modules & (HEAVY | {f"tierstore.cli.{module}" for module, _ in COMMANDS.values()})


@pytest.mark.parametrize("words", [[], ["--json"], ["run"]])
def test_ls_of_nothing_imports_little(tmp_path: Path, words: list[str]) -> None:
    modules = imported("ls", *words, "-c", (tmp_path / "empty").as_uri())
    assert "tierstore.backends.local.backend" in modules
    assert not modules & HEAVY


@pytest.mark.parametrize("name", COMMANDS)
def test_help_imports_nothing_that_does_the_work(name: str) -> None:
    modules = imported(name, "--help")
    assert not modules & HEAVY
    work = re.compile(r"tierstore\.(checkpoint|convert|ladder|migration|model|transfer|wrappers)\.")
    assert not [module for module in modules if work.match(module)]


# What is known of commands without them


@pytest.mark.parametrize("name", COMMANDS)
def test_the_purpose_is_the_first_paragraph_of_the_help(name: str) -> None:
    deferred = commands()[name]
    text = inspect.cleandoc(deferred.load().help or "")
    assert " ".join(text.split("\n\n")[0].split()) == deferred.short_help


def test_commands_are_listed_in_the_order_of_use() -> None:
    lines = tierstore("--help").out.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in lines if line[2:3].strip()][: len(COMMANDS)] == [*COMMANDS]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lss"], "No such command 'lss'. Did you mean 'ls'?"),
        (["sync", "--forse"], "No such option '--forse'. Did you mean '--force'?"),
        (["cp", "a", "b", "--requests", "0"], "0 is not in the range x>=1"),
        (["cp", "a", "b", "--conflict", "x"], "'x' is not one of 'skip', 'fail', 'overwrite'"),
    ],
)
def test_a_mistake_is_put_right_in_plain_text(words: list[str], said: str) -> None:
    done = tierstore(*words)
    assert (done.code, done.out) == (2, "")
    usage, advice, empty, error = done.err.splitlines()
    assert usage.startswith("Usage: tierstore ")
    assert advice.startswith("Try 'tierstore ")
    assert advice.endswith("--help' for help.")
    assert (empty, error.startswith("Error: ")) == ("", True)
    assert said in error


# <TAB>


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        ("tierstore ", [*COMMANDS]),
        ("tierstore mi", ["migrate"]),
        ("tierstore --v", ["--version"]),
        ("tierstore ls --", ["--config", "--all", "--json", "--help"]),
        ("tierstore migrate a b --conflict ", ["skip", "fail", "overwrite"]),
    ],
)
def test_tab_completes(shell: str, typed: str, wanted: list[str]) -> None:
    done = subprocess.run(
        COMMAND,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | completing(shell, typed),
    )
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    found = lines[1::3] if shell == "zsh" else [line.split(",")[1] for line in lines]
    assert [word.split("\t")[0] for word in found] == wanted


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell(shell: str) -> None:
    done = subprocess.run(
        COMMAND,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"_TIERSTORE_COMPLETE": f"{shell}_source"},
    )
    assert f"_TIERSTORE_COMPLETE={shell}_complete" in done.stdout
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=done.stdout, text=True, check=True)


@pytest.mark.skipif(not shutil.which("bash"), reason="bash is not there")
def test_bash_completes_with_the_line_of_the_operators_page() -> None:
    page = Path(__file__).parents[2] / "docs/operators.md"
    (line,) = (text for text in page.read_text().splitlines() if "bash_source" in text)
    script = f"""
{line}
COMP_WORDS=(tierstore ver) COMP_CWORD=1
_tierstore_completion tierstore
echo "${{COMPREPLY[*]}}"
"""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PATH": path},
    )
    assert (done.stdout, done.stderr) == ("verify\n", "")
