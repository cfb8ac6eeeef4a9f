"""The progress bar."""

import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar


class ProgressBar(TQDMProgressBar):
    """Lightning's bar, which also shows the newest point of a task's training curve (`curve`, if it has one).

    It moves a few times a second, however fast the steps are: drawing it costs as much as a step of a small network.

    Args:
        per_second: how often the bar moves while training.
        leave: leave the bar of each epoch on the screen.
    """

    def __init__(self, per_second: float = 4.0, leave: bool = False) -> None:
        super().__init__(refresh_rate=1, leave=leave)
        self.per_second = per_second
        self.batches = 1
        self.drawn_at = (0, 0.0)

    @property
    def refresh_rate(self) -> int:
        """Batches between two drawings."""
        return self.batches

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        super().on_train_epoch_start(trainer, *args)
        self.drawn_at = (0, time.perf_counter())

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *args)
        done = args[-1] + 1
        if done % self.batches == 0:
            before, then = self.drawn_at
            now = time.perf_counter()
            self.batches = max(1, round((done - before) / (now - then) / self.per_second))
            self.drawn_at = (done, now)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leaves the line of the bar, so that the message has one of its own."""
        sys.stdout.write("\n")

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        curve = getattr(pl_module, "curve", {})
        return {**{name: f"{value:.3g}" for name, value in curve.items()}, **metrics}
