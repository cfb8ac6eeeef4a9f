"""Loggers of one's own in a resumed run: they continue in the folder and the file that they wrote before."""

import csv
import json
import warnings
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from normzoo.runs.folders import is_first, newest_checkpoint

VERSIONS = "loggers.json"
"""A file of a run: the versions that its loggers chose by themselves, in their order."""


def save_versions(trainer: Trainer, run: Path) -> None:
    """Writes the versions, if there are any."""
    versions = [one.version if isinstance(one, TensorBoardLogger | CSVLogger) else None for one in trainer.loggers]
    if any(isinstance(version, int) for version in versions):
        (run / VERSIONS).write_text(json.dumps(versions))


def continue_curves(trainer: Trainer, run: Path) -> None:
    """Prepares the loggers of a resumed run, before they open a file; without a checkpoint, the run begins anew."""
    if newest_checkpoint(run) is None:
        for file in run.glob("*tfevents*") if is_first() else ():
            file.unlink()
        return
    warnings.filterwarnings("ignore", "Experiment logs directory .* exists and is not empty")  # its rows are restored
    file = run / VERSIONS
    versions = json.loads(file.read_text()) if file.is_file() else []
    for logger, version in zip(trainer.loggers, versions, strict=False):
        if isinstance(logger, TensorBoardLogger | CSVLogger) and isinstance(version, int):
            set_version(logger, version)


def set_version(logger: TensorBoardLogger | CSVLogger, version: int | str) -> None:
    """Sets the version of a logger that has not opened its files yet."""
    logger._version = version  # Lightning has no public way once a logger is built


def csv_loggers(trainer: Trainer) -> list[CSVLogger]:
    """The loggers of a Trainer that write a CSV file."""
    return [one for one in trainer.loggers if isinstance(one, CSVLogger)]


def csv_text(logger: CSVLogger) -> str:
    """All that a logger has written so far."""
    logger.save()
    file = Path(logger.experiment.metrics_file_path)
    return file.read_bytes().decode() if file.is_file() else ""


def restore_csv(logger: CSVLogger, text: str) -> None:
    """Gives a logger, whose file Lightning deletes when it opens one, what it had written at a checkpoint."""
    writer = logger.experiment
    if text:
        Path(writer.metrics_file_path).write_bytes(text.encode())
        writer.metrics_keys = next(csv.reader([text.splitlines()[0]]))
