"""Runs with monitors, as the tests of monitors make them: small, seeded, and read back from their event files."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.optim import SGD

from normzoo import callbacks
from normzoo.callbacks import (
    ActivationPercentiles,
    CovariateShift,
    GradientFlow,
    InternalCovariateShift,
    LossLandscape,
    RunningStatistics,
)
from normzoo.data import Digits
from normzoo.models import MLP
from normzoo.monitoring.monitor import Monitor
from normzoo.tasks.classifier import Classifier

MONITORS: dict[str, type[Monitor]] = {one.__name__: one for one in callbacks.MONITORS}
QUIET = {
    "accelerator": "cpu",
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


def suite(every: int = 5) -> list[Monitor]:
    """All of them, with few steps along the gradient."""
    return [
        RunningStatistics(every),
        CovariateShift(every),
        GradientFlow(every),
        ActivationPercentiles(every),
        InternalCovariateShift(every + 2),
        LossLandscape(every + 4, steps=(0.05, 0.4)),
    ]


def classifier(net: nn.Module | None = None, lr: float = 0.1, **settings: Any) -> Classifier:
    torch.manual_seed(0)
    net = net or MLP((1, 8, 8), 10, hidden=(12, 10))
    return Classifier(net, optimizer=partial(SGD, lr=lr, momentum=0.9), num_classes=10, **settings)


def fit(
    task: pl.LightningModule,
    callbacks: Sequence[pl.Callback],
    folder: Path | None = None,
    data: pl.LightningDataModule | None = None,
    resumed: Mapping[str, Any] | None = None,
    **settings: Any,
) -> pl.Trainer:
    """Trains, by default 12 steps on Digits without validation, and returns the trainer."""
    logger = TensorBoardLogger(folder, name="", version="run") if folder else False
    options = {"max_steps": 12, "limit_val_batches": 0, "logger": logger, **QUIET, **settings}
    trainer = pl.Trainer(callbacks=list(callbacks), **options)
    trainer.fit(task, data or Digits(batch_size=32, shuffle_seed=0), **(resumed or {}))
    return trainer


class Written:
    """What a run's event files hold, as TensorBoard reads them."""

    def __init__(self, run: Path) -> None:
        self.events = EventAccumulator(
            str(run), size_guidance=dict.fromkeys(("scalars", "tensors", "images", "histograms"), 0)
        )
        self.events.Reload()
        self.tags: dict[str, list[str]] = self.events.Tags()  # type: ignore[assignment]

    def scalars(self, tag: str) -> dict[int, float]:
        """Step -> value, of a scalar, or of a metric and a layer in a table."""
        if tag in self.tags["scalars"]:
            return {event.step: event.value for event in self.events.Scalars(tag)}
        names = tag.split("/", 1)
        for table in (one for one in self.tags["tensors"] if one.startswith("normalization/")):
            known = self.described(table)
            for metric, layer in (names, names[::-1]):
                if metric in known.get("metrics", ()) and layer in known["layers"]:
                    place = known["layers"].index(layer), known["metrics"].index(metric)
                    found = {step: values[place].item() for step, values in self.tables(table).items()}
                    return {step: value for step, value in found.items() if value == value}
        raise KeyError(tag)

    def values(self) -> dict[str, Tensor]:
        """Metric -> all of its values in tables."""
        found: dict[str, list[Tensor]] = {}
        for monitor in self.monitors():
            for table in self.tables(f"normalization/{monitor}").values():
                for metric, column in zip(self.described(f"normalization/{monitor}")["metrics"], table.T, strict=True):
                    found.setdefault(metric, []).append(column[~column.isnan()])
        flat = {metric: torch.cat(columns) for metric, columns in found.items()}
        return {metric: values for metric, values in flat.items() if len(values)}

    def monitors(self) -> list[str]:
        """Those that have written a table."""
        return [name for name in MONITORS if f"normalization/{name}" in self.tags["tensors"]]

    def described(self, tag: str) -> dict[str, Any]:
        """What stands beside a table's first record."""
        metadata = self.events.SummaryMetadata(tag)
        assert metadata.plugin_data.plugin_name == "normalization"
        return json.loads(metadata.plugin_data.content or b"{}")  # type: ignore[no-any-return]

    def tables(self, tag: str) -> dict[int, Tensor]:
        """Step -> table; of several records of a step, the last value that is one."""
        found: dict[int, Tensor] = {}
        for event in self.events.Tensors(tag):
            shape = [dim.size for dim in event.tensor_proto.tensor_shape.dim]
            values = np.frombuffer(event.tensor_proto.tensor_content, dtype=np.float32)
            table = torch.from_numpy(values.copy()).view(shape)
            before = found.get(event.step, table)
            found[event.step] = torch.where(table.isnan(), before, table)
        return found


def written(folder: Path) -> Written:
    return Written(folder / "run")


def hooks(model: nn.Module) -> int:
    """How many hooks there are on a model's modules."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
