"""Records in each checkpoint how its run was configured."""

import io
import platform
from collections.abc import Mapping
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from normzoo import __version__
from normzoo.runs.checkpoint_io import require_loadable


class Record(Callback):
    """Writes the configuration of the run, its newest metrics, and versions into each checkpoint, under `normzoo`.

    Args:
        config: the configuration, as plain data.

    Raises:
        InputError: before training, if a module has extra state that could not be loaded again.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = dict(config)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name, module in pl_module.named_modules():
            if type(module).get_extra_state is not nn.Module.get_extra_state:
                file = io.BytesIO()
                torch.save(module.get_extra_state(), file)
                file.seek(0)
                require_loadable(file, f"{name}.get_extra_state()")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["normzoo"] = {
            "config": self.config,
            "parameters": sum(parameter.numel() for parameter in pl_module.parameters()),
            "versions": {
                "normzoo": __version__,
                "torch": str(torch.__version__),  # a subclass of str, which torch.load refuses
                "lightning": lightning.__version__,
                "python": platform.python_version(),
            },
            "metrics": {name: float(value) for name, value in sorted(trainer.callback_metrics.items())},
        }
