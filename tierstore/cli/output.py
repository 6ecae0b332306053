"""How results and errors reach the reader."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar, cast

import click

from tierstore.errors import TierstoreError
from tierstore.operations.advice import next_step, of_tier, said
from tierstore.text import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


_PIPE_WIDTH = 10_000
T = TypeVar("T")
_LISTENER_LEFT = 141  # as the shell calls a program that SIGPIPE ended


def say(
    text: str, *, fg: str | None = None, bold: bool = False, nl: bool = True, stderr: bool = False
) -> None:
    """Print a line for people, or without `nl` a part of one; in colour on a terminal only.

    What is not printed is written out, for the text may be others'.

    Rich could do it too, but its import takes as long as all else that most commands do.
    """
    click.secho(printable(text), fg=fg, bold=bold or None, nl=nl, err=stderr, color=_colour())


def _colour() -> bool | None:
    """Return what the environment says, as Rich reads it; None if a terminal decides."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") in ("dumb", "unknown"):
        return False
    return True if os.environ.get("FORCE_COLOR") else None


def console(*, stderr: bool = False) -> Console:
    """Return where tables and bars are shown; in a pipe without colour, and lines are not folded.

    Nothing in a text is markup: names of tensors and paths have brackets. None moves
    the cursor.
    """
    from rich.console import Console
    from rich.text import Text

    stream = sys.stderr if stderr else sys.stdout

    class Terminal(Console):
        def render_str(self, text: str, **how: Any) -> Text:
            return super().render_str(printable(text, keep="\n"), **how)

    return Terminal(
        stderr=stderr,
        width=None if stream.isatty() else _PIPE_WIDTH,
        highlight=False,
        markup=False,
        emoji=False,
    )


def table(columns: Iterable[str], *, right: Collection[str] = ()) -> Table:
    """Return an empty table; those in `right` are for numbers; long cells are folded, not cut."""
    from rich.table import Table

    class Cells(Table):
        def add_row(self, *cells: Any, **how: Any) -> None:
            super().add_row(*(printable(c) if isinstance(c, str) else c for c in cells), **how)

    made = Cells(box=None, pad_edge=False)
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return made


def print_json(value: object, *, indent: int | None = 2) -> None:
    """Print one JSON document; without an indent it is one line, for a stream of them.

    What is not printed is escaped: whoever parses it has every name as it is.
    """
    lines = json.dumps(value, indent=indent, ensure_ascii=False).split("\n")
    sys.stdout.write("\n".join([_escaped(line) for line in lines]) + "\n")
    sys.stdout.flush()


def _escaped(line: str) -> str:
    if line.isprintable():
        return line
    return "".join([s if s.isprintable() else json.dumps(s)[1:-1] for s in line])


@contextlib.contextmanager
def checked_streams() -> Iterator[None]:
    """End the program in words, at the latest now, where what it prints cannot be written."""
    before = sys.stdout, sys.stderr
    sys.stdout = cast("TextIO", _Checked(before[0], result=True))
    sys.stderr = cast("TextIO", _Checked(before[1], result=False))
    try:
        yield
    finally:
        try:
            sys.stdout.flush()
        finally:
            sys.stdout, sys.stderr = before


class _Checked:
    """A stream of text.

    Args:
        stream: where it goes; None if whoever started this program has closed it.
        result: it is what the program was started for.
    """

    def __init__(self, stream: TextIO | None, *, result: bool) -> None:
        self._result = result
        self._stream = stream or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - lent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._tried(self._stream.write, text) or 0
        except UnicodeEncodeError:  # a name that is not Unicode, or a stream of ASCII
            text = "".join(sign if sign.isascii() else json.dumps(sign)[1:-1] for sign in text)
            return self._tried(self._stream.write, text) or 0

    def flush(self) -> None:
        self._tried(self._stream.flush)

    def _tried(self, write: Callable[..., T], *text: str) -> T | None:
        try:
            return write(*text)
        except OSError as error:
            # Python would complain when it flushes at its end.
            with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("wb") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())
            if error.errno == errno.EPIPE:
                raise SystemExit(_LISTENER_LEFT) from None
            if not self._result:
                return None  # nobody can be told
            print_error(TierstoreError(f"standard output cannot be written: {error.strerror}"))
            raise SystemExit(1) from None


def print_error(error: TierstoreError) -> None:
    """Print what happened and the next step on standard error."""
    say("error: ", stderr=True, nl=False, fg="red", bold=True)
    for line in said(error).split("\n"):
        say(line, stderr=True)
    if step := next_step(error):
        say("next: ", stderr=True, nl=False, bold=True)
        say(step, stderr=True)


def print_unseen(errors: Iterable[tuple[str, TierstoreError]]) -> None:
    """Print the tiers that could not be listed: whatever else was printed is not the whole."""
    for name, error in errors:
        print_error(of_tier(name, error))


def size(nbytes: float) -> str:
    """Return a size as a person reads it, in powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if nbytes < 1024 or unit == "TiB":
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    raise AssertionError


def count(number: int, what: str) -> str:
    """Return "1 file", "2 files"."""
    return f"{number} {what}{'' if number == 1 else 's'}"
