"""A sample: a step of training, what monitors read of it, and the table that one computes from that."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.optim import Optimizer

from normzoo.distributed.gather import Ranks
from normzoo.monitoring.probe import Reader, first_tensor
from normzoo.monitoring.replica import Replica
from normzoo.monitoring.schedule import Schedule
from normzoo.monitoring.writer import EventWriter

Site = Literal["input", "output", "gradient"]
Readings = Mapping[tuple[Site, Reader], Collection[str]]
"""Where and how to read -> the names of the layers."""
Seen = Mapping[tuple[Site, Reader], Sequence[tuple[str, Any]]]
"""Where and how -> the layer and the value, pass by pass, in the order of execution."""


@dataclass
class Step:
    """An optimizer step that is sampled.

    Args:
        trainer: the trainer.
        module: what it trains.
        number: the number of optimizer steps before it.
        batch: the first batch of the step.
        batch_idx: its number.
        ranks: the processes that train together.
        replica: returns a copy of the module in its present state, to compute losses without a trace.
        on_copy: whether layers are read on the copy, whose loss is not scaled.
    """

    trainer: Trainer
    module: LightningModule
    number: int
    batch: Any
    batch_idx: int
    ranks: Ranks
    replica: Callable[[], Replica]
    on_copy: bool = False

    @property
    def samples(self) -> int:
        """The number of samples in this rank's batch."""
        x = first_tensor(self.batch)
        return len(x) if x is not None and x.dim() else 1


@dataclass
class Table:
    """What a monitor computes from a sample.

    Args:
        rows: names of the layers, in the order of execution.
        values: metric -> row -> value, where there is one.
    """

    rows: Sequence[str]
    values: Mapping[str, Mapping[str, float]]


class Reads(Protocol):
    """What reads layers during a sampled step."""

    def readings(self) -> Readings: ...


@runtime_checkable
class Sampled(Reads, Protocol):
    """What the sampler calls of a `Monitor`, which documents it."""

    question: str
    label: str
    every: Schedule
    required: bool

    def set_rates(self, steps: float) -> None: ...
    def find_layers(self, model: nn.Module) -> None: ...
    def start(self, step: Step) -> None: ...
    def before_update(self, step: Step, optimizer: Optimizer) -> None: ...
    def read(self, step: Step, seen: Seen) -> Any: ...
    def finish(self, writer: EventWriter, number: int, parts: Sequence[Any]) -> None: ...


@runtime_checkable
class Judge(Protocol):
    """What the sampler calls of `normzoo.callbacks.Verdicts`."""

    def judge(self, trainer: Trainer, number: int) -> None: ...
