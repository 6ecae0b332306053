"""The `tierstore` command."""

from __future__ import annotations

import gc
import os
import re
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from tierstore import __version__
from tierstore.cli import (
    bench,
    cp,
    demo,
    doctor,
    exporting,
    importing,
    ls,
    migrate,
    plan,
    predict,
    show,
    sync,
    verify,
)
from tierstore.cli.output import print_error
from tierstore.errors import ConfigError, InvalidKeyError, ModelError, TierstoreError
from tierstore.registry import parse_url

_GARBAGE = 50_000  # objects until cycles are looked for: commands make many objects, and few cycles
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")

app = typer.Typer(
    name="tierstore",
    help="Sharded torch checkpoints over memory, NVMe, HDFS and S3: look at, check and try them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # joins the lines of a paragraph
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("ls")(ls.run)
app.command("show")(show.run)
app.command("verify")(verify.run)
app.command("migrate")(migrate.run)
app.command("sync")(sync.run)
app.command("cp")(cp.run)
app.command("import")(importing.run)
app.command("export")(exporting.run)
app.command("doctor")(doctor.run)
app.command("bench")(bench.run)
app.command("predict")(predict.run)
app.command("plan")(plan.run)
app.command("demo")(demo.run)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"tierstore {__version__}")
        raise typer.Exit


@app.callback(
    epilog="Exit codes: 0 fine, 1 something is missing, damaged or unreachable, 2 wrong usage."
)
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Options before the command."""
    del version


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
        _refuse_secrets(words)
        app(args=words, prog_name="tierstore")
    except (ConfigError, InvalidKeyError, ModelError) as error:
        print_error(error)
        sys.exit(2)
    except TierstoreError as error:
        print_error(error)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        gc.set_threshold(*usual)


def _refuse_secrets(words: Sequence[str]) -> None:
    """Look at every URL first: what is said about a wrong word repeats it."""
    for word in words:
        if url := _URL.search(word):
            parse_url(url[0])
