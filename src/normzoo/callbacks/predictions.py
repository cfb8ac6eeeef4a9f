"""Predictions in a file."""

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from normzoo.errors import InputError

Columns = dict[str, list[Any]]


class PredictionsCSV(Callback):
    """Writes what `predict_step` returns as a table with one row per sample.

    `predict_step` returns a tensor (N,) or (N, K), or a dictionary or sequence of them: one column for each (N,), and K
    columns for each (N, K). If it returns None, there is no file.

    With several ranks, the first rank writes the rows of all at the end, batch by batch and in each batch rank by rank,
    which is the order of the samples in `normzoo.data`.

    Args:
        output: the file.

    Attributes:
        rows: the number of rows written.

    Raises:
        InputError: while predicting, if `predict_step` returns anything else.
    """

    def __init__(self, output: str | Path) -> None:
        self.output = Path(output)
        self.rows = 0
        self.kept: list[Columns] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.rows, self.kept = 0, []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if outputs is None:
            return
        columns = table(outputs)
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


def table(outputs: Any) -> Columns:
    """The columns of a batch of predictions, all of one length.

    >>> table(torch.tensor([[1, 2], [3, 4]]))
    {'prediction_0': [1, 3], 'prediction_1': [2, 4]}
    """
    if isinstance(outputs, list | tuple):
        outputs = {f"prediction_{i}": values for i, values in enumerate(outputs)}
    named = outputs if isinstance(outputs, Mapping) else {"prediction": outputs}
    columns = {name: values for key, value in named.items() for name, values in split(str(key), value)}
    if len({len(values) for values in columns.values()}) != 1:
        raise InputError(refusal({name: f"{len(values)} rows" for name, values in columns.items()}))
    return columns


def split(name: str, values: Any) -> Iterator[tuple[str, list[Any]]]:
    """The columns of one value."""
    try:
        tensor = values.detach() if isinstance(values, Tensor) else torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(refusal(f"a {type(values).__name__}")) from error
    if tensor.ndim == 1:
        yield name, tensor.tolist()
    elif tensor.ndim == 2:
        yield from ((f"{name}_{i}", column.tolist()) for i, column in enumerate(tensor.unbind(1)))
    else:
        raise InputError(refusal(f"a tensor {tuple(tensor.shape)}"))


def refusal(found: Any) -> str:
    """The message for predictions that are no table."""
    return (
        f"predict_step returned {found}; a table of predictions takes a tensor (N,) or (N, K), or a dictionary of them "
        f"with one N. Return that, or None to write no file."
    )
