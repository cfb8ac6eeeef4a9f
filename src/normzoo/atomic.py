"""Files that are whole or not there: whatever kills the process, the file that stood there before is kept."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.plugins.io.wrapper import _WrappingCheckpointIO

PART = ".part"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints so that a kill at any moment leaves the one before whole: `plugins=[AtomicCheckpointIO()]`.

    Reading is Lightning's own; so is writing to a path that is not local, such as `s3://`.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        if storage_options is not None or not _is_local_file_protocol(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with written_whole(Path(path)) as file:
            torch.save(checkpoint, file)


def write_atomically(trainer: Trainer) -> None:
    """Has a Trainer write by `AtomicCheckpointIO` where Lightning would by its own; a plugin of the user's stays.

    A plugin that only decides when to write, such as `AsyncCheckpointIO`, writes by it too.
    """
    chosen = trainer.strategy.checkpoint_io
    if type(chosen) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
    elif isinstance(chosen, _WrappingCheckpointIO) and type(chosen.checkpoint_io) is TorchCheckpointIO:
        chosen._checkpoint_io = AtomicCheckpointIO()


@contextmanager
def written_whole(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, which takes the place of `path` once all of it is on the disk.

    Args:
        path: where it will stand; its folder is made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot
            os.fsync(folder)  # the name too
    finally:
        os.close(folder)


def remove_parts(folder: Path) -> None:
    """Removes what a killed process has left of files that it was writing."""
    for part in folder.glob(f".*{PART}"):
        part.unlink(missing_ok=True)
