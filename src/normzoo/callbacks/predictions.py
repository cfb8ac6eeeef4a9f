"""Predictions in a file."""

import csv
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class PredictionsCSV(Callback):
    """Writes what `predict_step` returns, a dictionary of vectors (N,), as a table with one row per sample.

    Args:
        output: the file; with several ranks, each writes its own, with its number before the ending.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.rows = 0

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not isinstance(outputs, dict):
            return
        path = self.output
        if trainer.world_size > 1:
            path = path.with_stem(f"{path.stem}-rank{trainer.global_rank}")
        columns = {name: torch.as_tensor(values).tolist() for name, values in outputs.items()}
        with path.open("a" if self.rows else "w", newline="") as file:
            writer = csv.writer(file)
            if not self.rows:
                writer.writerow(["index", *columns])
            for row in zip(*columns.values(), strict=True):
                writer.writerow([self.rows, *row])
                self.rows += 1
