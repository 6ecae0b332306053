"""Run one comparison: `python -m benchmarks checkpoint --json out.json`."""

from __future__ import annotations

import typer

from benchmarks import checkpoint, hdfs, manifest

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)
app.command("checkpoint")(checkpoint.run)
app.command("hdfs")(hdfs.run)
app.command("manifest")(manifest.run)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
