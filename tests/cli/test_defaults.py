"""Which arguments a class has when it is named: its own defaults, and what the user gave for this class."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import normzoo

OWN = """
from lightning.pytorch import LightningDataModule, LightningModule
from normzoo.data import Digits
from normzoo.tasks import Classifier


class Data(LightningDataModule):
    def __init__(self, batch_size: int = 32):
        super().__init__()


class Task(LightningModule):
    def __init__(self, net: object = None, label_smoothing: float = 0.3):
        super().__init__()
"""

# Key -> a class with arguments that another class also has, and that other class.
SWITCHES: dict[str, tuple[str, dict[str, Any], str]] = {
    "model": ("normzoo.tasks.Classifier", {"label_smoothing": 0.2}, "own_defaults.Task"),
    "model.optimizer": ("torch.optim.AdamW", {"lr": 0.5, "weight_decay": 0.3}, "torch.optim.SGD"),
    "model.lr_scheduler": (
        "torch.optim.lr_scheduler.LinearLR",
        {"total_iters": 9},
        "torch.optim.lr_scheduler.ConstantLR",
    ),
    "model.net": ("normzoo.models.ConvNet", {"norm_position": "after"}, "normzoo.models.ResNet"),
    "model.net.norm": ("normzoo.norms.BatchNorm", {"eps": 0.5}, "normzoo.norms.GroupNorm"),
    "model.net.activation": ("torch.nn.ReLU", {"inplace": True}, "torch.nn.ELU"),
    "data": ("normzoo.data.Digits", {"batch_size": 7}, "own_defaults.Data"),
    "trainer.callbacks": ("normzoo.callbacks.GradientFlow", {"layers": ["x"]}, "normzoo.callbacks.CovariateShift"),
    "trainer.logger": (
        "lightning.pytorch.loggers.CSVLogger",
        {"save_dir": "a", "version": "b"},
        "lightning.pytorch.loggers.TensorBoardLogger",
    ),
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a module of the user's, which the command line finds there."""
    (tmp_path / "own_defaults.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("own_defaults", None)


def printed(*arguments: str) -> Any:
    """The configuration that the arguments give."""
    result = normzoo("fit", *arguments, "--print_config")
    assert result.status == 0, result.err
    return yaml.safe_load(result.out)


def value(config: Any, key: str) -> Any:
    """The class at a key that is spelled like a flag."""
    for part in key.split("."):
        config = config.get("init_args", config)[part]
    return config[0] if isinstance(config, list) else config


def write(file: Path, key: str, class_path: str, arguments: dict[str, Any]) -> str:
    """Writes a config file that names a class, and the classes above it."""
    above = {"model": "normzoo.tasks.Classifier", "model.net": "normzoo.models.MLP"}
    settings: Any = {"class_path": class_path, "init_args": arguments}
    if key == "trainer.callbacks":
        settings = [settings]
    parts = key.split(".")
    for place in range(len(parts) - 1, -1, -1):
        settings = {parts[place]: settings}
        if parent := above.get(".".join(parts[:place])):
            settings = {"class_path": parent, "init_args": settings}
    file.write_text(yaml.safe_dump(settings))
    return str(file)


def slow(case: str) -> Any:
    return pytest.param(case, marks=pytest.mark.slow)


@pytest.mark.parametrize("way", ["flags", slow("a file and a flag"), slow("two files")])
@pytest.mark.parametrize("key", SWITCHES)
def test_another_class_has_its_own_defaults_and_the_same_class_keeps_its_arguments(
    key: str, way: str, folder: Path
) -> None:
    """However the two classes are given, and whatever arguments they share."""
    old, arguments, new = SWITCHES[key]
    required = [f"--{key}.save_dir=c"] if key == "trainer.logger" else []
    own = ["--allow=own_defaults"]
    first = ["-c", write(folder / "first.yaml", key, old, arguments)]
    if way == "flags":
        first = [f"--{key}={old}", *(f"--{key}.{name}={given}" for name, given in arguments.items())]
    second, same = [f"--{key}={new}"], [f"--{key}={old}"]
    if way == "two files":
        second = ["-c", write(folder / "second.yaml", key, new, {"save_dir": "c"} if required else {})]
        same = ["-c", write(folder / "same.yaml", key, old, {})]
    alone = value(printed(f"--{key}={new}", *required), key)
    assert value(printed(*first, *second, *required, *own), key) == alone
    assert alone["class_path"].rpartition(".")[2] == new.rpartition(".")[2]
    if key != "trainer.callbacks":  # a list is replaced as a whole
        kept = value(printed(*first, *same, *own), key)["init_args"]
        assert {name: kept[name] for name in arguments} == arguments


def test_the_default_classes_leave_nothing_to_the_users_own() -> None:
    """A task that names no network gets none, and data keep their batch size."""
    config = printed("--model=own_defaults.Task", "--data=own_defaults.Data")
    assert config["model"]["init_args"] == {"net": None, "label_smoothing": 0.3}
    assert config["data"]["init_args"] == {"batch_size": 32}


def test_sgd_has_no_weight_decay() -> None:
    optimizer = printed("--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.1")["model"]["init_args"][
        "optimizer"
    ]
    assert (optimizer["init_args"]["lr"], optimizer["init_args"]["weight_decay"]) == (0.1, 0)


def test_an_argument_before_its_class_is_refused() -> None:
    """It would be given to the default class, and lost."""
    result = normzoo("fit", "--model.optimizer.lr=0.1", "--model.optimizer=torch.optim.SGD", "--print_config")
    assert result.status == 1
    assert "--model.optimizer.lr comes before --model.optimizer" in result.err


def test_a_run_without_a_config_is_short() -> None:
    assert printed()["trainer"]["max_epochs"] == 10


UNUSUAL = {
    "a number of any kind": "data: {class_path: Digits, init_args: {augment: [{class_path: "
    "torchvision.transforms.v2.RandomRotation, init_args: {degrees: 15}}]}}",
    "several numbers": "data: {class_path: Digits, init_args: {augment: [{class_path: "
    "torchvision.transforms.v2.RandomAffine, init_args: {degrees: 15, translate: [0.1, 0.1]}}]}}",
    "a device": "trainer: {callbacks: [{class_path: StochasticWeightAveraging, init_args: {swa_lrs: 0.01}}]}",
    "the name of a function": "trainer: {callbacks: [{class_path: ModelPruning, init_args: "
    "{pruning_fn: l1_unstructured}}]}",
}


@pytest.mark.parametrize("kind", UNUSUAL)
@pytest.mark.filterwarnings("error:.*Unable to serialize")
def test_a_printed_config_gives_itself(kind: str, folder: Path) -> None:
    """Values for which jsonargparse knows no text included."""
    (folder / "first.yaml").write_text(UNUSUAL[kind])
    first = printed("-c", "first.yaml")
    assert "Unable" not in str(first)
    given = yaml.safe_load(UNUSUAL[kind])
    key = next(iter(given))
    assert all(word in str(first[key]) for word in ("degrees", "15") if key == "data")
    (folder / "second.yaml").write_text(yaml.safe_dump(first))
    assert printed("-c", "second.yaml") == first
