"""Predictions in a file."""

import csv
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

Columns = dict[str, list[Any]]


class PredictionsCSV(Callback):
    """Writes what `predict_step` returns, a dictionary of vectors (N,), as a table with one row per sample.

    Several ranks write one file: the first rank writes the rows of all when they have ended, batch by batch and in each
    rank by rank, which is the order of the samples in this project's data sets.

    Args:
        output: the file.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.rows = 0
        self.kept: list[Columns] = []

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
        columns = {name: torch.as_tensor(values).tolist() for name, values in outputs.items()}
        if trainer.world_size > 1:
            self.kept.append(columns)
        else:
            self.write([columns])

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size == 1:
            return
        everyone: list[list[Columns]] = [[]] * trainer.world_size
        dist.all_gather_object(everyone, self.kept)
        self.kept = []
        if trainer.is_global_zero:
            steps = max(map(len, everyone))
            self.write([batches[step] for step in range(steps) for batches in everyone if step < len(batches)])

    def write(self, batches: list[Columns]) -> None:
        """Appends the rows of batches; the first time, below the names of the columns."""
        with self.output.open("a" if self.rows else "w", newline="") as file:
            writer = csv.writer(file)
            for columns in batches:
                if not self.rows:
                    writer.writerow(["index", *columns])
                for row in zip(*columns.values(), strict=True):
                    writer.writerow([self.rows, *row])
                    self.rows += 1
