"""A cell of a grid that has ended, and what its files say."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from normzoo.compare.grid import FILE, Grid
from normzoo.page.event_log import PLUGIN, EventLog
from normzoo.runs.folders import CHECKPOINTS
from normzoo.runs.state import State, state_of


@dataclass(frozen=True)
class Run:
    """A cell of a grid.

    Args:
        folder: of the run.
        cell: its settings.
    """

    folder: Path
    cell: dict[str, Any]

    @property
    def norm(self) -> str:
        """The class of the norm."""
        return str(self.cell["norm"]).partition("(")[0]

    @property
    def seed(self) -> int:
        """The seed."""
        return int(self.cell["seed"])

    @property
    def has_ended(self) -> bool:
        """Whether the run has a result: it finished, or its loss became NaN or infinite."""
        return state_of(self.folder) in (State.FINISHED, State.DIVERGED)

    @property
    def checkpoint(self) -> Path:
        """The best checkpoint."""
        return self.folder / CHECKPOINTS / "best.ckpt"

    @cached_property
    def log(self) -> EventLog:
        """The event files."""
        log = EventLog(self.folder)
        log.update()
        return log

    @property
    def accuracy(self) -> float:
        """The test accuracy, in percent; 0 if the run diverged."""
        if state_of(self.folder) == State.DIVERGED:
            return 0.0
        return 100 * max(self.log.scalars.get("test/accuracy", {}).values(), default=math.nan)

    def steps_to(self, accuracy: float) -> int:
        """The optimizer steps until the validation accuracy reaches a value; all steps if it never does."""
        curve = sorted(self.log.scalars.get("val/accuracy", {}).items())
        reached = np.float32(accuracy)  # as event files hold it
        return 1 + next((step for step, value in curve if value >= reached), self.log.last_step - 1)

    def table(self, monitor: str, metric: str) -> "np.ndarray[Any, np.dtype[np.float32]]":
        """The values of a monitor's metric, (steps, rows); one NaN if there is none."""
        series = self.log.series.get(f"{PLUGIN}/{monitor}")
        if series is None:
            return np.full((1, 1), np.nan, np.float32)
        table = series.table()
        return table.values[:, :, table.names.metrics.index(metric)]


def runs_of(folder: Path) -> list[Run]:
    """The cells of the grid in a folder; none where there is no grid."""
    if not (folder / FILE).is_file():
        return []
    return [Run(folder / name, cell) for name, cell in Grid.load(folder).cells.items()]


def best(runs: Iterable[Run], norm: str) -> float:
    """The best test accuracy of a norm, over all its other settings."""
    return max(run.accuracy for run in runs if run.norm == norm)


def typical(run: Run, monitor: str, metric: str) -> float:
    """The median of a monitor's metric over steps and rows."""
    return float(np.nanmedian(run.table(monitor, metric)))
