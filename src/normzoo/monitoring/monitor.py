"""The base class of all monitors: `read -> merge over ranks -> compute -> write`, one sample at a time."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.optim import Optimizer

from normzoo.errors import InputError
from normzoo.monitoring.heatmap import heatmap
from normzoo.monitoring.history import History
from normzoo.monitoring.layers import Layers, find
from normzoo.monitoring.sample import Readings, Seen, Step, Table
from normzoo.monitoring.sampler import Sampler
from normzoo.monitoring.schedule import Schedule, as_schedule
from normzoo.monitoring.writer import Chart, EventWriter


class Monitor(Callback):
    """A callback that samples a network while it trains, and writes metrics of each layer.

    All monitors of a Trainer see the same forward and backward pass of a sampled step, on all ranks. Scalars have the
    tags `METRIC/LAYER`; each sample is also written as one tensor `[layers, metrics]`.

    A monitor of your own defines `question`, `metrics`, `usual_layers`, `readings`, `read` and `compute`; with several
    ranks also `merge`.

    Args:
        every: optimizer steps between samples, or a function of the step.
        layers: which modules, by patterns of their names (`net.blocks.*.norm`) or classes (`Conv2d`), or by class; None
            for those that the question is about.
        detail_every: at least so many optimizer steps between samples that also write histograms; 0 for never.

    Attributes:
        latest: the newest sample: metric -> layer -> value, where there is one.
    """

    question: ClassVar[str]
    """The heading of its charts."""
    metrics: Mapping[str, str] = {}
    """Metric -> its meaning and unit. The metric is the group of its tags."""
    totals: Mapping[str, str] = {}
    """Tag of a value that belongs to no layer, or the group of such tags -> its meaning and unit."""
    heatmaps: ClassVar[tuple[str, ...]] = ()
    """The metrics that are drawn over layers and steps at the end of a run."""

    def __init__(self, every: int | Schedule, layers: Layers | None, detail_every: int) -> None:
        name = type(self).__name__
        if isinstance(detail_every, bool) or not isinstance(detail_every, int) or detail_every < 0:
            raise InputError(f"{name}(detail_every={detail_every!r}): a number of steps; 500 is common, 0 is never.")
        if layers is not None and not isinstance(layers, str | type) and not layers:
            raise InputError(f"{name}(layers={layers!r}): no layer at all; leave layers out for the usual ones.")
        self.every = as_schedule(every)
        self.layers = layers
        self.detail_every = detail_every
        self.modules: dict[str, nn.Module] = {}
        self.label = name  # of its tables: its class, and a number if there are several of it
        self.in_detail = False
        self.reset()

    def reset(self) -> None:
        """Forgets the samples of an earlier run."""
        self.rows: list[str] = []
        self.detailed_at = -1
        self.history = History()
        self.latest: dict[str, dict[str, float]] = {}
        self.warned: set[str] = set()
        self.skipped = 0  # samples in a row in which no layer ran

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
        """Writes histograms and other large values of a sample."""

    def charts(self) -> list[Chart]:
        """Its charts in the Custom Scalars tab: by default one per metric, with a line per layer."""
        return [Chart(metric, (f"^{metric}/",)) for metric in self.metrics]

    def tag(self, metric: str, row: str) -> str:
        """The tag of a scalar: the part before the first "/" is its group."""
        return f"{metric}/{row}"

    # What all monitors share.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if trainer.global_step == 0:  # else a Trainer fits once more, and continues its curves
            self.reset()  # before a checkpoint restores its state
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined] # set by Lightning, undeclared
        if not any(isinstance(one, Sampler) for one in callbacks):
            # Before those that write checkpoints: a checkpoint after a step contains its sample.
            savers = [i for i, one in enumerate(callbacks) if isinstance(one, Checkpoint)]
            callbacks.insert(min(savers, default=len(callbacks)), Sampler())

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
        """Writes a table as scalars and as a tensor, and keeps it as `latest` and for the heatmaps."""
        if not set(table.rows) <= set(self.rows):  # the first sample, or a resumed run with other layers
            self.history = History() if self.rows else self.history
            self.rows = [*table.rows, *(name for name in self.modules if name not in table.rows)]
        self.latest = {metric: dict(table.values.get(metric, {})) for metric in self.metrics}
        writer.scalars(
            number, {self.tag(m, row): value for m, by_row in self.latest.items() for row, value in by_row.items()}
        )
        writer.scalars(number, table.totals)
        columns = [[by_row.get(row, torch.nan) for row in self.rows] for by_row in self.latest.values()]
        writer.table(number, f"normalization/{self.label}", self.rows, self.metrics, torch.tensor(columns).T)
        if self.heatmaps and self.history.is_kept():
            drawn = [self.latest[metric] for metric in self.heatmaps]
            values = [[by_row.get(row, torch.nan) for by_row in drawn] for row in self.rows]
            known = [[float(row in by_row) for by_row in drawn] for row in self.rows]
            self.history.add(number, torch.tensor([values, known]))
        self.warn_of_nan(number)

    def warn_of_nan(self, number: int) -> None:
        """Warns, once, of the first layer with a value that is not finite."""
        broken = {
            row for by_row in self.latest.values() for row, value in by_row.items() if not abs(value) < float("inf")
        }
        if broken:
            first = next(row for row in self.rows if row in broken)
            others = f" and of {len(broken) - 1} more" if len(broken) > 1 else ""
            self.warn_once(
                "nan",
                f"step {number}: {type(self).__name__} reads values of {first}{others} that are not finite. The "
                f"training continues; Trainer(detect_anomaly=True) finds the operation that produced them.",
            )

    def warn_of_unreached(self, reached: Collection[str]) -> None:
        """Warns, once, of layers that the training step did not run; a step that runs none may skip its batch."""
        missing = [name for name in self.modules if name not in reached]
        self.skipped = self.skipped + 1 if len(missing) == len(self.modules) else 0
        if missing and self.skipped != 1:
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

    def draw(self, writer: EventWriter, step: int) -> None:
        """Draws the heatmaps, over layers and steps."""
        if not self.history.steps:
            return
        values, known = self.history.values.permute(1, 2, 0, 3)  # (L, S, H) each
        known = known.bool()
        for i, metric in enumerate(self.heatmaps):
            rows = [r for r in range(len(self.rows)) if known[r, :, i].any()]
            if rows:
                title, names = f"{metric}: {self.metrics[metric]}", [self.rows[r] for r in rows]
                picture = heatmap(title, names, self.history.steps, values[rows, :, i], known[rows, :, i])
                writer.image(step, f"heatmaps/{metric}", picture)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: tensors and plain data."""
        return {"detailed_at": self.detailed_at, "history": self.history.state_dict(), "rows": list(self.rows)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.detailed_at = state_dict["detailed_at"]
        self.history.load_state_dict(state_dict["history"])
        self.rows = list(state_dict["rows"])
