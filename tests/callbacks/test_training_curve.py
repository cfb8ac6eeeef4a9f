"""The training curve: the mean of what `training_step` returns, for any LightningModule."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from memory import Memory
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from normzoo.callbacks import ExactResume, TrainingCurve
from normzoo.models import MLP
from normzoo.norms import NoNorm
from normzoo.tasks import Classifier

Curve = dict[str, dict[int, float]]


class Regression(LightningModule):
    """A task of somebody else's: it returns its loss in one of Lightning's ways, and notes it."""

    def __init__(self, way: str = "tensor") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1)
        self.way = way
        self.automatic_optimization = way != "manual"
        self.losses: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = (self.layer(batch[0]) ** 2).mean()
        self.losses.append(loss.item())
        if self.way == "manual":
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        if self.way == "logs":
            self.log("train/loss", loss)
        return loss if self.way == "tensor" else {"loss": loss, "prediction": torch.zeros(2, 3), "name": "x"}

    def configure_optimizers(self) -> SGD:
        return SGD(self.parameters(), lr=0.05)


def batches(number: int, size: int = 2) -> DataLoader[Any]:
    g = torch.Generator().manual_seed(0)
    return DataLoader(TensorDataset(torch.randn(number * size, 3, generator=g)), batch_size=size)


def fit(
    task: LightningModule,
    data: Any,
    *callbacks: Callback,
    ckpt_path: Path | None = None,
    curve: TrainingCurve | None = None,
    **settings: Any,
) -> Curve:
    memory = Memory()
    seed_everything(0, verbose=False)
    trainer = Trainer(
        **{"accelerator": "cpu", "enable_checkpointing": False, "enable_progress_bar": False, **settings},
        enable_model_summary=False,
        logger=memory,
        callbacks=[curve or TrainingCurve(), *callbacks],
    )
    trainer.fit(task, data, ckpt_path=ckpt_path, weights_only=None if ckpt_path is None else True)
    return memory.values


SETTINGS: list[dict[str, int]] = [{}, {"log_every_n_steps": 3}, {"accumulate_grad_batches": 2}]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("way", ["tensor", "dict"])
def test_a_point_is_the_mean_of_the_losses_since_the_last(way: str, settings: dict[str, int]) -> None:
    """Every step counts once, also those after the last full interval."""
    task = Regression(way)
    log = fit(task, batches(75), max_epochs=3, **settings)
    assert len(task.losses) == 225
    every = min(settings.get("log_every_n_steps", 50), 225 // 50)
    expected = [sum(task.losses[i : i + every]) / len(task.losses[i : i + every]) for i in range(0, 225, every)]
    assert list(log["train/loss"].values()) == pytest.approx(expected, rel=1e-5)
    assert list(log["train/loss"]) == list(log["lr"])
    assert set(log["lr"].values()) == {0.05}
    assert max(log["train/loss"]) == (114 if "accumulate_grad_batches" in settings else 225)
    assert log.keys() == {"train/loss", "lr"}


def test_manual_optimization_has_a_curve() -> None:
    task = Regression("manual")
    log = fit(task, batches(12), max_epochs=1)
    assert list(log["train/loss"].values()) == pytest.approx(task.losses)


def test_a_metric_that_the_task_logs_is_logged_once_and_in_short_runs_too() -> None:
    """In a run of 20 steps, Lightning's interval of 50 would log nothing."""
    task = Regression("logs")
    log = fit(task, batches(20), max_epochs=1)
    assert list(log["train/loss"].values()) == pytest.approx(task.losses)
    assert list(log["lr"]) == list(range(1, 21))


def test_a_run_has_fifty_points() -> None:
    assert list(fit(Regression(), batches(16), max_epochs=1)["train/loss"]) == list(range(1, 17))
    assert list(fit(Regression(), batches(200), max_epochs=3)["train/loss"]) == list(range(12, 601, 12))


@pytest.mark.filterwarnings("ignore:You defined a .validation_step.")
def test_the_accuracy_is_that_of_the_samples() -> None:
    """Without training, the points of a curve over an uneven last batch average to the accuracy on the data."""
    g = torch.Generator().manual_seed(0)
    images, labels = torch.randn(25, 1, 8, 8, generator=g), torch.arange(25) % 3
    task = Classifier(MLP((1, 8, 8), 3, norm=NoNorm), optimizer=lambda p: SGD(p, lr=0.0), channels_last=False)
    log = fit(task, DataLoader(TensorDataset(images, labels), batch_size=8), max_epochs=50)
    right = (task.net(images).argmax(1) == labels).float().mean().item()
    assert list(log["train/accuracy"].values()) == pytest.approx([right] * 50)


class Stop(Callback):
    """Ends a run by an error at the start of its second epoch."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 1:
            raise RuntimeError("stop")


def test_a_resumed_run_continues_a_point(tmp_path: Path) -> None:
    """A checkpoint after 7 steps, with a point every 5 steps: the points after it are the same to the bit."""
    settings: dict[str, Any] = {
        "max_epochs": 3,
        "log_every_n_steps": 5,
        "curve": TrainingCurve(points=1),
        "enable_checkpointing": True,
        "default_root_dir": tmp_path,
    }
    whole = fit(Regression(), batches(7), **settings)
    with pytest.raises(RuntimeError, match="stop"):
        fit(Regression(), batches(7), ExactResume(tmp_path, every_minutes=0), Stop(), **settings)
    resumed = fit(
        Regression(), batches(7), ExactResume(tmp_path, every_minutes=0), ckpt_path=tmp_path / "last.ckpt", **settings
    )
    assert list(whole["train/loss"]) == [5, 10, 15, 20, 21]
    assert resumed["train/loss"] == {step: value for step, value in whole["train/loss"].items() if step > 7}


def test_the_newest_point_is_resumed() -> None:
    """HParams and the progress bar read it before a resumed run has a point of its own."""
    curve, resumed = TrainingCurve(), TrainingCurve()
    curve.newest = {"train/loss": 1.5}
    resumed.load_state_dict(curve.state_dict())
    assert resumed.newest == curve.newest
