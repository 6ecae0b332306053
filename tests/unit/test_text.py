"""What others wrote reaches people, and neither their terminal nor the line it stands in."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from tests.command import tierstore
from tierstore import errors
from tierstore.cli import output
from tierstore.cli.migrated import JsonView, TextView
from tierstore.cli.progress import bars
from tierstore.logs import logger
from tierstore.text import printable
from tierstore.transfer.engine.entries import Outcome
from tierstore.transfer.engine.messages import Report

EVIL = "a\x1b]0;owned\x07\x1b[2J\nok: all fine\r\x9b31m\u202egpj\udc80 \xe9"
WRITTEN = r"a\x1b]0;owned\x07\x1b[2J\nok: all fine\r\x9b31m\u202egpj\udc80" + " \xe9"


def harmless(shown: str) -> bool:
    return all(line.isprintable() for line in shown.split("\n"))


def test_what_is_not_printed_is_written_out() -> None:
    assert printable(EVIL) == WRITTEN
    assert printable("two\nlines\x1b", keep="\n") == "two\nlines\\x1b"
    for text in ("", "layers.0.weight", "\xe9\u4e2d \U0001f600", "a\\x1b"):
        assert printable(text) == text


@pytest.mark.parametrize(
    "error",
    [
        errors.TierstoreError(EVIL, hint=EVIL),
        errors.NotFoundError(EVIL, url=f"file:///{EVIL}", key=EVIL, hint=EVIL),
        errors.TruncatedFileError(EVIL),
        errors.CorruptBlockError(EVIL, 3, [EVIL]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_are_one_line(
    error: errors.TierstoreError, capsys: pytest.CaptureFixture[str]
) -> None:
    assert str(error).isprintable()
    assert WRITTEN in str(error)
    output.print_error(error)
    shown = capsys.readouterr().err
    assert harmless(shown)
    assert WRITTEN in shown
    assert shown.count("\n") == 2
    assert output.said(error).count(WRITTEN) == str(error).count(WRITTEN) - bool(error.hint) * (
        WRITTEN in str(error.hint) or EVIL in error.hint
    )


def test_lines_tables_and_reports(capsys: pytest.CaptureFixture[str]) -> None:
    output.say(EVIL)
    output.console().print(EVIL)
    table = output.table(("name", EVIL))
    table.add_row(EVIL, "[bold]1[/bold]")
    output.console().print(table)
    view = TextView()
    with view.shown():
        view.report(Report(EVIL, Outcome.FAILED, 1, EVIL))
    shown = capsys.readouterr()
    assert harmless(shown.out + shown.err)
    assert shown.out.count("\n") == 1 + 2 + 3
    assert shown.err == f"failed: {WRITTEN}: {WRITTEN}\n"
    assert "[bold]1[/bold]" in shown.out


def test_json_is_exact_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_json({EVIL: [EVIL, "\U0001f600\U000e0001"]})
    view = JsonView()
    with view.shown():
        view.report(Report(EVIL, Outcome.FAILED, 1, EVIL))
    shown = capsys.readouterr().out
    assert harmless(shown)
    whole, line = shown.rsplit("\n", 2)[:2]
    assert json.loads(whole) == {EVIL: [EVIL, "\U0001f600\U000e0001"]}
    assert json.loads(line)["key"] == EVIL


def test_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    main, side = pty.openpty()
    with os.fdopen(side, "w", encoding="utf-8", errors="surrogateescape") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        with bars() as begin:
            begin("[red]\x1b]0;owned\x07", 10)(5)
    shown = ""
    with suppress(OSError):  # a terminal that nobody writes to ends with an error
        while more := os.read(main, 1 << 16).decode():
            shown += more
    os.close(main)
    assert "[red]\\x1b]0;owned\\x07" in shown
    assert "\x1b]0;" not in shown


def test_logs() -> None:
    stream = io.StringIO()
    log = logger("tierstore.test_text")
    handler = logging.StreamHandler(stream)
    log.addHandler(handler)
    try:
        log.error("%s is 100%% %s", EVIL, "odd")
        log.error("%d%%", 3)
    finally:
        log.removeHandler(handler)
    assert stream.getvalue() == f"{WRITTEN} is 100% odd\n3%\n"


def test_every_logger_is_of_that_kind() -> None:
    root = Path(__file__).parents[2]
    own = {"tierstore/logs.py", "tierstore/http/masking.py"}  # the latter masks those of others
    paths = [*root.glob("tierstore/**/*.py"), *root.glob("adapters/**/*.py")]
    names = [str(path.relative_to(root)) for path in paths if "getLogger" in path.read_text()]
    assert {name for name in names if "/testing/" not in name} == own


@pytest.mark.parametrize(
    "words", [("ls", "r"), ("cp", "a", "b"), ("migrate", "a", "b"), ("show", "r")]
)
def test_a_word_too_many(words: tuple[str, ...]) -> None:
    """A shell's pattern puts names of files there."""
    done = tierstore(*words, EVIL)
    assert done.code == 2
    assert harmless(done.err)
    assert WRITTEN in done.err.replace("\n", r"\n")


@pytest.mark.torch
def test_names_of_tensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = EVIL.replace("\udc80", "")
    torch.save({name: torch.ones(2), "v" + name: "plain\x1b[2J"}, tmp_path / "in.pt")
    where = ("-c", f"file://{tmp_path}/tier")
    commands: list[Callable[[], object]] = [
        lambda: tierstore("import", str(tmp_path / "in.pt"), "r", "1", *where),
        lambda: tierstore("show", "r", "--tensors", *where),
        lambda: tierstore("verify", "r", *where),
        lambda: tierstore("export", "r", str(tmp_path / "out.safetensors"), *where),
    ]
    shown = ""
    for command in commands:
        done = command()
        shown += done.out + done.err  # type: ignore[attr-defined]
    assert harmless(shown)
    assert printable(name) in shown
