"""The one copy of a save: tensors straight into their places in the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from tierstore.image.layout import Chunk, ImageLayout
from tierstore.logs import logger
from tierstore_torch import torch_private

if TYPE_CHECKING:
    from tierstore.image.pool import Image

_log = logger(__name__)
_VIEWS = "tierstore_torch.views"
_PINNED = "tierstore_torch.pinned"


@dataclass(frozen=True, slots=True)
class _Views:
    layout: ImageLayout
    views: list[torch.Tensor]


class StagedPlan:
    """What one rank copies at every save, with views of the images made once.

    Args:
        layout: where each chunk lies in the image.
        chunks: parallel to the layout's placements.
        sources: the tensors to copy, parallel to `chunks`; may be replaced before each `stage`.
    """

    def __init__(
        self, layout: ImageLayout, chunks: Sequence[Chunk], sources: list[torch.Tensor]
    ) -> None:
        self.layout = layout
        self.chunks = chunks
        self.sources = sources
        self._streams: dict[torch.device, Any] = {}

    def views(self, image: Image) -> list[torch.Tensor]:
        """Return a tensor over each chunk's place in the image, built once per image memory."""
        known = cast("_Views | None", image.derived.get(_VIEWS))
        if known is None or known.layout is not self.layout:
            known = image.derived[_VIEWS] = _Views(self.layout, self._build(image))
        return known.views

    def stage(self, image: Image) -> None:
        """Copy every source into the image; when it returns, sources may be changed again.

        Tensors on a GPU are copied on a side stream, which starts after the work already queued
        on the current stream, into page-locked memory. Views that are made under
        `torch.inference_mode` cannot be written outside of it, so they are not.
        """
        self.layout.write_headers(image.buffer)  # the image may have held another plan's
        with torch.inference_mode(False), torch.no_grad():
            views = self.views(image)
            if not any(source.is_cuda for source in self.sources):
                sources = [torch_private.copyable(source) for source in self.sources]
                torch_private.copy_all(views, sources, wait=True)
                return
            self._stage_cuda(image, views)

    def _stage_cuda(self, image: Image, views: list[torch.Tensor]) -> None:
        pin(image)
        pairs: dict[torch.device, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        for view, source in zip(views, self.sources, strict=True):
            pairs.setdefault(source.device, []).append((view, torch_private.copyable(source)))
        copied = [
            self._copy_device(device, mine)
            for device, mine in pairs.items()
            if device.type == "cuda"
        ]
        for device, mine in pairs.items():
            if device.type != "cuda":  # while the GPUs copy
                torch_private.copy_all([v for v, _ in mine], [s for _, s in mine], wait=True)
        for event in copied:
            event.synchronize()

    def _copy_device(
        self, device: torch.device, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]
    ) -> Any:
        """Start one device's copies and return the event that marks their end."""
        with torch.cuda.device(device):
            stream = self._streams.get(device)
            if stream is None:
                stream = self._streams[device] = cast("Any", torch.cuda).Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                # Resolved on the GPU: torch would conjugate on the CPU, before the bytes are there.
                sources = [source.resolve_conj().resolve_neg() for _, source in pairs]
                torch_private.copy_all([view for view, _ in pairs], sources, wait=False)
                return stream.record_event()

    def _build(self, image: Image) -> list[torch.Tensor]:
        base = image_bytes(image)
        views = []
        for index, chunk in enumerate(self.chunks):
            start = self.layout.image_offset(index)
            dtype: torch.dtype = getattr(torch, chunk.dtype)
            view = base[start : start + chunk.nbytes].view(dtype).view(chunk.sizes)
            views.append(torch_private.copyable(view))
        return views


def image_bytes(image: Image) -> torch.Tensor:
    """Return an image's bytes as a tensor that keeps them mapped (torch.frombuffer would not)."""
    return torch.from_numpy(np.frombuffer(image.buffer, np.uint8))


def _pin(image: Image, address: int, nbytes: int) -> bool:
    """Page-lock one file of an image: no chunk that is copied lies in two."""
    if torch_private.pin(address, nbytes):
        image.on_discard(lambda: torch_private.unpin(address))
        return True
    return False


def pin(image: Image) -> bool:
    """Page-lock an image's memory for the GPU, once in its life; False where CUDA refuses.

    An image that is not locked still works: CUDA then copies through its own small buffer.
    """
    pinned = image.derived.get(_PINNED)
    if pinned is None:
        pinned = image.derived[_PINNED] = all(_pin(image, *piece) for piece in image.pieces)
        if not pinned:
            _log.warning("CUDA cannot page-lock %d bytes of staging memory", len(image.buffer))
    return bool(pinned)
