"""A real job of four processes beside what `tierstore predict` says of it.

The tiers of a ladder, a local folder and MinIO, are measured; then four ranks of one node save to
both, each time once the save before is on every tier. This in turns, and at the end the tiers are
measured once more: what a virtual machine gives changes from minute to minute by more than the
model is off. The mean of all predictions stands beside the median of all saves.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import tempfile
import time
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import mean, median
from typing import Annotated, Any

import typer

from benchmarks import report
from benchmarks.options import Disk, JsonFile
from tierstore.config import Config, TierConfig
from tierstore.model.bench import SIZES, Limits, copy_rate, describe_machine, measure
from tierstore.model.points import Measured
from tierstore.model.predict import predict
from tierstore.model.simulate import simulate
from tierstore.model.workload import Cluster, Workload
from tierstore.testing.servers import minio
from tierstore.wrappers import open_tier

MIB = 1 << 20
TIERS = ("local", "s3")
_TENSORS = 8
_IMPORTED = ["torch.distributed", "tierstore_torch.checkpointer", "tierstore_s3.backend"]
"""Once for all ranks, which are forked from the process that did."""
_YEAR = 365 * 86_400.0


@dataclass(frozen=True, slots=True)
class Job:
    """What is run.

    Attributes:
        ranks: processes.
        mib: MiB of each.
        saves: that count; one more comes before.
        rest: seconds before each, and before tiers are measured.
    """

    ranks: int
    mib: int
    saves: int
    rest: float


def _rank(
    rank: int,
    job: Job,
    config: Config,
    run: str,
    environment: dict[str, str],
    meet: str,
    out: Connection,
) -> None:
    """Save again and again and send (stall, durable on each tier) of each, in seconds."""
    import torch
    import torch.distributed as dist

    from tierstore_torch import Checkpointer

    warnings.simplefilter("ignore")
    os.environ.update(environment)  # the process it is forked from may be older than the servers
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=job.ranks)
    one = job.mib * MIB // 4 // _TENSORS
    state = {f"{rank}.{i}": torch.rand(one) for i in range(_TENSORS)}
    found = []
    with Checkpointer(config, run=run) as ckpt:
        for step in range(job.saves + 1):
            os.sync()
            time.sleep(job.rest)
            dist.barrier()
            begun = time.perf_counter()
            save = ckpt.save(step, state)
            times = [save.stall]
            for tier in TIERS:
                save.wait(tier)
                times.append(time.perf_counter() - begun)
            found.append(times)
    out.send(found[1:])  # the first one pays for the staging memory
    dist.destroy_process_group()


def _save(config: Config, run: str, job: Job) -> list[list[float]]:
    """Return of each save: the longest stall, then when the first rank saw each commit.

    Raises:
        RuntimeError: a rank failed, and has said why.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    with tempfile.TemporaryDirectory() as folder:
        answers, processes = [], []
        for rank in range(job.ranks):
            answer, out = context.Pipe(duplex=False)
            given = (rank, job, config, run, dict(os.environ), f"{folder}/meet", out)
            process = context.Process(target=_rank, args=given)
            process.start()
            out.close()  # so that its end is the end of the answer
            answers.append(answer)
            processes.append(process)
        try:
            found: list[list[list[float]]] = [answer.recv() for answer in answers]
        except EOFError:
            for process in processes:  # the others would wait for it
                process.terminate()
            raise RuntimeError(f"a rank failed in {run}: see above") from None
        finally:
            for process in processes:
                process.join()
    by_save = [[*zip(*save, strict=True)] for save in zip(*found, strict=True)]
    return [[max(stalls), *(min(seen) for seen in rungs)] for stalls, *rungs in by_save]


def _empty(config: Config) -> None:
    """Delete what was saved: all turns together would fill the disk."""
    for tier in config.tiers:
        with contextlib.closing(open_tier(tier)) as backend:
            backend.delete([info.key for info in backend.list("")])


def _measure(config: Config, seconds: float, job: Job) -> Measured:
    os.sync()
    time.sleep(job.rest)
    copy = copy_rate()
    small = job.mib * MIB < SIZES[-1]
    sizes = tuple(size for size in SIZES if size <= job.mib * MIB) if small else ()
    limits = Limits(seconds, sizes=sizes, operations=("put", "get", "range", "list"))
    tiers = tuple(measure(tier, limits) for tier in config.tiers)
    return Measured(describe_machine(), copy, tiers)


def _foretold(
    measured: Measured, work: Workload, cluster: Cluster
) -> list[tuple[str, float, float]]:
    """Return name, predicted and simulated seconds of each rung."""
    forecast = predict(measured, work, cluster, interval=60.0)
    outcome = simulate(forecast.job, days=1)
    simulated = [outcome.mean_stall, *outcome.durable_after.values()]
    pairs = zip(forecast.rungs, simulated, strict=True)
    return [(name, hoped, found) for (name, hoped), found in pairs]


def run(
    *,
    json_file: JsonFile = None,
    ranks: Annotated[int, typer.Option(min=1, help="Processes.")] = 4,
    mib: Annotated[int, typer.Option(min=8, help="MiB of each.")] = 512,
    turns: Annotated[int, typer.Option(min=1, help="Of measuring and of saving.")] = 3,
    saves: Annotated[int, typer.Option(min=1, help="Of a turn; one more comes before.")] = 5,
    seconds: Annotated[float, typer.Option(help="Of measuring each tier, every time.")] = 30.0,
    rest: Annotated[
        float, typer.Option(min=0, help="Seconds before each save and each measuring.")
    ] = 2.0,
    place: Disk = Path(),
) -> None:
    """Stall, and durable on each tier: predicted, simulated and real."""
    job = Job(ranks, mib, saves, rest)
    with minio() as server, tempfile.TemporaryDirectory(dir=place, prefix="tierstore-") as folder:
        os.environ.update(server.environment())
        urls = (Path(folder).as_uri(), f"s3://{server.new_bucket()}/ladder")
        config = Config(tuple(TierConfig(*each) for each in zip(TIERS, urls, strict=True)))
        measured, taken = [_measure(config, seconds, job)], []
        for turn in range(turns):
            taken += _save(config, f"ladder-{turn}", job)
            _empty(config)
            measured.append(_measure(config, seconds, job))
    work = Workload(f"{ranks} x {mib} MiB", float(ranks * mib * MIB))
    cluster = Cluster(1, ranks, 1000 * _YEAR, spread=0.0)
    foretold = [_foretold(each, work, cluster) for each in measured]
    rows = []
    for each, seen in zip(zip(*foretold, strict=True), zip(*taken, strict=True), strict=True):
        names, hoped, found = zip(*each, strict=True)
        row = {"predicted": mean(hoped), "simulated": mean(found), "real": median(seen)}
        rows.append({"rung": names[0], **row})
    document = {"measured": [each.to_json() for each in measured], "rows": rows}
    print(markdown(document))
    if json_file is not None:
        json_file.write_text(json.dumps(document, indent=1))


def markdown(document: dict[str, Any]) -> str:
    """Return the table of a document."""
    lines = ["| | predicted, s | simulated, s | real, s | off by |", "|---|---|---|---|---|"]
    for row in document["rows"]:
        seconds = (f"{row[key]:.3f}" for key in ("predicted", "simulated", "real"))
        off = row["simulated"] / row["real"] - 1
        lines.append(report.row([row["rung"], *seconds, f"{off:+.0%}"]))
    return "\n".join(lines) + "\n"
