"""What callbacks leave behind, read back as TensorBoard and people read it."""

import csv
import random
import re
from pathlib import Path
from typing import Any

import commands
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c as tensorboards_own
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.summary.writer import record_writer
from torch.utils.data import DataLoader

from normzoo import norms
from normzoo.callbacks import HParams, PredictionsCSV, ProgressBar, TrainingCurve
from normzoo.data import Digits
from normzoo.models import MLP
from normzoo.monitoring.lean import masked_crc32c, speed_up_checksums
from normzoo.tasks.classifier import Classifier


def summaries(run: Path) -> dict[str, plugin_data_pb2.HParamsPluginData]:
    """The HParams records of a run."""
    events = EventAccumulator(str(run))
    events.Reload()
    content = events.PluginTagToContent("hparams")
    return {tag: plugin_data_pb2.HParamsPluginData.FromString(value) for tag, value in content.items()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three runs of one experiment that differ in as much as runs can."""
    folder = tmp_path_factory.mktemp("runs")
    short = (*commands.SHORT, f"--runs={folder}")
    return {
        "LayerNorm": commands.fit(*short, "--model.net.norm=LayerNorm"),
        "GroupNorm": commands.fit(
            *short,
            "--model.net.norm=GroupNorm",
            "--model.net.norm.num_groups=4",
            "--model.optimizer=SGD",
            "--model.optimizer.lr=0.5",
            "--model.lr_scheduler=WarmupCosine",
        ),
        "NoNorm": commands.fit(*short, "--model.net=ConvNet", "--model.net.norm=NoNorm", "--model.net.widths=[4]"),
    }


def test_runs_share_the_columns_of_the_hparams_tab(runs: dict[str, Path]) -> None:
    declared, given = {}, {}
    for name, run in runs.items():
        records = summaries(run)
        experiment = records["_hparams_/experiment"].experiment
        declared[name] = (
            {info.name: info.type for info in experiment.hparam_infos},
            [info.name.tag for info in experiment.metric_infos],
        )
        given[name] = records["_hparams_/session_start_info"].session_start_info.hparams
        assert set(given[name]) == set(declared[name][0])
    first = declared["LayerNorm"]
    for other in declared.values():
        assert other == first
    assert {name: values["Norm"].string_value for name, values in given.items()} == {name: name for name in runs}
    assert "num_groups=4" in given["GroupNorm"]["Norm arguments"].string_value
    assert given["GroupNorm"]["lr"].number_value == 0.5
    assert {name: v["Net"].string_value for name, v in given.items()} == {
        "LayerNorm": "MLP",
        "GroupNorm": "MLP",
        "NoNorm": "ConvNet",
    }
    parameters = sum(p.numel() for p in MLP((1, 8, 8), 10, norm=norms.LayerNorm).parameters())
    assert given["LayerNorm"]["parameters"].number_value == parameters


def test_every_metric_of_the_tab_is_a_scalar_of_the_run(runs: dict[str, Path]) -> None:
    for run in runs.values():
        metrics = {info.name.tag for info in summaries(run)["_hparams_/experiment"].experiment.metric_infos}
        logged = set(commands.scalars(run))
        assert metrics <= logged
        assert "hp_metric" not in logged | metrics
        assert logged >= {"train/loss", "train/accuracy", "lr"}


def test_the_tab_needs_no_logger(tmp_path: Path) -> None:
    trainer = Trainer(
        accelerator="cpu", fast_dev_run=True, default_root_dir=tmp_path, callbacks=[HParams({"norm": "none"})]
    )
    trainer.fit(Classifier(MLP((1, 8, 8), 10)), Digits())
    assert not list(tmp_path.iterdir())


def test_the_bar_shows_the_curve_and_no_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    class Bar(ProgressBar):
        def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
            seen.append(super().get_metrics(trainer, pl_module))
            return seen[-1]

    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    task = Classifier(MLP((1, 8, 8), 10))
    curve = TrainingCurve()
    trainer = Trainer(
        accelerator="cpu",
        logger=CSVLogger(tmp_path),  # has a version to show
        enable_checkpointing=False,
        enable_model_summary=False,
        max_epochs=1,
        limit_train_batches=3,
        callbacks=[curve, Bar(per_second=1e9)],
    )
    trainer.fit(task, Digits())
    assert seen[-1].keys() == {
        *("train/loss", "train/accuracy", "lr"),
        *("val/loss", "val/accuracy", "val/calibration_error"),
    }
    assert seen[-1]["train/loss"] == f"{curve.newest['train/loss']:.3g}"
    assert float(seen[-1]["lr"]) == 1e-3


def test_the_bar_moves_a_few_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """With steps of 10 ms and 5 drawings per second, it is drawn every 20 steps."""
    clock = [0.0]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr("normzoo.callbacks.progress.time.perf_counter", lambda: clock[0])
    drawn: list[int] = []

    class Bar(ProgressBar):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
            clock[0] += 0.01
            if self._should_update(args[-1] + 1, 200):
                drawn.append(args[-1] + 1)
            super().on_train_batch_end(trainer, pl_module, *args)

    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        max_steps=200,
        limit_val_batches=0,
        callbacks=[Bar(per_second=5)],
    )
    trainer.fit(Classifier(MLP((1, 8, 8), 10, hidden=[])), Digits(batch_size=6))
    assert drawn == [1, *range(20, 201, 20)]


def bar_of(task: LightningModule, folder: Path, epochs: int = 1) -> None:
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_model_summary=False,
        max_epochs=epochs,
        callbacks=[TrainingCurve(), ProgressBar(per_second=1e9)],
    )
    trainer.fit(task, Digits())


def test_the_bar_shows_a_validation_metric_in_80_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    bar_of(Classifier(MLP((1, 8, 8), 10)), tmp_path, epochs=2)
    drawn = [line[:80] for line in re.split(r"[\r\n]", capsys.readouterr().out) if line.startswith("Epoch 1: ")]
    assert re.search(r"it/s, val/accuracy=0\.\d+, train/loss=\d", drawn[-1]), drawn[-1]


def test_a_log_file_has_a_line_per_epoch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal, no bar is drawn over and over."""
    bar_of(Classifier(MLP((1, 8, 8), 10)), tmp_path, epochs=3)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["epoch 0", "epoch 1", "epoch 2"]
    assert all(re.search(r"val/accuracy 0\.\d+, train/loss \d", line) for line in lines)


def test_the_bar_serves_any_task(tmp_path: Path) -> None:
    trainer = Trainer(accelerator="cpu", fast_dev_run=True, default_root_dir=tmp_path, callbacks=[ProgressBar()])
    trainer.fit(BoringModel())
    assert ProgressBar().get_metrics(trainer, BoringModel()).keys() <= {"loss", "x"}


class Unlabelled(Digits):
    """Images to predict, without labels."""

    def predict_dataloader(self) -> Any:
        return DataLoader(torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(0)), batch_size=4)


def predictions(data: Digits, file: Path, **settings: Any) -> tuple[Classifier, list[dict[str, str]]]:
    torch.manual_seed(0)
    task = Classifier(MLP((1, 8, 8), 10))
    callbacks = [PredictionsCSV(file)]
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    Trainer(**quiet, callbacks=callbacks, **settings).predict(task, data, return_predictions=False)
    with file.open(newline="") as lines:
        return task, list(csv.DictReader(lines))


def test_predictions_are_a_row_per_image_in_order(tmp_path: Path) -> None:
    data = Digits(eval_batch_size=100)  # 360 images: four batches, the last of 60
    task, rows = predictions(data, tmp_path / "predictions.csv")
    _, test = data.read()
    with torch.no_grad():
        probability = task.net.eval()(data.normalize(test.images)).softmax(1)
    assert list(rows[0]) == ["index", "predicted", "probability", "label"]
    assert [int(row["index"]) for row in rows] == list(range(360))
    assert [int(row["label"]) for row in rows] == test.labels.tolist()
    assert [int(row["predicted"]) for row in rows] == probability.argmax(1).tolist()
    assert [float(row["probability"]) for row in rows] == pytest.approx(probability.amax(1).tolist(), rel=1e-4)


def test_predictions_replace_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "predictions.csv"
    file.write_text("old" * 1000)
    _, rows = predictions(Unlabelled(), file)
    assert list(rows[0]) == ["index", "predicted", "probability"]
    assert len(rows) == 10


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 255, 4096, 17_000])
def test_checksums_of_event_files_are_tensorboards(size: int) -> None:
    data = random.Random(size).randbytes(size)
    assert masked_crc32c(data) == tensorboards_own(data)


def test_checksums_are_sped_up_where_they_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_writer, "masked_crc32c", tensorboards_own)
    assert speed_up_checksums()
    assert record_writer.masked_crc32c is masked_crc32c
    monkeypatch.setattr(record_writer, "masked_crc32c", lambda data: 0)  # another version computes something else
    assert not speed_up_checksums()
    monkeypatch.delattr(record_writer, "masked_crc32c")
    assert not speed_up_checksums()
