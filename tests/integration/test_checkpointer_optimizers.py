"""Optimizers, however far they are: each is restored exactly, or refused with what to do."""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn, optim
from torch.optim import lr_scheduler

from tests.integration import checkpointer_cases as cases
from tests.ranks import Ranks
from tests.states import differences
from tierstore.errors import CheckpointError, PlanError
from tierstore_torch import Checkpointer, TierStorageWriter

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable)"),
]


Make = Callable[[list[nn.Parameter]], Any]
KINDS: dict[str, Make] = {
    "sgd": lambda p: optim.SGD(p, lr=0.1),
    "momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: optim.Adam(p, amsgrad=True),
    "fused": lambda p: optim.AdamW(p, fused=True),
    "foreach": lambda p: optim.AdamW(p, foreach=True),
    "lbfgs": lambda p: optim.LBFGS(p, lr=0.1, history_size=3),
    "strong wolfe": lambda p: optim.LBFGS(p, line_search_fn="strong_wolfe"),
    "adagrad": optim.Adagrad,
    "rmsprop": lambda p: optim.RMSprop(p, momentum=0.5, centered=True),
    "adadelta": optim.Adadelta,
    "adafactor": optim.Adafactor,
    "rprop": optim.Rprop,
    "asgd": optim.ASGD,
    "nadam": optim.NAdam,
    "wrapper": lambda p: ScheduleFree(optim.AdamW(p)),
    "nested": lambda p: Nested(optim.AdamW(p)),
}


class ScheduleFree:
    """A wrapper that is no Optimizer and shows the parameters."""

    def __init__(self, base: optim.Optimizer) -> None:
        self.base = base

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.base.param_groups

    def step(self, closure: Any = None) -> None:
        self.base.step(closure)

    def state_dict(self) -> dict[str, Any]:
        return self.base.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.base.load_state_dict(state)


class Nested:
    """A wrapper that has the optimizer's state among its own."""

    def __init__(self, base: optim.Optimizer) -> None:
        self.base, self.k = base, 0

    def step(self, closure: Any = None) -> None:
        self.k += 1
        self.base.step(closure)

    def state_dict(self) -> dict[str, Any]:
        return {"base": self.base.state_dict(), "k": self.k}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.base.load_state_dict(state["base"])
        self.k = state["k"]


class Training:
    """A model of which each step uses some layers, and its optimizer."""

    def __init__(self, make: Make) -> None:
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.optimizer = make(list(self.layers.parameters()))

    @property
    def state(self) -> dict[str, Any]:
        return {"layers": self.layers, "optimizer": self.optimizer}

    def step(self, *used: int) -> float:
        def closure() -> torch.Tensor:
            for parameter in self.layers.parameters():
                parameter.grad = None
            x = torch.linspace(-1, 1, 8).view(2, 4)
            for index in used:
                x = self.layers[index](x)
            loss = x.square().sum()
            loss.backward()
            return loss

        loss = closure().item()
        self.optimizer.step(closure)
        return loss


@pytest.fixture
def checkpointer(tmp_path: Path) -> Iterator[Checkpointer]:
    with Checkpointer(tmp_path.as_uri(), run="run") as made:
        yield made


def check_restored(first: Training, second: Training) -> None:
    """The state is equal to a bit and type, and training goes on alike."""
    left, right = first.optimizer.state_dict(), second.optimizer.state_dict()
    assert list(differences(left, right)) == []
    assert [first.step(0, 1, 2) for _ in range(2)] == [second.step(0, 1, 2) for _ in range(2)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_however_far_it_is(checkpointer: Checkpointer, kind: str) -> None:
    steps: dict[str, list[tuple[int, ...]]] = {
        "none": [],
        "some": [(0,), (0, 1)],  # the others never had a gradient
        "all": [(0, 1, 2)] * 4,
    }
    for number, used in enumerate(steps.values()):
        saved = Training(KINDS[kind])
        for layers in used:
            saved.step(*layers)
        checkpointer.save(number, saved.state).wait()
        wanted = copy.deepcopy(saved.optimizer.state_dict())
        losses = [saved.step(0, 1, 2) for _ in range(2)]
        for before in steps.values():
            here = Training(KINDS[kind])
            for layers in before:  # gradients of the last step are still there
                here.step(*layers)
            assert checkpointer.restore(here.state) == number
            assert list(differences(wanted, here.optimizer.state_dict())) == []
            assert [here.step(0, 1, 2) for _ in range(2)] == losses


def test_sparse_gradients(checkpointer: Checkpointer) -> None:
    def training() -> tuple[nn.Embedding, optim.SparseAdam]:
        torch.manual_seed(0)
        embedding = nn.Embedding(10, 3, sparse=True)
        return embedding, optim.SparseAdam(embedding.parameters())

    def step(embedding: nn.Embedding, optimizer: optim.SparseAdam) -> list[float]:
        optimizer.zero_grad()
        embedding(torch.tensor([1, 3])).square().sum().backward()
        optimizer.step()
        return embedding.weight.flatten().tolist()

    first, second = training(), training()
    step(*first)
    checkpointer.save(1, {"e": first[0], "o": first[1]}).wait()
    checkpointer.restore({"e": second[0], "o": second[1]})
    assert step(*first) == step(*second)


def test_no_step_is_taken(checkpointer: Checkpointer, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Training(KINDS["adam"]), Training(KINDS["adam"])
    first.step(0, 1)
    checkpointer.save(1, first.state).wait()
    second.layers[0].weight.grad = torch.ones(4, 4)
    monkeypatch.setattr(second.optimizer, "step", None)
    checkpointer.restore(second.state)
    assert second.layers[0].weight.grad.unique().tolist() == [1]
    monkeypatch.undo()
    check_restored(first, second)


def test_frozen_after_training_and_frozen_here(checkpointer: Checkpointer) -> None:
    first, second = Training(KINDS["adam"]), Training(KINDS["adam"])
    first.step(0, 1, 2)
    for training in (first, second):
        training.layers[0].requires_grad_(False)
    checkpointer.save(1, first.state).wait()
    checkpointer.restore(second.state)
    check_restored(first, second)


@pytest.mark.parametrize("saved", [0.5, torch.tensor(0.5)], ids=["float", "tensor"])
@pytest.mark.parametrize("here", [0.25, torch.tensor(0.25)], ids=["into float", "into tensor"])
def test_a_learning_rate_of_either_kind(checkpointer: Checkpointer, saved: Any, here: Any) -> None:
    first, second = (Training(lambda p, lr=lr: optim.AdamW(p, lr=lr)) for lr in (saved, here))
    first.step(0)
    checkpointer.save(1, first.state).wait()
    checkpointer.restore(second.state)
    check_restored(first, second)


@pytest.mark.parametrize("saved", [0.5, torch.tensor(0.5)], ids=["float", "tensor"])
@pytest.mark.parametrize("here", [0.25, torch.tensor(0.25)], ids=["into float", "into tensor"])
@pytest.mark.parametrize("steps", [(0, 3), (3, 0)], ids=["from before", "from behind"])
def test_a_schedulers_rates_of_either_kind(
    checkpointer: Checkpointer, saved: Any, here: Any, steps: tuple[int, int]
) -> None:
    """Its own are those of the scheduler that is in charge, another one after two steps."""

    def training(rate: Any) -> tuple[Training, lr_scheduler.SequentialLR]:
        made = Training(lambda p: optim.SGD(p, lr=copy.deepcopy(rate), momentum=0.9))
        parts = [
            lr_scheduler.ConstantLR(made.optimizer),
            lr_scheduler.ExponentialLR(made.optimizer, 0.9),
        ]
        return made, lr_scheduler.SequentialLR(made.optimizer, parts, [2])

    first, second = training(saved), training(here)
    for (made, schedule), count in zip((first, second), steps, strict=True):
        for _ in range(count):
            made.step(0, 1, 2)
            schedule.step()
    checkpointer.save(1, {**first[0].state, "schedule": first[1]}).wait()
    checkpointer.restore({**second[0].state, "schedule": second[1]})
    for _ in range(3):
        left, right = first[1].state_dict(), second[1].state_dict()
        assert list(differences(left, right)) == []
        check_restored(first[0], second[0])
        first[1].step()
        second[1].step()


class Experiment:
    """An object that has an optimizer's state in some place, and other things beside it."""

    def __init__(self, place: Callable[[Any], Any], optimizer: optim.Optimizer) -> None:
        self.place, self.optimizer, self.loaded = place, optimizer, None

    def state_dict(self) -> Any:
        return self.place(self.optimizer.state_dict())

    def load_state_dict(self, state: Any) -> None:
        self.loaded = state


PLACES: dict[str, Callable[[Any], Any]] = {
    "beside a Counter": lambda o: {"o": o, "seen": Counter("aab"), "d": defaultdict(int, a=1)},
    "in an OrderedDict": lambda o: OrderedDict(o=o, k=1),
    "in a tuple": lambda o: {"x": (o, {"k": 1}), "y": 2},
    "in a tuple of a list": lambda o: {"all": [(o,)]},
    "beside a model": lambda o: {"o": o, "model": nn.BatchNorm1d(2).state_dict()},
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("steps", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_what_an_optimizer_is_in_keeps_its_type(
    checkpointer: Checkpointer, place: str, steps: tuple[int, int]
) -> None:
    first, second = Training(KINDS["adam"]), Training(KINDS["adam"])
    for training, count in zip((first, second), steps, strict=True):
        for _ in range(count):
            training.step(0)
    saved, here = (Experiment(PLACES[place], made.optimizer) for made in (first, second))
    checkpointer.save(1, {"x": saved}).wait()
    checkpointer.restore({"x": here})
    assert list(differences(saved.state_dict(), here.loaded)) == []
    if place == "beside a model":
        assert hasattr(here.loaded["model"], "_metadata")


def test_state_in_another_dtype_than_its_parameters(checkpointer: Checkpointer) -> None:
    first, second = Training(KINDS["adam"]), Training(KINDS["adam"])
    first.step(0, 1, 2)
    checkpointer.save(1, first.state).wait()
    second.layers.bfloat16()
    checkpointer.restore(second.state)
    wanted = first.optimizer.state_dict()
    reference = Training(KINDS["adam"])
    reference.layers.bfloat16()
    reference.optimizer.load_state_dict(copy.deepcopy(wanted))  # what torch makes of it
    left, right = reference.optimizer.state_dict(), second.optimizer.state_dict()
    assert list(differences(left, right)) == []


def test_groups_that_differ(checkpointer: Checkpointer, caplog: pytest.LogCaptureFixture) -> None:
    def make(count: int) -> Training:
        training = Training(lambda p: optim.AdamW(p[:2]))
        for index in range(count):
            added = list(training.layers[index + 1].parameters())
            training.optimizer.add_param_group({"params": added, "lr": 0.5})
        return training

    for number, (saved, here) in enumerate([(0, 1), (1, 0)]):
        first, second = make(saved), make(here)
        first.step(0, 1, 2)
        second.step(0, 1, 2)
        second.step(0, 1, 2)
        kept = copy.deepcopy(second.optimizer.state_dict())
        checkpointer.save(number, first.state).wait()
        with pytest.raises(PlanError, match=r"optimizer\.param_groups\.1\.lr.*strict=False"):
            checkpointer.restore(second.state)
        assert list(differences(kept, second.optimizer.state_dict())) == []
        caplog.clear()
        checkpointer.restore(second.state, strict=False)
        assert "optimizer.param_groups.1.lr" in caplog.text
        got, wanted = second.optimizer.state_dict(), first.optimizer.state_dict()
        for number_ in (0, 1):
            assert list(differences(got["state"][number_], wanted["state"][number_])) == []
        for number_ in range(2, 2 + 2 * here):
            assert list(differences(got["state"][number_], kept["state"][number_])) == []
        second.step(0, 1, 2)


@pytest.mark.parametrize("strict", [True, False])
def test_other_parameters_are_refused(checkpointer: Checkpointer, *, strict: bool) -> None:
    one, two = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(4))
    saved = optim.Adam([one, two])
    one.grad, two.grad = torch.ones(3), torch.ones(4)
    saved.step()
    checkpointer.save(1, {"o": saved}).wait()
    for here, message in [
        (
            optim.Adam([one]),
            "2 parameters were saved, 1 are here .*same parameters in the same order",
        ),
        (optim.Adam([nn.UninitializedParameter(), two]), r"o\.state\.0\.\w+: a lazy module's"),
        (optim.Adam([two, one]), r"o\.state\.0\.exp_avg.*: shape \(3,\) was saved, \(4,\) is its"),
    ]:
        with pytest.raises(PlanError, match=message):
            checkpointer.restore({"o": here}, strict=strict)
        assert not here.state


def test_another_optimizer_is_refused(checkpointer: Checkpointer) -> None:
    first, second = Training(KINDS["momentum"]), Training(KINDS["adam"])
    first.step(0)
    checkpointer.save(1, first.state).wait()
    with pytest.raises(
        PlanError, match=r"keys were not saved: optimizer\.param_groups\.0\.amsgrad"
    ):
        checkpointer.restore(second.state)


class Lazy:
    """An object that has more state after its first step, and is no optimizer."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if "w" not in state:
            raise KeyError("w")


def test_what_other_objects_lack_is_named(
    checkpointer: Checkpointer, caplog: pytest.LogCaptureFixture
) -> None:
    saved = Lazy()
    saved.state = {"w": torch.ones(3)}
    checkpointer.save(1, {"lazy": saved, "n": 1}).wait()
    with pytest.raises(PlanError, match=r"no place here: lazy\.w .*it must be given before"):
        checkpointer.restore({"lazy": Lazy(), "n": 0})
    with pytest.raises(
        CheckpointError, match=r"^lazy: a Lazy did not take its state: KeyError: 'w'"
    ):
        checkpointer.restore({"lazy": Lazy(), "n": 0}, strict=False)
    assert "not restored: 1 saved keys have no place here: lazy.w" in caplog.text


def test_what_dcp_wrote_of_an_optimizer(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    first, second = Training(KINDS["lbfgs"]), Training(KINDS["lbfgs"])
    for training in (first, second):
        training.step(0, 1, 2)
    first.step(0, 1)
    writer = TierStorageWriter(tmp_path.as_uri(), checkpoint_id="run/1")
    dcp.save({"layers": first.layers, "optimizer": first.optimizer}, storage_writer=writer)
    with Checkpointer(tmp_path.as_uri(), run="run") as checkpointer:
        checkpointer.restore(second.state)
    check_restored(first, second)


def test_sharded_parameters_and_scalars_beside_them(ranks: Ranks, tmp_path: Path) -> None:
    for kinds in ranks.run(2, cases.fresh_sharded_optimizers, tmp_path.as_uri()):
        assert kinds == []
