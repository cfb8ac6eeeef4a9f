"""The HParams tab of TensorBoard."""

from collections.abc import Mapping, Sequence

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import hparams

from normzoo.monitoring.event_files import goes_on

Value = bool | int | float | str


class HParams(Callback):
    """Writes a run's hyperparameters such that runs can be compared in TensorBoard's HParams tab.

    The tab takes its columns from one run's declaration: give every run the same keys and the same metrics.

    Args:
        values: name -> value, flat.
        metrics: tags of scalars that the run logs; the tab shows the newest value of each.
    """

    def __init__(
        self,
        values: Mapping[str, Value],
        metrics: Sequence[str] = (
            "test/accuracy",
            "test/loss",
            "test/calibration_error",
            "val/accuracy",
            "val/loss",
            "val/calibration_error",
            "train/loss",
        ),
    ) -> None:
        self.values = dict(values)
        self.metrics = tuple(metrics)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if goes_on(trainer):  # they stand in the run's first file, and TensorBoard reads the first ones
            return
        parameters = sum(p.numel() for p in pl_module.parameters())
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                writer = logger.experiment._get_file_writer()
                # The metric values of this declaration are names only: the tab reads the run's own scalars.
                for proto in hparams({**self.values, "parameters": parameters}, dict.fromkeys(self.metrics, 0.0)):
                    writer.add_summary(proto)
