"""The `tierstore` command."""

from __future__ import annotations

import gc
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

import click

from tierstore import __version__
from tierstore.cli.commands import COMMANDS, Deferred
from tierstore.cli.output import checked_streams, print_error
from tierstore.cli.waits import said_waits
from tierstore.errors import ConfigError, InvalidKeyError, ModelError, TierstoreError
from tierstore.text import printable

NAME = "tierstore"
_GARBAGE = 50_000  # objects until cycles are looked for: commands make many objects, and few cycles
_INTERRUPTED = 130
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://.+", re.DOTALL)


class _Program(click.Group):
    """All commands in their own order; Ctrl-C ends each without a word."""

    def list_commands(self, _: click.Context) -> list[str]:
        return [*self.commands]

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            # A word too many is repeated as it is, and may be a file's name that a shell put in.
            said = printable(error.format_message(), keep="\n")
            raise click.UsageError(said, error.ctx) from None
        except KeyboardInterrupt:
            raise click.exceptions.Exit(_INTERRUPTED) from None


def program() -> click.Group:
    """Return the whole command line."""
    group = _Program(
        NAME,
        [Deferred(name, module, purpose) for name, (module, purpose) in COMMANDS.items()],
        help="Inspect, check and move sharded torch checkpoints on memory, NVMe, HDFS and S3.",
        epilog="Exit codes: 0 fine, 1 something is missing, damaged or unreachable, 2 wrong usage.",
        context_settings={"help_option_names": ["--help", "-h"]},
    )
    version = click.version_option(
        __version__, message="%(prog)s %(version)s", help="Print the version."
    )
    return version(group)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and turn every expected error into a message and an exit code.

    Args:
        argv: the words after the program's name; those of this process if None.

    Raises:
        SystemExit: always, with the exit code.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    usual = gc.get_threshold()
    gc.set_threshold(_GARBAGE)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's others spin, and nobody uses them
    try:
        with checked_streams(), said_waits():
            _run(words)
    finally:
        gc.set_threshold(*usual)


def _run(words: Sequence[str]) -> None:
    try:
        _refuse_secrets(words)
        program()(args=words, prog_name=NAME)
    except (ConfigError, InvalidKeyError, ModelError) as error:
        print_error(error)
        sys.exit(2)
    except TierstoreError as error:
        print_error(error)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


def _refuse_secrets(words: Sequence[str]) -> None:
    """Look at every URL first: what is said about a wrong word repeats it."""
    if urls := [found[0] for word in words if (found := _URL.search(word))]:
        from tierstore.registry import parse_url

        for url in urls:
            parse_url(url)
