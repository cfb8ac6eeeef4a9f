"""What is sampled: a step of training, what is read of it, and what a monitor finds in it."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from normzoo.distributed.gather import Ranks
from normzoo.monitoring.probe import Reader, first_tensor
from normzoo.monitoring.replica import Replica
from normzoo.monitoring.schedule import Schedule
from normzoo.monitoring.writer import Board, Chart


@dataclass
class Step:
    """An optimizer step that is being sampled."""

    trainer: Trainer
    module: LightningModule
    number: int
    """Optimizer steps made before it."""
    batch: Any
    batch_idx: int
    ranks: Ranks
    on_copy: bool = False
    """Whether what is heard is heard on a copy, whose loss is not scaled."""
    replicas: list[Replica] = field(default_factory=list)

    @property
    def replica(self) -> Replica:
        """A copy of the module, to try things on; made when it is first asked for."""
        if not self.replicas:
            self.replicas.append(Replica(self.trainer, self.module))
        return self.replicas[0]

    @property
    def samples(self) -> int:
        """How many samples this rank's batch holds."""
        x = first_tensor(self.batch)
        return len(x) if x is not None and x.dim() else 1


@dataclass
class Samples:
    """What a monitor found at K steps: a value for every row and metric.

    Args:
        rows: names of L layers.
        values: metric -> (K, L).
        applies: metric -> bool, as the values or (L,): where there is such a value at all; everywhere if not named.
    """

    rows: Sequence[str]
    values: Mapping[str, Tensor]
    applies: Mapping[str, Tensor] = field(default_factory=dict)

    def table(self, rows: Sequence[str], metrics: Sequence[str]) -> tuple[Tensor, Tensor]:
        """All that there could be: the values (K, L, M), NaN where there is none; and where there is one."""
        shape = next(iter(self.values.values())).shape
        nowhere, nothing = torch.zeros(shape, dtype=torch.bool), torch.full(shape, torch.nan, dtype=torch.float64)
        there = torch.stack(
            [self.applies.get(m, ~nowhere).expand(shape) if m in self.values else nowhere for m in metrics], 2
        )
        columns = [self.values[m].detach().to("cpu", torch.float64) if m in self.values else nothing for m in metrics]
        values = torch.where(there, torch.stack(columns, 2), torch.nan)
        if tuple(rows) == tuple(self.rows):
            return values, there
        place = torch.tensor([rows.index(row) for row in self.rows])
        whole = torch.full((shape[0], len(rows), len(metrics)), torch.nan, dtype=torch.float64)
        known = torch.zeros(whole.shape, dtype=torch.bool)
        whole[:, place], known[:, place] = values, there
        return whole, known


Site = Literal["input", "output", "gradient"]
Readings = Mapping[tuple[Site, Reader], Collection[str]]
"""Where and how to read -> of which layers."""
Heard = Mapping[tuple[Site, Reader], Sequence[tuple[str, Any]]]
"""Where and how was read -> the layer and what was read, pass by pass, in the order of execution."""


@runtime_checkable
class Sampled(Protocol):
    """What the sampler calls of a monitor; `Monitor` has the documentation."""

    question: str
    label: str
    every: Schedule
    settle_all: Callable[[], None]

    def find_layers(self, model: nn.Module) -> None: ...
    def readings(self) -> Readings: ...
    def open(self, step: Step) -> None: ...
    def before_update(self, step: Step, optimizer: Optimizer) -> None: ...
    def collect(self, step: Step, heard: Heard) -> Any: ...
    def note(self, step: Step, parts: Sequence[Any]) -> None: ...
    def settle(self, board: Board) -> None: ...
    def charts(self) -> list[Chart]: ...
    def draw(self, board: Board, step: int) -> None: ...
