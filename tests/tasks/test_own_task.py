"""A task of one's own on the command line: its curve, its best checkpoint, its predictions and its hyperparameters."""

import csv
import re
from pathlib import Path

import commands
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from normzoo.data import Digits

TASK = '''
import torch
from lightning.pytorch import LightningModule
from torch import nn


class Own(LightningModule):
    """A plain LightningModule: nothing is saved, no monitor is named, predictions are a tensor."""

    def __init__(self, width: int = 8, rate: float = 0.25) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, 10))
        self.rate = rate

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]), batch_size=len(batch[1]))
        self.log("val_rank", 1.5, batch_size=len(batch[1]))

    def predict_step(self, batch, batch_idx):
        return self.net(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.rate)


class Silent(Own):
    """Its predictions go elsewhere."""

    def predict_step(self, batch, batch_idx):
        return None


class Named(Own):
    """Its arguments have the names of the classifier's, and other types."""

    def __init__(self, net: str = "mlp", optimizer: str = "adam", lr_scheduler: int = 3) -> None:
        super().__init__()


class NoPrediction(Own):
    """It has no predict_step; its forward takes images."""

    predict_step = LightningModule.predict_step

    def forward(self, images):
        return self.net(images)


class NoStep(LightningModule):
    """It has nothing to train."""


class Wrong(Own):
    """Its predictions are no table."""

    def predict_step(self, batch, batch_idx):
        return "nothing"
'''


DATA = '''
import torch

from normzoo.data import Digits
from normzoo.data._images import Images


class Wide(Digits):
    """Digits of twice the width."""

    input_shape = (1, 8, 16)

    def read(self):
        return tuple(Images(part.images.repeat(1, 1, 2, 1), part.labels) for part in super().read())
'''


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_task.py").write_text(TASK)
    (folder / "own_data.py").write_text(DATA)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        return folder / commands.fit(
            "--model=own_task.Own", "--model.width=6", *commands.SHORT, "--trainer.max_epochs=2"
        )


@pytest.fixture(autouse=True)
def in_its_folder(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parents[2])
    monkeypatch.syspath_prepend(str(run.parents[2]))


def test_data_that_nobody_names_is_named(run: Path) -> None:
    for flags, is_noted in (((), True), (("--data=Digits",), False), (("--data.val_size=100",), False)):
        result = commands.normzoo("fit", "--model=own_task.Own", *commands.BRIEF, "--monitors=false", *flags)
        assert result.status == 0, result.err
        assert ("no --data is given: it is normzoo.data.Digits" in result.err) == is_noted


def test_a_short_run_has_a_curve(run: Path) -> None:
    logged = commands.scalars(run)
    assert list(logged["train/loss"]) == list(logged["lr"]) == [1, 2, 3, 4, 5, 6]
    assert set(logged["lr"].values()) == {0.25}


def test_the_best_checkpoint_is_that_of_the_least_validation_loss(run: Path) -> None:
    losses = list(commands.scalars(run)["val_loss"].values())
    state = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["callbacks"]["BestByLoss"]
    assert state["monitor"] == "val_loss"
    assert float(state["best_model_score"]) == pytest.approx(min(losses))


def test_hparams_shows_what_the_run_logs_and_its_own_arguments(run: Path) -> None:
    events = EventAccumulator(str(run))
    events.Reload()
    content = {
        tag: plugin_data_pb2.HParamsPluginData.FromString(value)
        for tag, value in events.PluginTagToContent("hparams").items()
    }
    tags = [info.name.tag for info in content["_hparams_/experiment"].experiment.metric_infos]
    assert tags == ["val_loss", "val_rank", "train/loss"]
    values = content["_hparams_/session_start_info"].session_start_info.hparams
    assert (values["width"].number_value, values["rate"].number_value, values["lr"].number_value) == (6, 0.25, 0.25)


def predict(run: Path, task: str, *flags: str) -> commands.Result:
    return commands.normzoo(
        "predict", f"--ckpt_path={run}", *commands.QUIET, f"--model=own_task.{task}", "--model.width=6", *flags
    )


def test_predictions_that_are_a_tensor_are_a_table(run: Path, tmp_path: Path) -> None:
    """A tensor (N, K) has K columns."""
    result = predict(run, "Own", f"--output={tmp_path / 'it.csv'}")
    assert result.status == 0, result.err
    assert f"predictions  {tmp_path / 'it.csv'}" in result.out
    with (tmp_path / "it.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["index", *(f"prediction_{i}" for i in range(10))]
    assert len(rows) == 1 + len(Digits().read()[1])


@pytest.mark.filterwarnings("ignore:predict returned None")
def test_no_predictions_are_announced_where_there_are_none(run: Path, tmp_path: Path) -> None:
    result = predict(run, "Silent", f"--output={tmp_path / 'it.csv'}")
    assert result.status == 0, result.err
    assert "predictions" not in result.out
    assert not (tmp_path / "it.csv").exists()


def test_predictions_that_are_no_table_are_refused(run: Path, tmp_path: Path) -> None:
    result = predict(run, "Wrong", f"--output={tmp_path / 'it.csv'}")
    assert result.status == 1
    assert re.search(r"predict_step returned a str; .*\(N,\) or \(N, K\).*None", result.err)


def test_a_checkpoint_of_it_says_what_it_is(run: Path) -> None:
    for flags in ((), ("--allow=own_task",)):
        result = commands.normzoo("checkpoint", str(run), *flags)
        assert result.status == 0, result.err
        for line in ("task +own_task.Own", "arguments +width=6, rate=0.25", "rate +0.25"):
            assert re.search(f"^{line}", result.out, re.MULTILINE), (line, result.out)
        assert "trained in Python" not in result.out


def test_arguments_may_have_the_names_of_the_classifiers(run: Path) -> None:
    named = commands.fit("--model=own_task.Named", *commands.SHORT, "--model.optimizer=sgd", "--experiment=named")
    assert "optimizer: sgd" in (named / "config.yaml").read_text()


def test_a_task_without_predictions_is_refused(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "it.csv"
    flags = ("--model=own_task.NoPrediction", "--model.width=6", f"--ckpt_path={run}", f"--output={file}")
    result = commands.normzoo("predict", *commands.QUIET, *flags, "--allow=own_task")
    assert result.status == 1
    assert "NoPrediction has no predict_step" in result.err
    assert not file.exists()


@pytest.mark.parametrize("model", ["NoStep", "Wrong"])
def test_an_error_before_training_is_one_message(model: str, run: Path) -> None:
    """With the progress bar, which hears of every error."""
    command = ("fit",) if model == "NoStep" else ("predict", f"--ckpt_path={run}", "--allow=own_task")
    result = commands.normzoo(*command, f"--model=own_task.{model}", "--trainer.accelerator=cpu", *commands.SHORT)
    assert result.status == 1
    assert result.err.count("error: ") == 1
    assert "in_terminal" not in result.err


def test_a_checkpoint_of_other_images_says_that_the_data_differ(run: Path) -> None:
    classifier = commands.fit(*commands.SHORT, "--experiment=digits")
    result = commands.normzoo(
        *("test", *commands.QUIET, f"--ckpt_path={classifier}", "--data=own_data.Wide", "--allow=own_data")
    )
    assert result.status == 1
    assert "data: checkpoint has normzoo.data.Digits, asked for own_data.Wide" in result.err
    assert "Give a data set with images and classes as those of the run" in result.err


def test_a_step_that_was_saved_is_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = commands.normzoo(
        "fit", *commands.QUIET, *commands.SHORT, "--model.optimizer=SGD", "--model.optimizer.lr=1e30"
    )
    assert result.status == 1
    [step] = Path().glob("lightning_logs/default/000-*/bad/*")
    refused = commands.normzoo("resume", str(step))
    assert refused.status == 1
    assert f"repeat it by 'normzoo replay {step}'" in refused.err
    assert str(step) not in commands.normzoo("resume", "nowhere").err
    assert str(step) not in commands.normzoo("test", "--ckpt_path=nowhere").err
