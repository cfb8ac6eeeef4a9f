"""The HParams tab of TensorBoard."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.tensorboard.summary import hparams

from normzoo.callbacks.training_curve import TrainingCurve
from normzoo.monitoring.event_files import continues_curves, file_writer

Value = bool | int | float | str


class HParams(Callback):
    """Writes a run's hyperparameters, so that TensorBoard's HParams tab compares runs by them.

    It adds the number of parameters and the initial learning rate. The tab takes its columns from one run: runs in one
    folder should have the same keys and metrics.

    Args:
        values: name -> value, flat.
        metrics: tags of the scalars that the tab shows, the newest value of each; None for what the run logs in its
            first epoch and its training curve, and for the test metrics with the names of validation metrics.
    """

    def __init__(self, values: Mapping[str, Value], metrics: Sequence[str] | None = None) -> None:
        self.values = dict(values)
        self.metrics = metrics
        self.is_written = False

    # Metrics have names once they are logged: the record is written at the end of the first epoch, and only once in the
    # files of a run.

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.is_written = self.is_written and continues_curves(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.write(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.write(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"is_written": self.is_written}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.is_written = state_dict["is_written"]

    def write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the record, the first time."""
        if self.is_written:
            return
        self.is_written = True
        values = {**self.values, "parameters": sum(p.numel() for p in pl_module.parameters())}
        if trainer.optimizers:
            group = trainer.optimizers[0].param_groups[0]
            values["lr"] = float(group.get("initial_lr", group["lr"]))  # a schedule has moved "lr"
        metrics = self.metrics if self.metrics is not None else logged(trainer, pl_module)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                # add_hparams, the public way, writes to a run of its own: beside this one, and without its scalars.
                writer = file_writer(logger)
                # The tab reads the metrics' values from the run's scalars, not from this record.
                for proto in hparams(values, dict.fromkeys(metrics, 0.0)):
                    writer.add_summary(proto)


def logged(trainer: Trainer, pl_module: LightningModule) -> list[str]:
    """The names of the metrics of a run, the test metrics first."""
    own = sorted(map(str, trainer.callback_metrics))
    curves = [callback.newest for callback in trainer.callbacks if isinstance(callback, TrainingCurve)]  # type: ignore[attr-defined] # set by Lightning, undeclared
    training = [name for newest in curves for name in newest if name != "lr"]
    tested = is_overridden("test_step", pl_module)
    test = [name.replace("val", "test", 1) for name in own if name.startswith("val") and tested]
    return list(dict.fromkeys([*test, *own, *training]))
