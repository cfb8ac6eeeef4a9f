"""TensorBoard's files of a run: how far a checkpoint goes in them, and how they are taken back to it."""

import os
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

Sizes = dict[str, int]
"""Name of a file -> its bytes."""


def event_loggers(trainer: Trainer) -> list[TensorBoardLogger]:
    """The loggers of a Trainer that write for TensorBoard."""
    return [one for one in trainer.loggers if isinstance(one, TensorBoardLogger)]


def event_files(logger: TensorBoardLogger) -> list[Path]:
    """All that lie in a logger's folder, of this process and of those before it."""
    return sorted(Path(logger.log_dir).glob("*tfevents*"))


def own_file(logger: TensorBoardLogger) -> str:
    """The name of the one that this process writes; by its first process."""
    return Path(logger.experiment._get_file_writer().event_writer._file_name).name


def goes_on(trainer: Trainer) -> bool:
    """Whether a Trainer continues the curves that its checkpoint comes from: by its first process.

    A run that starts from another's checkpoint, in a folder of its own, does not.
    """
    if not trainer.ckpt_path or not trainer.is_global_zero:
        return False
    return any(file.name != own_file(logger) for logger in event_loggers(trainer) for file in event_files(logger))


def written(logger: TensorBoardLogger) -> Sizes:
    """The files of a logger and their sizes, once all is on the disk."""
    logger.experiment.flush()
    return {file.name: file.stat().st_size for file in event_files(logger)}


def take_back(logger: TensorBoardLogger, sizes: Sizes, step: int) -> None:
    """Takes the files back to what they were, so that what is written again stands there once.

    Nothing happens where there is none of the files: the run goes on in another folder. A folder that was moved or
    copied is as good as the old one.

    Args:
        logger: writes to a new file.
        sizes: what `written` said when the checkpoint was made.
        step: of the checkpoint.
    """
    files = {file.name: file for file in event_files(logger) if file.name != own_file(logger)}
    if not files.keys() & sizes.keys():
        return
    for name in sizes.keys() - files.keys():
        rank_zero_warn(f"{logger.log_dir}: the file {name} is not there any more, and with it a part of the curves.")
    for name, file in files.items():
        if name not in sizes:
            file.unlink()
        elif file.stat().st_size > sizes[name]:
            os.truncate(file, sizes[name])
    # For a TensorBoard that is running and has read what is gone: it forgets what comes after the checkpoint.
    start = Event(session_log=SessionLog(status=SessionLog.START))
    logger.experiment._get_file_writer().add_event(start, step + 1)
