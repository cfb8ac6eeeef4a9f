"""TensorBoard's event files of a run: how far a checkpoint goes in them, and how to cut them back to it."""

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

Sizes = dict[str, int]
"""Name of a file -> its bytes."""


def event_loggers(trainer: Trainer) -> list[TensorBoardLogger]:
    """The loggers of a Trainer that write for TensorBoard."""
    return [one for one in trainer.loggers if isinstance(one, TensorBoardLogger)]


def file_writer(logger: TensorBoardLogger) -> Any:
    """The writer of records, for which torch's SummaryWriter has no public name; it opens a new file after close()."""
    return logger.experiment._get_file_writer()


def event_files(logger: TensorBoardLogger) -> list[Path]:
    """All event files in a logger's folder, of this process and of those before it."""
    return sorted(Path(logger.log_dir).glob("*tfevents*"))


def continues_curves(trainer: Trainer) -> bool:
    """Whether a Trainer continues the curves that its checkpoint comes from: on the first process.

    A run that starts from another run's checkpoint, in a folder of its own, does not.
    """
    if not trainer.ckpt_path or not trainer.is_global_zero:
        return False
    return any(len(event_files(logger)) > 1 for logger in event_loggers(trainer))  # more than the one just opened


def file_sizes(logger: TensorBoardLogger, before: Mapping[str, int]) -> Sizes:
    """The files of a logger and their sizes, once all is on the disk.

    Args:
        logger: the logger.
        before: what this function returned last time; empty at first.

    Raises:
        OSError: TensorBoard's writer thread could not write, or a file was deleted meanwhile: curves are lost.
    """
    logger.experiment.flush()
    sizes = {file.name: file.stat().st_size for file in event_files(logger)}
    for name, size in before.items():
        if sizes.get(name, 0) < size:
            file = Path(logger.log_dir, name)
            raise FileNotFoundError(errno.ENOENT, "it was deleted during the run", str(file))
    return sizes


def truncate_events(logger: TensorBoardLogger, sizes: Mapping[str, int], step: int) -> None:
    """Cuts the files back to their sizes at a checkpoint, so that a resumed run writes no step twice.

    Does nothing if none of the files is there: the run continues in another folder. The folder may have been moved.

    Args:
        logger: writes to a new file.
        sizes: what `file_sizes` returned when the checkpoint was made.
        step: of the checkpoint.
    """
    writer = logger.experiment.file_writer
    new = Path(writer.event_writer._file_name).name  # the writer's file has no public name
    files = {file.name: file for file in event_files(logger) if file.name != new}
    if not files.keys() & sizes.keys():
        return
    for name in sizes.keys() - files.keys():
        rank_zero_warn(f"{logger.log_dir}: the file {name} is missing, and with it a part of the curves.")
    for name, file in files.items():
        if name not in sizes:
            file.unlink()
        elif file.stat().st_size > sizes[name]:
            os.truncate(file, sizes[name])
    # Tells a TensorBoard that is running to forget what it has read after the checkpoint.
    writer.add_event(Event(session_log=SessionLog(status=SessionLog.START)), step + 1)
