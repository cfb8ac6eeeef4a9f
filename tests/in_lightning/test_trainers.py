"""What people do with Trainers and callbacks: fit twice, use them again, tune, test the best checkpoint."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateFinder, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.tuner.tuning import Tuner
from monitored import Written
from plain_lightning import NETWORKS, Task, images, monitors, train, trainer
from torch import Tensor

from normzoo.callbacks import ExactResume, FiniteLoss, PredictionsCSV
from normzoo.errors import InputError
from normzoo.runs import SafeCheckpointIO

pytestmark = pytest.mark.filterwarnings("ignore:The Trainer has no logger")


def task() -> Task:
    return Task(NETWORKS["timm-vit"][0]())


def board(folder: Path, version: str = "run") -> TensorBoardLogger:
    return TensorBoardLogger(folder, name="", version=version)


@pytest.mark.slow
def test_a_trainer_that_fits_twice_continues_its_curves(tmp_path: Path) -> None:
    made = train(task, monitors(2), logger=board(tmp_path))
    made.fit_loop.max_epochs = 2
    made.fit(made.lightning_module, images(), images(16))
    steps = list(Written(tmp_path / "run").scalars("flow_norm/net.head"))
    assert steps == [0, 2, 4, 6]


@pytest.mark.slow
def test_callbacks_of_one_trainer_start_anew_in_the_next(tmp_path: Path) -> None:
    again = monitors(2)
    for version, network in enumerate(["timm-vit", "timm-resnet"]):
        train(lambda name=network: Task(NETWORKS[name][0]()), again, logger=board(tmp_path, str(version)))
    train(lambda: Task(NETWORKS["timm-resnet"][0]()), monitors(2), logger=board(tmp_path, "new"))
    used, new = (Written(tmp_path / version) for version in ("1", "new"))
    assert used.tags["scalars"] == new.tags["scalars"]
    assert all(torch.equal(values, new.values()[metric]) for metric, values in used.values().items())


@pytest.mark.slow
def test_tuning_is_not_watched_and_finds_the_same(tmp_path: Path) -> None:
    found = []
    for watching in ([], monitors(1)):
        torch.manual_seed(0)
        made, module = trainer(watching, logger=board(tmp_path, str(len(watching))), default_root_dir=tmp_path), task()
        found.append(Tuner(made).lr_find(module, images(), images(16), num_training=12).results)
        made.fit(module, images(), images(16))
    assert found[0] == found[1]
    assert list(Written(tmp_path / "6").scalars("flow_norm/net.head")) == [0, 1, 2, 3]
    train(task, [*monitors(1), LearningRateFinder(num_training_steps=12)], logger=board(tmp_path, "callback"))
    assert list(Written(tmp_path / "callback").scalars("flow_norm/net.head")) == [0, 1, 2, 3]


class OfAnySize(pl.LightningDataModule):
    batch_size = 2

    def train_dataloader(self) -> Any:
        return images(batch_size=self.batch_size)

    def val_dataloader(self) -> Any:
        return images(16)


@pytest.mark.slow
def test_the_largest_batch_is_searched_for_without_monitors(tmp_path: Path) -> None:
    made = trainer(monitors(1), logger=board(tmp_path), default_root_dir=tmp_path)
    module, data = task(), OfAnySize()
    assert Tuner(made).scale_batch_size(module, datamodule=data, max_trials=2, steps_per_trial=1) == 4
    made.fit(module, data)
    assert list(Written(tmp_path / "run").scalars("flow_norm/net.head")) == list(range(8))


@pytest.mark.slow
def test_validating_and_testing_alone_writes_nothing_of_monitors(tmp_path: Path) -> None:
    made, module = trainer(monitors(1), logger=board(tmp_path)), task()
    made.validate(module, images(16), verbose=False)
    made.test(module, images(16), verbose=False)
    written = Written(tmp_path / "run")
    assert not written.monitors()
    assert set(written.tags["scalars"]) == {"epoch", "test_loss", "val_loss"}


@pytest.mark.parametrize("last", [False, True], ids=["ExactResume first", "ExactResume last"])
@pytest.mark.filterwarnings("ignore:.*Trainer configured with multiple `ModelCheckpoint` callbacks")
def test_the_best_checkpoint_is_found_beside_that_of_exact_resume(last: bool, tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path, monitor="val_loss", filename="best")
    both = [best, ExactResume(tmp_path)] if last else [ExactResume(tmp_path), best]
    settings = {"enable_checkpointing": True, "plugins": [SafeCheckpointIO()], "max_epochs": 2}
    made = train(task, [*both, PredictionsCSV(str(tmp_path / "rows.csv"))], **settings)
    assert best.best_model_path == str(tmp_path / "best.ckpt")
    made.test(dataloaders=images(16), ckpt_path="best", verbose=False, weights_only=True)
    made.predict(dataloaders=images(16), ckpt_path="best", weights_only=True)
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 17


class Bad(Task):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * torch.nan if batch_idx == 2 else loss


@pytest.mark.parametrize("logger", [CSVLogger, None])
def test_what_finite_loss_advises_works_in_python(logger: Any, tmp_path: Path) -> None:
    """No command of ours, as there is no config to run it with."""
    settings = {"logger": logger(tmp_path) if logger else False, "default_root_dir": tmp_path}
    with pytest.raises(InputError, match="step 2: the loss is nan") as raised:
        train(lambda: Bad(NETWORKS["timm-vit"][0]()), [FiniteLoss()], **settings)
    assert "normzoo replay" not in str(raised.value)
    [file] = tmp_path.rglob("rank0.pt")
    assert f"torch.load('{file}', weights_only=True)['batch']" in str(raised.value)
    assert torch.load(file, weights_only=True)["batch"][0].shape == (8, 3, 32, 32)
    trainer([FiniteLoss()], limit_train_batches=2).fit(
        task(), images(), images(16), ckpt_path=file.parent / "checkpoints" / "last.ckpt", weights_only=True
    )
