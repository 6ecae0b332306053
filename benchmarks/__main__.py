"""Run one comparison, or publish several: `python -m benchmarks checkpoint --json out.json`."""

from __future__ import annotations

import typer

from benchmarks import (
    checkpoint,
    hdfs,
    ladder,
    manifest,
    migrate,
    mlperf,
    publish,
    start,
    storage,
    storage_model,
    timeline,
)

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)
app.command("checkpoint")(checkpoint.run)
app.command("hdfs")(hdfs.run)
app.command("ladder")(ladder.run)
app.command("manifest")(manifest.run)
app.command("migrate")(migrate.run)
app.command("mlperf")(mlperf.run)
app.command("model")(storage_model.run)
app.command("report")(publish.run)
app.command("start")(start.run)
app.command("storage")(storage.run)
app.command("timeline")(timeline.run)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
