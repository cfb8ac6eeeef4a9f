"""What a checkpoint says of the run that wrote it."""

import platform
from collections.abc import Mapping
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from normzoo import __version__


class Record(Callback):
    """Writes into every checkpoint, under `normzoo`, the configuration of its run, its newest metrics, and versions.

    Args:
        config: the configuration, plain data.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = dict(config)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["normzoo"] = {
            "config": self.config,
            "parameters": sum(parameter.numel() for parameter in pl_module.parameters()),
            "versions": {
                "normzoo": __version__,
                "torch": str(torch.__version__),  # torch's own is a class of its own
                "lightning": lightning.__version__,
                "python": platform.python_version(),
            },
            "metrics": {name: float(value) for name, value in sorted(trainer.callback_metrics.items())},
        }
