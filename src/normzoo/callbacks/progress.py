"""The progress bar."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar


class ProgressBar(TQDMProgressBar):
    """Lightning's bar, which also shows the newest point of a task's training curve (`curve`, if it has one).

    Args:
        refresh_rate: batches between two updates; 20 cost nothing to notice even at a millisecond per batch.
        leave: leave the bar of each epoch on the screen.
    """

    def __init__(self, refresh_rate: int = 20, leave: bool = False) -> None:
        super().__init__(refresh_rate=refresh_rate, leave=leave)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        curve = getattr(pl_module, "curve", {})
        return {**{name: f"{value:.3g}" for name, value in curve.items()}, **metrics}
