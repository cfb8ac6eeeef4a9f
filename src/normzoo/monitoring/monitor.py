"""The base class of all monitors: `read -> merge over ranks -> compute -> write`, one sample at a time."""

import math
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.optim import Optimizer

from normzoo.errors import InputError
from normzoo.monitoring.layers import Layers, find
from normzoo.monitoring.overview import SUMMED_UP, overview
from normzoo.monitoring.sample import Readings, Seen, Step, Table
from normzoo.monitoring.sampler import Sampler
from normzoo.monitoring.schedule import Every, Schedule, Unlimited, as_schedule
from normzoo.monitoring.writer import EventWriter

DETAIL_EVERY = 1000
UNJUDGED = 8


class Monitor(Callback):
    """A callback that samples a network while it trains, and writes metrics of each layer.

    All monitors of a Trainer see the same forward and backward pass of a sampled step, on all ranks. Each sample is
    written as one tensor `[layers, metrics]` to TensorBoard. All loggers receive the scalars of
    `normzoo.monitoring.overview`; from a monitor that has none there, the scalars of all layers, `METRIC/LAYER`.

    A monitor of your own defines `question`, `metrics`, `usual_layers`, `readings`, `read` and `compute`; with several
    ranks also `merge`.

    Args:
        every: optimizer steps between samples, or a function of the step; None for `usual_every`, or less in a run too
            short for `usual_samples`.
        layers: which modules, by patterns of their names (`net.blocks.*.norm`) or classes (`Conv2d`), or by class; None
            for those that the question is about.
        detail_every: at least so many optimizer steps between samples that also write values of channels; 0 for never;
            None for 1000, or less in a short run.

    Attributes:
        latest: metric -> layer -> the newest value, where there is one.
        required: whether a network that it cannot read is an error; if not, a warning says that it shows nothing.
    """

    question: ClassVar[str]
    """What it shows, in a few words."""
    metrics: Mapping[str, str] = {}
    """Metric -> its meaning and unit."""
    usual_every: ClassVar[int] = 200
    usual_samples: ClassVar[int] = 20
    companions: ClassVar[list[type[Callback]]] = []
    """Further callbacks that a Trainer with a monitor gets, one of each class; `normzoo.callbacks` adds Verdicts."""

    def __init__(self, every: int | Schedule | None, layers: Layers | None, detail_every: int | None) -> None:
        name = type(self).__name__
        if detail_every is not None and (
            isinstance(detail_every, bool) or not isinstance(detail_every, int) or detail_every < 0
        ):
            raise InputError(f"{name}(detail_every={detail_every!r}): a number of steps; 500 is common, 0 is never.")
        if layers is not None and not isinstance(layers, str | type) and not layers:
            raise InputError(f"{name}(layers={layers!r}): no layer at all; leave layers out for the usual ones.")
        self.asked = every, detail_every
        self.every: Schedule = Every(self.usual_every) if every is None else as_schedule(every)
        self.detail_every = DETAIL_EVERY if detail_every is None else detail_every
        self.layers = layers
        self.modules: dict[str, nn.Module] = {}
        self.label = name  # of its tables: its class, and a number if there are several of it
        self.in_detail = False
        self.required = True
        self.reset()

    def reset(self) -> None:
        """Forgets the samples of an earlier run."""
        self.rows: list[str] = []
        self.detailed_at = -1
        self.latest: dict[str, dict[str, float]] = {}
        self.warned: set[str] = set()
        self.skipped = 0  # samples in a row in which no layer ran
        self.written: deque[tuple[int, dict[str, dict[str, float]]]] = deque(maxlen=UNJUDGED)
        """The tables that no verdict has been given on yet, with their steps."""

    def set_rates(self, steps: float) -> None:
        """Chooses the rates that the user did not: a short run has `usual_samples`, too.

        Args:
            steps: of the run; infinite if it has no end, or one that is not known.
        """
        share = max(1, int(min(steps, 1e9) / self.usual_samples))
        every, detail_every = self.asked
        if every is None:
            usual = self.usual_every
            self.every = Every(min(usual, share)) if math.isfinite(steps) else Unlimited(usual)
        if detail_every is None:
            self.detail_every = min(DETAIL_EVERY, share)

    @property
    def state_key(self) -> str:
        """The key of its state in a checkpoint: several monitors of a class differ in their arguments."""
        own = {name: repr(getattr(self, name)) for name in ("units", "q", "steps") if hasattr(self, name)}
        return self._generate_state_key(layers=repr(self.layers), **own)  # Lightning's hook for this very purpose

    # What a monitor defines.

    def usual_layers(self, model: nn.Module) -> dict[str, nn.Module]:
        """The modules that the question is about, where the user names none."""
        raise NotImplementedError

    def readings(self) -> Readings:
        """What to read during a sampled step: (site, reader) -> names of layers."""
        return {}

    def begin(self, step: Step) -> None:
        """Called before the forward pass of a sampled step."""

    def before_update(self, step: Step, optimizer: Optimizer) -> None:
        """Called before an optimizer's update: gradients are complete, and not clipped yet."""

    def read(self, step: Step, seen: Seen) -> Any:
        """Called after the update: returns this rank's part of the sample, which is pickled for the others."""
        raise NotImplementedError

    def merge(self, parts: Sequence[Any]) -> Any:
        """The sample of all ranks, from the part of each."""
        return parts[0]

    def compute(self, number: int, sample: Any) -> Table | None:
        """The metrics of each layer, from what `merge` returned; None for no table.

        Args:
            number: the step.
            sample: what `merge` returned.
        """
        raise NotImplementedError

    def detail(self, writer: EventWriter, number: int, sample: Any) -> None:
        """Writes values of channels and other large ones of a sample."""

    def tag(self, metric: str, row: str) -> str:
        """The tag of a value as a scalar: the part before the first "/" is its group."""
        return f"{metric}/{row}"

    # What all monitors share.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if trainer.global_step == 0:  # else a Trainer fits once more, and continues its curves
            self.reset()  # before a checkpoint restores its state
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined] # set by Lightning, undeclared
        kinds: list[type[Callback]] = [Sampler, *self.companions]
        for kind in kinds:
            if not any(isinstance(one, kind) for one in callbacks):
                # Before those that write checkpoints: a checkpoint after a step contains its sample.
                savers = [i for i, one in enumerate(callbacks) if isinstance(one, Checkpoint)]
                callbacks.insert(min(savers, default=len(callbacks)), kind())

    def find_layers(self, model: nn.Module) -> None:
        """Finds the layers, at the start of training.

        Raises:
            InputError: there are none.
        """
        self.modules = find(model, self.layers) if self.layers is not None else self.usual_layers(model)
        if not self.modules:
            raise InputError(
                f"{type(self).__name__}: the network has no layer that it could read; name some, as in "
                f"{type(self).__name__}(layers='net.*')."
            )

    def start(self, step: Step) -> None:
        """Starts a sample, before the forward pass."""
        since = step.number - self.detailed_at
        self.in_detail = self.detail_every > 0 and (self.detailed_at < 0 or since >= self.detail_every)
        if self.in_detail:
            self.detailed_at = step.number
        self.begin(step)

    def finish(self, writer: EventWriter, number: int, parts: Sequence[Any]) -> None:
        """Merges the parts of all ranks, computes the table, and writes it."""
        sample = self.merge(parts)
        table = self.compute(number, sample)
        if table is not None and any(table.values.values()):
            self.write(writer, number, table)
        if self.in_detail:
            self.detail(writer, number, sample)

    def write(self, writer: EventWriter, number: int, table: Table) -> None:
        """Writes a table, and its scalars, and keeps it as `latest`."""
        if [row for row in self.rows if row in table.rows] != list(table.rows):  # the first sample, or further layers
            self.rows = list(dict.fromkeys([*table.rows, *self.rows, *self.modules]))
        found = {metric: {row: v[row] for row in self.rows if row in v} for metric, v in table.values.items()}
        self.latest = {metric: found.get(metric) or self.latest.get(metric, {}) for metric in self.metrics}
        by_row = {self.tag(m, row): value for m, of_metric in found.items() for row, value in of_metric.items()}
        if SUMMED_UP.isdisjoint(self.metrics):
            writer.scalars(number, by_row)
        else:
            further = self.label.removeprefix(type(self).__name__)
            writer.scalars(number, {tag + further: value for tag, value in overview(found).items()})
        values = [[in_table(found.get(metric, {}).get(row)) for metric in self.metrics] for row in self.rows]
        writer.table(number, f"normalization/{self.label}", self.rows, self.metrics, torch.tensor(values))
        self.written.append((number, found))

    def warn_of_unreached(self, reached: Collection[str]) -> None:
        """Warns, once, of layers that the training step did not run; a step that runs none may skip its batch."""
        missing = [name for name in self.modules if name not in reached]
        self.skipped = self.skipped + 1 if len(missing) == len(self.modules) else 0
        if missing and self.skipped != 1 and self.required:
            others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            self.warn_once(
                "unreached",
                f"{type(self).__name__}: the training step does not run {missing[0]}{others}: it shows nothing of it.",
            )

    def warn_once(self, about: str, message: str) -> None:
        """Warns on the first rank, once per run for each subject."""
        if about not in self.warned:
            self.warned.add(about)
            rank_zero_warn(message)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: tensors and plain data."""
        return {"detailed_at": self.detailed_at, "rows": list(self.rows)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.detailed_at = state_dict["detailed_at"]
        self.rows = list(state_dict["rows"])


def in_table(value: float | None) -> float:
    """A value as tables hold it: NaN for none, infinity for one that is NaN."""
    return math.nan if value is None else math.inf if math.isnan(value) else value
