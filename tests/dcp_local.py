"""`dcp.save` and `dcp.load` in one process, with the errors that a caller would look for."""

from __future__ import annotations

from typing import Any

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata

from tierstore.config import load_config
from tierstore.ladder.survey import survey
from tierstore.ladder.tiers import close_ladder, open_ladder
from tierstore_torch import (
    TierStorageReader,
    TierStorageWriter,
    cause,
)


def save(url: str | tuple[str, ...], name: str, state: dict[str, Any], **options: Any) -> Metadata:
    urls = (url,) if isinstance(url, str) else url
    planner = options.pop("planner", None)
    writer = TierStorageWriter(*urls, checkpoint_id=name, **options)
    try:
        return dcp.save(state, storage_writer=writer, planner=planner)
    except CheckpointException as failed:
        raise cause(failed) from failed


def load(url: str | tuple[str, ...], name: str, state: dict[str, Any], **options: Any) -> Any:
    urls = (url,) if isinstance(url, str) else url
    planner = options.pop("planner", None)
    reader = TierStorageReader(*urls, checkpoint_id=name, **options)
    try:
        dcp.load(state, storage_reader=reader, planner=planner)
    except CheckpointException as failed:
        raise cause(failed) from failed
    return reader


def committed(url: str, run: str) -> list[int]:
    tiers = open_ladder(load_config(url))
    try:
        return [saved.step for saved in survey(tiers, run).timeline]
    finally:
        close_ladder(tiers)
