"""Tensors on a GPU: staged through page-locked memory on a stream of its own, restored in place."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.fsdp import fully_shard

from tests.ranks import resources
from tierstore_torch import Checkpointer, TierStorageReader, TierStorageWriter, torch_private

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]

DTYPES = [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.bool, torch.complex64]
BUSY = 500_000_000  # cycles: a quarter of a second


@pytest.fixture
def url(tmp_path: Path) -> str:
    return (tmp_path / "tier").as_uri()


@pytest.fixture
def checkpointer(url: str) -> Iterator[Checkpointer]:
    with Checkpointer(url, run="run") as made:
        yield made


def state(device: str, number: int) -> dict[str, torch.Tensor]:
    """Every kind of tensor, with numbers by `number`."""
    generator = torch.Generator().manual_seed(number)
    made = {str(d): torch.rand(37, 5, generator=generator).to(d) for d in DTYPES}
    base = torch.rand(6, 8, generator=generator)
    made |= {"turned": base.t(), "steps": base[::2, ::3], "one": base[0, 0], "none": base[:0]}
    made["large"] = torch.rand(5, 1 << 20, generator=generator)
    return {name: tensor.to(device) for name, tensor in made.items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name].cpu().float(), other[name].cpu().float())
        if not one[name].is_complex()
        else torch.equal(one[name].cpu(), other[name].cpu())
        for name in one
    )


@pytest.mark.parametrize("saved", ["cpu", "cuda"])
@pytest.mark.parametrize("here", ["cpu", "cuda"])
def test_a_state_comes_back_on_any_device(
    checkpointer: Checkpointer, caplog: pytest.LogCaptureFixture, saved: str, here: str
) -> None:
    into = state(here, 2)
    with caplog.at_level(logging.WARNING):
        checkpointer.save(1, state(saved, 1)).wait()
        assert checkpointer.restore(into) == 1
    assert same(into, state("cpu", 1))
    assert "page-lock" not in caplog.text


def test_devices_may_be_mixed(checkpointer: Checkpointer) -> None:
    def mixed(number: int) -> dict[str, dict[str, torch.Tensor]]:
        return {device: state(device, number) for device in ("cuda", "cpu")}

    into = mixed(2)
    checkpointer.save(1, mixed(1)).wait()
    checkpointer.restore(into)
    assert all(same(into[device], state("cpu", 1)) for device in into)


@pytest.mark.parametrize("own_stream", [False, True])
def test_a_save_holds_what_was_queued_before_it_and_nothing_later(
    checkpointer: Checkpointer, *, own_stream: bool
) -> None:
    here = {"w": torch.zeros(1 << 22, device="cuda")}
    checkpointer.save(1, here).wait()
    stream = torch.cuda.Stream() if own_stream else torch.cuda.current_stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(BUSY)
        here["w"].fill_(1)
        save = checkpointer.save(2, here)
        here["w"].fill_(2)
        save.wait()
        torch.cuda._sleep(BUSY)
        here["w"].fill_(3)
        assert checkpointer.restore(here) == 2
        assert here["w"].unique().tolist() == [1]
    torch.cuda.synchronize()
    assert here["w"].unique().tolist() == [1]


def test_conjugates_and_negatives_are_numbers(checkpointer: Checkpointer) -> None:
    made = torch.tensor([1 + 2j, 3 - 4j], device="cuda")
    checkpointer.save(1, {"c": made.conj(), "n": made.conj().imag}).wait()
    into = {"c": torch.zeros_like(made), "n": torch.zeros(2, device="cuda")}
    checkpointer.restore(into)
    assert into["c"].tolist() == [1 - 2j, 3 + 4j]
    assert into["n"].tolist() == [-2, 4]


def test_twenty_saves_grow_nothing(checkpointer: Checkpointer) -> None:
    here = {f"w{i}": torch.full((1 << 20,), float(i), device="cuda") for i in range(8)}
    for step in range(24):
        checkpointer.save(step, here).wait()
        if step == 3:
            before, on_gpu = resources(), torch.cuda.memory_allocated()
    after = resources()
    assert torch.cuda.memory_allocated() == on_gpu
    assert after[0] - before[0] < 16 << 10  # KiB; one state is 32 MiB
    assert after[1:] == before[1:]


def test_closing_unlocks_the_pages(
    url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, int]] = []
    pin, unpin = torch_private.pin, torch_private.unpin

    def noted_pin(address: int, size: int) -> bool:
        done.append(("locked" if (locked := pin(address, size)) else "refused", address))
        return locked

    def noted_unpin(address: int) -> None:
        unpin(address)
        done.append(("unlocked", address))

    monkeypatch.setattr(torch_private, "pin", noted_pin)
    monkeypatch.setattr(torch_private, "unpin", noted_unpin)
    with caplog.at_level(logging.WARNING):
        for number in range(3):  # memory that is still locked could not be locked again
            with Checkpointer(url, run=f"run{number}") as checkpointer:
                checkpointer.save(1, state("cuda", number)).wait()
    torch.cuda.synchronize()
    assert [what for what, _ in done] == ["locked", "unlocked"] * 3
    assert [address for _, address in done[::2]] == [address for _, address in done[1::2]]
    assert "page-lock" not in caplog.text
    assert "a callback of staging memory failed" not in caplog.text


def test_dcp_saves_and_loads(url: str) -> None:
    here, into = state("cuda", 1), state("cuda", 2)
    dcp.save(here, storage_writer=TierStorageWriter(url, checkpoint_id="run/1"))
    dcp.load(into, storage_reader=TierStorageReader(url, checkpoint_id="run/1"))
    assert same(into, here)


def test_a_sharded_model_goes_on_as_if_never_stopped(url: str, tmp_path: Path) -> None:
    dist.init_process_group("cuda:nccl,cpu:gloo", f"file://{tmp_path}/meet", rank=0, world_size=1)

    def job() -> dict[str, Any]:
        model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 64)).cuda()
        fully_shard(model)
        return {"model": model, "optimizer": torch.optim.AdamW(model.parameters(), fused=True)}

    def train(parts: dict[str, Any], steps: int) -> list[float]:
        losses = []
        for step in range(steps):
            batch = torch.full((8, 64), 0.1 * step, device="cuda")
            loss = (parts["model"](batch) - batch).square().mean()
            loss.backward()
            parts["optimizer"].step()
            parts["optimizer"].zero_grad()
            losses.append(loss.item())
        return losses

    try:
        first, second = job(), job()
        with Checkpointer(url, run="run") as checkpointer:
            train(first, 3)
            checkpointer.save(3, first).wait()
            expected = train(first, 3)
            train(second, 1)
            checkpointer.restore(second)
            assert train(second, 3) == expected
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_load_goes_to_the_device_that_is_named(checkpointer: Checkpointer, device: str) -> None:
    checkpointer.save(1, state("cuda", 1)).wait()
    loaded = checkpointer.load(map_location=device)
    assert {tensor.device.type for tensor in loaded.values()} == {device}
    assert same(loaded, state(device, 1))
