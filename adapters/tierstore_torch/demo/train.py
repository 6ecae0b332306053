"""The demo's training job, started by `tierstore demo`: imports torch once and forks its ranks.

Each rank reports as JSON lines in `--events`, one file a rank. If one dies, the others are ended.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # the first step of an optimizer imports it: seconds, for every rank anew
import torch.distributed as dist
import torch.multiprocessing
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from tierstore.blocks import crc32c
from tierstore_torch import Checkpointer
from tierstore_torch.demo.model import Transformer
from tierstore_torch.demo.text import batch, standard_library

BATCH = 6  # three ranks share it as well as two
LENGTH = 32


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="", help="tierstore.toml; empty: no checkpoints")
    parser.add_argument("--job", default="demo", help="the run")
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True, help="train up to this step")
    parser.add_argument("--every", type=int, default=4, help="save every so many steps")
    parser.add_argument("--kill-at", type=int, default=0, help="rank 1 dies saving this step")
    parser.add_argument("--events", type=Path, required=True)
    return parser.parse_args()


class Trainer:
    """The model, its optimizer, and the step they are at."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = Transformer(length=LENGTH)
        for block in self.model.blocks:
            fully_shard(block)
        fully_shard(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.text = standard_library()
        self.step = 0

    def train_step(self) -> float:
        """Take one step on this rank's share of the batch; return the mean loss of all ranks."""
        self.step += 1
        mine = batch(self.text, self.step, size=BATCH, length=LENGTH)
        mine = mine.chunk(dist.get_world_size())[dist.get_rank()]
        logits = self.model(mine[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), mine[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad()
        total = loss.detach().clone()
        dist.all_reduce(total)
        return float(total) / dist.get_world_size()

    def state(self) -> dict[str, Any]:
        """Return everything a restart needs."""
        return {"model": self.model, "optimizer": self.optimizer, "step": self.step}

    def restore(self, checkpointer: Checkpointer) -> int | None:
        """Load the newest checkpoint, if there is one, and return its step."""
        step = checkpointer.restore(self.state())
        self.step = step or 0
        return step

    def digest(self) -> int:
        """Return the CRC32C of every tensor of the model and the optimizer, gathered whole."""
        digest = 0
        state = [self.model.state_dict(), self.optimizer.state_dict()["state"]]
        for tensor in (tensor for part in state for tensor in _tensors(part)):
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            digest = crc32c(whole.detach().reshape(-1).view(torch.uint8).numpy().data, digest)
        return digest


def _tensors(tree: object) -> list[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return [tree]
    if isinstance(tree, dict):
        return [t for key in sorted(tree, key=str) for t in _tensors(tree[key])]
    return []


def run(args: argparse.Namespace, report: Callable[..., None]) -> None:
    """Restore, train, save; tell the parent what happened."""
    trainer = Trainer()
    checkpointer = Checkpointer(args.config, run=args.job) if args.config else None
    if checkpointer is not None:
        started = time.perf_counter()
        step = trainer.restore(checkpointer)
        report("restored", step=step, seconds=time.perf_counter() - started)
        report("digest", step=trainer.step, digest=trainer.digest())
    while trainer.step < args.steps:
        loss = trainer.train_step()
        report("loss", step=trainer.step, loss=loss)
        if checkpointer is not None and trainer.step % args.every == 0:
            save = checkpointer.save(trainer.step, trainer.state())
            if trainer.step == args.kill_at and dist.get_rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)  # the save is staged, its files half written
            save.wait()
            report("saved", step=trainer.step, stall=save.stall, tiers=save.report())
    report("digest", step=trainer.step, digest=trainer.digest())
    if checkpointer is not None:
        checkpointer.close()


def rank(number: int, args: argparse.Namespace) -> None:
    """Be one rank."""
    os.environ.update({"RANK": str(number), "LOCAL_RANK": str(number)})
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    with (args.events / f"{dist.get_rank()}.jsonl").open("a") as file:

        def report(event: str, **fields: object) -> None:
            file.write(json.dumps({"event": event, **fields}) + "\n")
            file.flush()

        run(args, report)
    dist.barrier()  # nobody hangs up on a rank that is still in the last collective
    dist.destroy_process_group()


def main() -> None:
    """Run all ranks, and fail if one does."""
    args = arguments()
    # Ranks get it when this process is gone, and it ends them in a collective too.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    os.environ.update({**meeting, "WORLD_SIZE": str(args.ranks)})
    gc.freeze()  # what is collected is written to, and would be copied for every rank
    code = 0
    try:
        torch.multiprocessing.start_processes(  # type: ignore[no-untyped-call]
            rank, (args,), nprocs=args.ranks, start_method="fork"
        )
    except Exception:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)  # without the words of a library that looks for leaks as it ends


if __name__ == "__main__":
    main()
