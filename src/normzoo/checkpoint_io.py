"""How a Trainer reads and writes checkpoints: with a checksum in them, and without trust."""

from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO

from normzoo.archive import load_checkpoint
from normzoo.seal import seal


class SafeCheckpointIO(TorchCheckpointIO):
    """Lightning's, but what it writes carries a checksum, and what it reads is checked before it is believed.

    For a Trainer of your own: `Trainer(plugins=[SafeCheckpointIO()])`.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes a checkpoint, sealed."""
        seal(checkpoint)
        super().save_checkpoint(checkpoint, path, storage_options)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads a checkpoint by `normzoo.checkpoints.load_checkpoint`.

        Args:
            path: of a file here; another kind of address is read by Lightning, weights only.
            map_location: has no effect on a file here, whose tensors come to the CPU.
            weights_only: False reads objects too, by running what the file says: for a file that is your own.
        """
        if weights_only is False or "://" in str(path):
            return super().load_checkpoint(path, weights_only=weights_only is not False)
        return load_checkpoint(path)
