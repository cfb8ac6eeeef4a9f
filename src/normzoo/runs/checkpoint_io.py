"""How a Trainer reads and writes checkpoints: whole or not at all, with a checksum in them, and without trust."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.plugins.io.wrapper import _WrappingCheckpointIO

from normzoo.runs.archive import load_checkpoint
from normzoo.runs.atomic import written_whole
from normzoo.runs.seal import seal

HANDED_OVER = ".temp.ckpt"
"""The file in which Lightning hands the weights of a spawned process to the one that has started it: no checkpoint."""


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints so that a kill at any moment leaves the one before whole, and reads them without trust.

    For a Trainer of your own: `Trainer(plugins=[SafeCheckpointIO()])`. What it writes carries a checksum, and what it
    reads is checked before it is believed. A path that is not local, such as `s3://`, is left to Lightning.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Writes a checkpoint, sealed, in the place of the one before once all of it is on the disk."""
        if Path(path).name == HANDED_OVER:
            super().save_checkpoint(checkpoint, path)
            return
        seal(checkpoint)
        if storage_options is not None or not _is_local_file_protocol(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with written_whole(Path(path)) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads a checkpoint by `normzoo.runs.checkpoints.load_checkpoint`.

        Args:
            path: of a file here; another kind of address is read by Lightning, weights only.
            map_location: has no effect on a file here, whose tensors come to the CPU.
            weights_only: False reads objects too, by running what the file says: for a file that is your own.
        """
        if weights_only is False or not _is_local_file_protocol(path) or Path(path).name == HANDED_OVER:
            return super().load_checkpoint(path, weights_only=weights_only is not False)
        return load_checkpoint(path)


def write_safely(trainer: Trainer) -> None:
    """Has a Trainer read and write by `SafeCheckpointIO` where Lightning would by its own; a given plugin stays.

    A plugin that only decides when to write, such as `AsyncCheckpointIO`, writes by it too.
    """
    chosen = trainer.strategy.checkpoint_io
    if type(chosen) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = SafeCheckpointIO()
    elif isinstance(chosen, _WrappingCheckpointIO) and type(chosen.checkpoint_io) is TorchCheckpointIO:
        chosen._checkpoint_io = SafeCheckpointIO()
