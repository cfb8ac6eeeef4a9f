"""`Recalibrate`: beside Lightning's averages of weights, in a resumed run, and with loaders that keep their workers."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging, WeightAveraging
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from normzoo.callbacks import Recalibrate
from normzoo.errors import InputError
from normzoo.surgery import recalibrate

DATA = torch.randn(64, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 2 + 1


class Task(LightningModule):
    """Regression with BatchNorm and dropout; keeps what validation sees."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(64, 1)
        )
        self.seen: list[dict[str, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return (self(batch[0]) - 1).square().mean()

    def validation_step(self, batch: list[Tensor]) -> None:
        self.seen.append(copy.deepcopy(self.net.state_dict()))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.05)


def loader(**settings: Any) -> "DataLoader[Any]":
    return DataLoader(TensorDataset(DATA), 16, shuffle=True, **settings)


def fit(folder: Path, *callbacks: Callback, epochs: int = 3, ckpt_path: str | None = None, **settings: Any) -> Any:
    torch.manual_seed(1)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=list(callbacks),
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=1,
        val_check_interval=2,
    )
    task = Task()
    trainer.fit(task, loader(**settings), DataLoader(TensorDataset(DATA[:16]), 16), ckpt_path=ckpt_path)
    return trainer, task


def assert_exact(state: dict[str, Tensor]) -> None:
    """The running statistics are those of the data under these weights."""
    net = Task().net
    net.load_state_dict(state)
    recalibrate(net, [(DATA,)])
    for key, value in net.state_dict().items():
        if "running" in key:
            assert torch.allclose(state[key], value, rtol=1e-5, atol=1e-5), key


def weights(task: Task) -> list[Tensor]:
    return [p.detach() for p in task.parameters()]


def test_validation_and_the_end_see_exact_statistics_and_the_weights_train_as_without(tmp_path: Path) -> None:
    _, task = fit(tmp_path, Recalibrate())
    for state in task.seen[1:]:
        assert_exact(state)
    assert_exact(task.net.state_dict())
    _, without = fit(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(weights(task), weights(without), strict=True))


def test_each_transfer_hook_runs_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Task, "on_after_batch_transfer", lambda self, batch, index: [2 * batch[0]])
    _, task = fit(tmp_path, Recalibrate())
    net = Task().net
    net.load_state_dict(task.net.state_dict())
    recalibrate(net, [2 * DATA])
    assert torch.allclose(task.net.state_dict()["1.running_mean"], net.state_dict()["1.running_mean"], rtol=1e-5)


@pytest.mark.parametrize(
    "average",
    [WeightAveraging, lambda: EMAWeightAveraging(decay=0.5), lambda: StochasticWeightAveraging(0.05, 1, 1)],
    ids=["WeightAveraging", "EMA", "SWA"],
)
@pytest.mark.filterwarnings("ignore:Swapping scheduler")
def test_averaged_weights_have_their_own_statistics(average: Any, tmp_path: Path) -> None:
    _, task = fit(tmp_path, average(), Recalibrate(batches=None))
    for state in task.seen[1:]:
        assert_exact(state)
    assert_exact(task.net.state_dict())
    with pytest.raises(AssertionError):
        assert_exact(fit(tmp_path, average())[1].net.state_dict())


def test_a_resumed_run_ends_as_one_without_an_interruption(tmp_path: Path) -> None:
    """In a run without dropout and shuffling, whose random numbers Lightning does not save."""
    settings = {"sampler": range(len(DATA))}

    def run(folder: Path, epochs: int, ckpt_path: str | None = None) -> Any:
        trainer = Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            callbacks=[EMAWeightAveraging(decay=0.5), Recalibrate(batches=2)],
            default_root_dir=folder,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        task = Task()
        task.net[3] = nn.Identity()
        data = DataLoader(TensorDataset(DATA), 16, **settings)
        trainer.fit(task, data, DataLoader(TensorDataset(DATA[:16]), 16), ckpt_path=ckpt_path)
        trainer.save_checkpoint(folder / "end.ckpt")
        return task

    whole = run(tmp_path / "whole", 4)
    run(tmp_path / "part", 2)
    last = next((tmp_path / "part" / "checkpoints").glob("*.ckpt"))
    resumed = run(tmp_path / "part", 4, str(last))
    for (key, value), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(value, other), key


@pytest.mark.slow
def test_workers_that_stay_are_not_disturbed(tmp_path: Path) -> None:
    """Validation within an epoch reads the training batches a second time."""
    _, task = fit(tmp_path, Recalibrate(batches=1), num_workers=1, persistent_workers=True)
    _, without = fit(tmp_path, num_workers=1, persistent_workers=True)
    assert all(torch.equal(a, b) for a, b in zip(weights(task), weights(without), strict=True))


def test_refuses_an_order_in_which_it_would_see_other_weights(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="before EMAWeightAveraging"):
        fit(tmp_path, Recalibrate(), EMAWeightAveraging())
    for batches in (0, 1.5):
        with pytest.raises(InputError, match=f"batches={batches}"):
            Recalibrate(batches=batches)  # the point
