"""The progress bar."""

import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from normzoo.callbacks.training_curve import TrainingCurve


class ProgressBar(TQDMProgressBar):
    """Lightning's progress bar in 80 columns: first a validation metric, then the newest point of `TrainingCurve`.

    It is redrawn a few times per second, however fast the steps are: drawing it costs as much as a step of a small
    network. If the standard output is no terminal, such as a log file, it prints one line per epoch instead.

    Args:
        per_second: how often the bar is redrawn while training.
        leave: keep the bar of each epoch on the screen.
    """

    BAR_FORMAT = "{l_bar}{bar:6}| {remaining}, {rate_noinv_fmt}{postfix}"

    def __init__(self, per_second: float = 4.0, leave: bool = False) -> None:
        super().__init__(refresh_rate=1, leave=leave)
        self.per_second = per_second
        self.batches = 1
        self.last_drawn = (0, 0.0)
        self.in_terminal = False

    @property
    def refresh_rate(self) -> int:
        """Batches between two drawings."""
        return self.batches

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.in_terminal = sys.stdout.isatty()
        if not self.in_terminal:
            self.disable()

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        super().on_train_epoch_start(trainer, *args)
        self.last_drawn = (trainer.fit_loop.epoch_loop.batch_progress.current.ready, time.perf_counter())

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *args)
        done = args[-1] + 1
        if done % self.batches == 0:
            before, then = self.last_drawn
            now = time.perf_counter()
            self.batches = max(1, round((done - before) / (now - then) / self.per_second))
            self.last_drawn = (done, now)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if not self.in_terminal and trainer.is_global_zero:
            metrics = self.get_metrics(trainer, pl_module).items()
            values = (f"{name} {value if isinstance(value, str) else f'{value:.3g}'}" for name, value in metrics)
            sys.stdout.write(f"epoch {trainer.current_epoch}: {', '.join(values)}\n")
            sys.stdout.flush()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Ends the line of the bar, so that the error message starts on its own."""
        if self.in_terminal:
            sys.stdout.write("\n")

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        for callback in trainer.callbacks:  # type: ignore[attr-defined] # set by Lightning, undeclared
            if isinstance(callback, TrainingCurve):
                metrics = {**{name: f"{value:.3g}" for name, value in callback.newest.items()}, **metrics}
        best_by = getattr(pl_module, "monitor", None) or next((name for name in metrics if "val" in name), None)
        return {best_by: metrics[best_by], **metrics} if best_by in metrics else metrics
