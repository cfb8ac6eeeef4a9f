"""Settings of a Trainer and callbacks of Lightning's, with all monitors: the training stays the same to the bit."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    StochasticWeightAveraging,
    Timer,
    WeightAveraging,
)
from lightning.pytorch.loggers import TensorBoardLogger
from monitored import Written
from plain_lightning import NETWORKS, Task, found, monitors, result, train
from spawned import DDP
from torch import Tensor, nn

from normzoo.callbacks import FreezeNorms, Recalibrate
from normzoo.norms import BatchNorm

pytestmark = [
    pytest.mark.filterwarnings("ignore:The Trainer has no logger"),
    # What Lightning says of its own: it takes parameters of equal values, such as biases of zeros, for one.
    pytest.mark.filterwarnings("ignore:The provided params to be frozen already exist within another group"),
    pytest.mark.filterwarnings("ignore:You requested to overfit but enabled train dataloader shuffling"),
]
Settings = dict[str, Any]
# "callbacks" is a function: each run has its own.
SETTINGS: dict[str, Settings] = {
    "bf16, accumulation, clipping": {
        "precision": "bf16-mixed", "accumulate_grad_batches": 2, "gradient_clip_val": 0.1
    },
    "bf16-true": {"precision": "bf16-true"},
    "64-true": {"precision": "64-true"},
    "clipping by value": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    "EMA, recalibrated": {
        "callbacks": lambda: [EMAWeightAveraging(decay=0.9), Recalibrate(batches=2)], "max_epochs": 2
    },
    "averaging, bf16": {"callbacks": lambda: [WeightAveraging()], "precision": "bf16-mixed"},
    "SWA": {
        "callbacks": lambda: [StochasticWeightAveraging(1e-3, swa_epoch_start=1, annealing_epochs=1)], "max_epochs": 3
    },
    "schedule of accumulation": {"callbacks": lambda: [GradientAccumulationScheduler({1: 2})], "max_epochs": 2},
    "norms frozen from an epoch on": {"callbacks": lambda: [FreezeNorms(from_epoch=1)], "max_epochs": 2},
    "early stopping, no sanity check": {
        "callbacks": lambda: [EarlyStopping("val_loss", patience=0)], "max_epochs": 3, "num_sanity_val_steps": 0
    },
    "limits of time": {"callbacks": lambda: [Timer("00:00:10:00")], "max_time": "00:00:10:00"},
    "limits of batches": {"limit_train_batches": 3, "limit_val_batches": 1, "num_sanity_val_steps": 1},
    "overfitting": {"overfit_batches": 2, "max_epochs": 3},
    "validation within an epoch": {"val_check_interval": 2, "accumulate_grad_batches": 2},
    "loaders anew": {"reload_dataloaders_every_n_epochs": 1, "max_epochs": 2},
    "deterministic, anomalies, profiler": {"deterministic": True, "detect_anomaly": True, "profiler": "simple"},
    "a trial run": {"fast_dev_run": True},
}  # fmt: skip
FAST = ("bf16, accumulation, clipping",)


def task(network: str) -> Task:
    return Task(NETWORKS[network][0](**({"norm_layer": BatchNorm} if network == "timm-resnet" else {})))


def both(make: Callable[[], pl.LightningModule], **settings: Any) -> pl.Trainer:
    """Trains without monitors and with all of them, compares, and returns the second trainer."""
    more = settings.pop("callbacks", list)
    without = result(train(make, more(), **settings))
    on = train(make, [*monitors(1), *more()], **settings)
    assert all(torch.equal(value, without[name]) for name, value in result(on).items())
    return on


@pytest.mark.parametrize(
    "setting, network",
    [
        pytest.param(name, network, id=f"{name}-{network}", marks=() if fast else pytest.mark.slow)
        for i, name in enumerate(SETTINGS)
        for network in ("timm-resnet", "timm-vit")
        for fast in [name in FAST and network == "timm-vit"]
        if fast or (network == "timm-resnet") == (i % 2 == 0) or name in FAST
    ],
)
def test_the_training_is_the_same_and_seen(setting: str, network: str) -> None:
    shown = found(both(partial(task, network), **SETTINGS[setting]))
    for metric in ("flow_norm", "update_ratio", "drift_w2", "ics_relative", "loss_range"):
        assert shown[metric], metric


@pytest.mark.slow
@pytest.mark.parametrize("network", ["timm-resnet", "timm-vit"])
def test_gradient_checkpointing(network: str) -> None:
    def checkpointed() -> Task:
        made = task(network)
        made.net.set_grad_checkpointing(True)  # of timm's networks
        return made

    plain, again = (found(train(make, monitors(1))) for make in (partial(task, network), checkpointed))
    assert plain == again
    both(checkpointed)


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True], ids=["network", "module"])
def test_compiled_networks(whole: bool) -> None:
    """Their layers are read on a copy, which runs the same batch eagerly."""

    def compiled() -> pl.LightningModule:
        made = task("timm-vit")
        if not whole:
            made.net = torch.compile(made.net, backend="aot_eager")
        return torch.compile(made, backend="aot_eager") if whole else made

    assert found(both(compiled))["flow_norm"]


class TwoParts(Task):
    """A backbone, as `BackboneFinetuning` expects one, and a head."""

    def __init__(self) -> None:
        backbone = NETWORKS["timm-resnet"][0](num_classes=0)
        super().__init__(nn.Sequential(backbone, nn.Linear(backbone.num_features, 5)))
        self.backbone = backbone


@pytest.mark.slow
def test_a_backbone_that_is_unfrozen_is_seen_from_then_on(tmp_path: Path) -> None:
    finetuning = partial(BackboneFinetuning, unfreeze_backbone_at_epoch=1, verbose=False)
    logger = TensorBoardLogger(tmp_path, name="", version="run")
    train(TwoParts, [*monitors(1), finetuning()], max_epochs=2, logger=logger)
    turn = Written(tmp_path / "run").scalars("turn/net.0.conv1.0")
    assert [value > 0 for value in turn.values()] == [step >= 4 for step in turn]
    assert set(turn) == set(range(8))
    both(TwoParts, callbacks=lambda: [finetuning()], max_epochs=2)


@pytest.mark.slow
def test_two_ranks(tmp_path: Path) -> None:
    trained: list[dict[str, Tensor]] = []
    for on in (False, True):
        logger = TensorBoardLogger(tmp_path, name="", version=f"run{on}")
        made = train(
            partial(task, "timm-resnet"), monitors(1) if on else [], strategy=DDP(), devices=2, logger=logger
        )  # fmt: skip
        trained.append({**made.lightning_module.state_dict()})
    assert all(torch.equal(value, trained[0][name]) for name, value in trained[1].items())
    assert set(Written(tmp_path / "runTrue").scalars("flow_norm/net.fc")) == {0, 1}
