"""Imported once in the process that ranks are forked from, so that no rank has to: 4 s of each."""

from __future__ import annotations

import atexit
import gc
import importlib
import os

_USED = (
    "awscrt.checksums",
    "torch",
    "torch._dynamo",  # the first step of an optimizer imports it
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
    "tierstore.backends.local.backend",
    "tierstore.checkpoint.merge",
    "tierstore_s3.backend",
    "tierstore_torch.checkpointer",
    "tierstore_torch.dcp.writer",
)

for name in _USED:
    importlib.import_module(name)
gc.freeze()  # what is collected is written to, and would be copied for every rank
atexit.register(os._exit, 0)  # without the words of a library that looks for leaks as it ends
