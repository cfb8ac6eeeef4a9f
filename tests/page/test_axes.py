"""In which settings runs differ, and what their arms are called."""

import inspect
from typing import Any

import pytest

import normzoo.norms
from normzoo.norms import Norm
from normzoo.page.arms import name_of
from normzoo.page.settings import comparable, defaults, settings_of, short_names

SGD, ADAM = "torch.optim.SGD", "torch.optim.AdamW"


def config(norm: Any = "normzoo.norms.BatchNorm", optimizer: str = SGD, **arguments: Any) -> dict[str, Any]:
    """The configuration of a run, in part."""
    net = {"class_path": "normzoo.models.MLP", "init_args": {"hidden": [8], "norm": norm}}
    rate = {"class_path": optimizer, "init_args": arguments}
    task = {"class_path": "normzoo.tasks.Classifier", "init_args": {"net": net, "optimizer": rate}}
    return {"seed_everything": 0, "model": task, "experiment": "a", "trainer": {"logger": None, "max_epochs": 3}}


def group_norm(**arguments: Any) -> dict[str, Any]:
    return {"class_path": "normzoo.norms.GroupNorm", "init_args": {"num_groups": None, "eps": 1e-5, **arguments}}


LR, MOMENTUM, OPTIMIZER = (f"model.optimizer{end}" for end in (".lr", ".momentum", ""))
CASES: list[tuple[list[dict[str, Any]], list[str], list[str]]] = [
    ([config(lr=0.1), config(lr=0.1)], [], ["BatchNorm"] * 2),
    ([config(lr=0.1), config(lr=1.0)], [LR], ["BatchNorm, lr=0.1", "BatchNorm, lr=1"]),
    ([config(), config("normzoo.norms.NoNorm")], ["norm"], ["BatchNorm", "NoNorm"]),
    (
        [config(), config(group_norm(num_groups=4)), config(group_norm())],
        ["norm"],
        ["BatchNorm", "GroupNorm(num_groups=4)", "GroupNorm"],
    ),
    ([config(), config(group_norm(num_groups=4))], ["norm"], ["BatchNorm", "GroupNorm(num_groups=4)"]),
    ([config(group_norm(eps=1e-3)), config()], ["norm"], ["GroupNorm(eps=0.001)", "BatchNorm"]),
    (
        [config({"class_path": "mine.Norm", "init_args": {"a": 1, "b": b}}) for b in (2, 3)],
        ["norm"],
        ["Norm(b=2)", "Norm(b=3)"],
    ),
    ([config("mine.Norm"), config("other.Norm2")], ["norm"], ["Norm", "Norm2"]),
    # The momentum follows from the optimizer, and so does its only rate.
    (
        [config(lr=0.1, momentum=0.9), config(optimizer=ADAM, lr=0.001)],
        [OPTIMIZER],
        ["BatchNorm, optimizer=SGD", "BatchNorm, optimizer=AdamW"],
    ),
    (
        [config(lr=0.1), config(lr=1.0), config(optimizer=ADAM, lr=0.001)],
        [OPTIMIZER, LR],
        ["BatchNorm, optimizer=SGD, lr=0.1", "BatchNorm, optimizer=SGD, lr=1", "BatchNorm, optimizer=AdamW, lr=0.001"],
    ),
    # Lists: the widths of the layers.
    (
        [config(hidden=[8]), config(hidden=[8, 8])],
        ["model.optimizer.hidden"],
        ["BatchNorm, hidden=[8]", "BatchNorm, hidden=[8, 8]"],
    ),
    # An older run lacks an argument.
    ([config(lr=0.1), config(lr=0.1, nesterov=False)], [], ["BatchNorm"] * 2),
    # What does not change the training.
    ([config(), {**config(), "seed_everything": 1, "experiment": "b", "monitors": False}], [], ["BatchNorm"] * 2),
    ([config(), {}], ["norm"], ["BatchNorm", "?"]),
    ([{}, {}], [], ["?", "?"]),
]


@pytest.mark.parametrize("configs,axes,names", CASES)
def test_runs_differ_in(configs: list[dict[str, Any]], axes: list[str], names: list[str]) -> None:
    found, settings = comparable([settings_of(one) for one in configs], ["?"] * len(configs))
    assert found == axes
    assert [name_of(one) for one in settings] == names


def test_short_names_are_unique() -> None:
    assert short_names(["norm", "model.a.lr", "model.b.lr", "data.size", "lr"]) == {
        "norm": "norm", "model.a.lr": "a.lr", "model.b.lr": "b.lr", "data.size": "size", "lr": "lr"
    }  # fmt: skip


def test_defaults_are_those_of_the_layers() -> None:
    layers = [one for one in vars(normzoo.norms).values() if isinstance(one, type) and issubclass(one, Norm)]
    read = {layer.__name__: defaults(f"normzoo.norms.{layer.__name__}") for layer in layers if layer is not Norm}
    assert sum(map(len, read.values())) > 100
    for layer in layers:
        parameters = inspect.signature(layer).parameters
        for name, value in read.get(layer.__name__, {}).items():
            assert parameters[name].default == value, f"{layer.__name__}({name})"
    assert read["GroupNorm"] == {"num_groups": None, "eps": 1e-5, "affine": True, "bias": True}
    assert defaults("somebody.Norm") == {}
