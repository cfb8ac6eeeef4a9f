"""What the loggers of Lightning receive, read back from their files: the same names, steps and values in each."""

import csv
import gc
import json
import os
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from monitored import Written
from plain_lightning import NETWORKS, Task, monitors, train, verdicts

from normzoo import page
from normzoo.monitoring.overview import BY_LAYER, OVERVIEWS

Curves = dict[str, dict[int, float]]
"""Name -> step -> value."""
SUMMED_UP = {one.tag for one in OVERVIEWS}
GROUPS = {group for group, _, _ in BY_LAYER.values()}


def task() -> Task:
    return Task(NETWORKS["timm-vit"][0]())


def from_csv(logger: Any, folder: Path) -> Curves:
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {name: {int(row["step"]): float(row[name]) for row in rows if row[name]} for name in rows[0]}


def from_wandb(logger: Any, folder: Path) -> Curves:
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    logger.experiment.finish()
    wandb.teardown()  # waits for the process that writes
    curves: Curves = {}
    [file] = folder.rglob("run-*.wandb")
    for data in log_records(file.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for name, value in row.items():
            curves.setdefault(name, {})[row["trainer/global_step"]] = value
    return curves


def log_records(data: bytes) -> Iterator[bytes]:
    """The records of W&B's file, which is one of LevelDB's logs: blocks of 32 KiB, and records in parts."""
    place, whole = 7, b""
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, place)
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # all of a record, or its last part
            yield whole
            whole = b""


def from_mlflow(logger: Any, folder: Path) -> Curves:
    client, run = logger.experiment, logger.run_id
    names = client.get_run(run).data.metrics
    return {name: {one.step: one.value for one in client.get_metric_history(run, name)} for name in names}


def from_tensorboard(logger: Any, folder: Path) -> Curves:
    written = Written(Path(logger.log_dir))
    return {tag: written.scalars(tag) for tag in written.tags["scalars"]}


Make = Callable[[Path], Logger]
LOGGERS: dict[str, tuple[Make, Callable[[Any, Path], Curves]]] = {
    "CSV": (CSVLogger, from_csv),
    "W&B": (lambda folder: WandbLogger(project="norms", save_dir=folder, offline=True), from_wandb),
    "MLflow": (lambda folder: MLFlowLogger("norms", tracking_uri=f"file:{folder}"), from_mlflow),
}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CONSOLE", "off")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # mlflow-skinny has no data base
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "CSV" else pytest.mark.slow) for name in LOGGERS]
)
def test_every_logger_receives_the_overview(name: str, tmp_path: Path, offline: None) -> None:
    """Not the thousands of numbers of all layers, which are in TensorBoard's tables."""
    make, read = LOGGERS[name]
    (tmp_path / "own").mkdir()
    logger, board = make(tmp_path / "own"), TensorBoardLogger(tmp_path / "board")
    train(task, monitors(2), logger=[logger, board], max_epochs=2)
    curves, seen = read(logger, tmp_path / "own"), from_tensorboard(board, tmp_path)
    assert curves.keys() >= seen.keys() > {"train_loss", "val_loss", "1_gradient/log10_first_by_last", "2_shift/val"}
    for tag, values in seen.items():
        assert curves[tag] == pytest.approx(values, rel=1e-6), tag
    ours = {tag for tag in curves if tag in SUMMED_UP or tag.split("/")[0] in GROUPS}
    others = {tag for tag in curves if "/" in tag} - ours - {"trainer/global_step"}
    assert not {tag for tag in others if not tag.startswith("_")}
    assert set(curves["1_gradient/log10_first_by_last"]) == {0, 2, 4, 6}


@pytest.mark.slow
@pytest.mark.parametrize("name", LOGGERS)
def test_a_logger_alone_is_told_apart(name: str, tmp_path: Path, offline: None) -> None:
    """It takes no tables: a warning says what does. `verdicts.json` is where the logger has a folder."""
    make, read = LOGGERS[name]
    logger = make(tmp_path)
    with pytest.warns(UserWarning, match="receives the overview of the monitors only.*add a TensorBoardLogger"):
        train(task, monitors(2), logger=logger)
    assert read(logger, tmp_path)["2_shift/log10_over_time"]
    assert len(list(tmp_path.rglob("verdicts.json"))) == (name == "CSV")


def test_without_arguments_a_trainer_writes_what_the_page_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = train(task, monitors(2), logger=True)
    assert made.log_dir == str(tmp_path / "lightning_logs" / "version_0")
    assert json.loads((Path(made.log_dir) / "verdicts.json").read_text()) == []
    page.report("lightning_logs/version_0", "report.json")
    [run] = json.loads(Path("report.json").read_text())["runs"]
    assert (run["name"], run["norm"], run["steps"], run["finished"]) == ("version_0", "LayerNorm", 4, True)
    assert {"GradientFlow", "CovariateShift"} <= set(run["tables"])
    assert {"train_loss", "val_loss"} <= set(run["scalars"])


def test_without_a_logger_the_newest_numbers_and_the_verdicts_are_in_the_callbacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    watching = monitors(2)
    with pytest.warns(UserWarning, match="has no logger"):
        made = train(task, watching)
    assert all(one.latest for one in watching)
    assert verdicts(made).found == []
    assert not os.listdir(tmp_path)


@pytest.mark.slow
def test_no_file_stays_open(tmp_path: Path) -> None:
    def run(logger: Any) -> set[str]:
        train(task, monitors(2), logger=logger)
        gc.collect()
        return open_files()

    with warnings.catch_warnings(action="ignore"):
        before = run(False)
        assert not {file for file in run([TensorBoardLogger(tmp_path), CSVLogger(tmp_path)]) - before if file}


def open_files() -> set[str]:
    """The regular files that this process has open."""
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return {os.readlink(link) for link in links if os.path.isfile(link)}
