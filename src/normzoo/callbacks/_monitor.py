"""What monitors share: which layers, when, what a sample is, and how it is written."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from normzoo.callbacks._board import Board, Chart
from normzoo.callbacks._heatmap import heatmap
from normzoo.callbacks._history import History
from normzoo.callbacks._ranks import Ranks
from normzoo.callbacks._replica import Replica
from normzoo.callbacks.schedule import Schedule, as_schedule
from normzoo.errors import InputError
from normzoo.probes import Layers, Reader, find, first_tensor


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
class Sample:
    """What a monitor found at a step: a value for every row and metric.

    Args:
        rows: names of the layers.
        values: metric -> (L,).
        applies: metric -> bool (L,), where there is such a value at all; a metric that is missing applies everywhere.
    """

    rows: Sequence[str]
    values: Mapping[str, Tensor]
    applies: Mapping[str, Tensor] = field(default_factory=dict)

    def table(self, rows: Sequence[str], metrics: Sequence[str]) -> tuple[Tensor, Tensor]:
        """All that there could be: the values (L, M), NaN where there is none, and where there is one, (L, M)."""
        nowhere, nothing = torch.zeros(len(self.rows), dtype=torch.bool), torch.full((len(self.rows),), torch.nan)
        everywhere = ~nowhere
        there = torch.stack([self.applies.get(m, everywhere) if m in self.values else nowhere for m in metrics], 1)
        columns = [self.values.get(m, nothing).detach().to("cpu", torch.float64) for m in metrics]
        values = torch.where(there, torch.stack(columns, 1), torch.nan)
        if tuple(rows) == tuple(self.rows):
            return values, there
        place = torch.tensor([rows.index(row) for row in self.rows])
        whole = torch.full((len(rows), len(metrics)), torch.nan, dtype=torch.float64)
        known = torch.zeros(len(rows), len(metrics), dtype=torch.bool)
        whole[place], known[place] = values, there
        return whole, known


Site = Literal["input", "output", "gradient"]
Readings = Mapping[tuple[Site, Reader], Collection[str]]
"""Where and how to read -> of which layers."""
Heard = Mapping[tuple[Site, Reader], Sequence[tuple[str, Any]]]
"""Where and how was read -> the layer and what was read, pass by pass, in the order of execution."""


class Monitor(Callback):
    """A callback that samples a network while it trains, and writes what it finds layer by layer.

    Of a step that is sampled, every monitor sees the same forward and backward pass, on all ranks. What it writes has
    the tags `METRIC/LAYER`, and all of it once more as one tensor `[layers, metrics]`.

    Args:
        every: optimizer steps between samples, or a function of the step.
        layers: which modules, by patterns of their names (`net.blocks.*.norm`) or by class; None for those that the
            question is about.
        detail_every: samples between two that also write what is large, as histograms; 0 for never.
    """

    question: ClassVar[str]
    """What its charts are headed by."""
    metrics: Mapping[str, str] = {}
    """Metric -> what it is of a layer, and its unit. The metric is the group of its tags."""
    totals: Mapping[str, str] = {}
    """Tag of a value that is no layer's, or the group of such tags -> what it is, and its unit."""
    heatmaps: ClassVar[tuple[str, ...]] = ()
    """The metrics that are drawn over layers and steps at the end of a run."""

    def __init__(self, every: int | Schedule, layers: Layers | None, detail_every: int) -> None:
        name = type(self).__name__
        if isinstance(detail_every, bool) or not isinstance(detail_every, int) or detail_every < 0:
            raise InputError(f"{name}(detail_every={detail_every!r}): a number of samples; 10 is common, 0 is never.")
        if layers is not None and not isinstance(layers, str | type) and not layers:
            raise InputError(f"{name}(layers={layers!r}): no layer at all; leave layers out for the usual ones.")
        self.every = as_schedule(every)
        self.layers = layers
        self.detail_every = detail_every
        self.modules: dict[str, nn.Module] = {}
        self.rows: list[str] = []
        self.tags: list[list[str]] = []
        self.samples_taken = 0
        self.history = History()
        self.seen = History()
        self.newest: tuple[list[list[float]], list[list[bool]]] = ([], [])
        self.warned: set[str] = set()

    # What a monitor defines.

    def usual_layers(self, model: nn.Module) -> dict[str, nn.Module]:
        """The modules that the question is about, where the user names none."""
        raise NotImplementedError

    def readings(self) -> Readings:
        """What it listens to while a step is sampled: a reader for the inputs, outputs or gradients of layers."""
        return {}

    def begin(self, step: Step) -> None:
        """Before the forward pass of a step that is sampled."""

    def before_update(self, step: Step) -> None:
        """Before the optimizer moves the weights: gradients are whole, and not clipped yet."""

    def collect(self, step: Step, heard: Heard) -> Any:
        """After the update: what this rank has to say. It goes to all ranks, pickled."""
        raise NotImplementedError

    def merge(self, step: Step, parts: Sequence[Any]) -> Sample | None:
        """What all ranks found together, from what each `collect` returned; None for nothing."""
        raise NotImplementedError

    def detail(self, board: Board) -> None:
        """Writes what is large."""

    def charts(self) -> list[Chart]:
        """Its charts in the Custom Scalars tab: a line per layer, for each metric."""
        return [Chart(metric, (f"^{metric}/",)) for metric in self.metrics]

    def tag(self, metric: str, row: str) -> str:
        """The name of a scalar: what stands before the first "/" is the group it is shown in."""
        return f"{metric}/{row}"

    # What all of them do.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        from normzoo.callbacks._sampler import Sampler  # which imports this module

        if stage == "fit" and not any(isinstance(one, Sampler) for one in trainer.callbacks):  # type: ignore[attr-defined]
            trainer.callbacks.append(Sampler())  # type: ignore[attr-defined]

    def find_layers(self, model: nn.Module) -> None:
        """Finds the modules that are meant, at the start of training.

        Raises:
            InputError: there are none.
        """
        found = find(model, self.layers) if self.layers is not None else self.usual_layers(model)
        if not found:
            raise InputError(
                f"{type(self).__name__}: the network has no layer that it could look at; name some, as in "
                f"{type(self).__name__}(layers='net.*')."
            )
        self.modules = found

    def write(self, step: Step, sample: Sample, board: Board) -> None:
        """Keeps and writes a sample."""
        if not self.rows:  # of the whole run: a table does not change its shape
            self.rows = [*sample.rows, *(name for name in self.modules if name not in sample.rows)]
        values, applies = sample.table(self.rows, list(self.metrics))
        listed, there = values.T.tolist(), applies.T.tolist()
        self.newest = listed, there
        if not self.tags:
            self.tags = [[self.tag(metric, row) for row in self.rows] for metric in self.metrics]
        board.scalars(
            {
                tag: value
                for tags, column, known in zip(self.tags, listed, there, strict=True)
                for tag, value, k in zip(tags, column, known, strict=True)
                if k
            }
        )
        board.table(f"normalization/{type(self).__name__}", self.rows, self.metrics, values)
        drawn = [list(self.metrics).index(metric) for metric in self.heatmaps]
        if drawn:
            self.history.add(step.number, values[:, drawn])
            self.seen.add(step.number, applies[:, drawn])
        if self.detail_every and self.samples_taken % self.detail_every == 0:
            self.detail(board)
        self.samples_taken += 1
        broken = applies & ~values.isfinite()
        if broken.any():
            self.tell_of_nan(step, [row for row, b in zip(self.rows, broken.any(1).tolist(), strict=True) if b])

    @property
    def latest(self) -> dict[str, dict[str, float]]:
        """The newest sample: metric -> layer -> value, where there is one."""
        return {
            metric: {row: value for row, value, known in zip(self.rows, column, there, strict=True) if known}
            for metric, column, there in zip(self.metrics, *self.newest, strict=False)
        }

    def tell_of_nan(self, step: Step, rows: Sequence[str]) -> None:
        """Warns, once, of the first layer with a value that is not finite."""
        others = f", and of {len(rows) - 1} more" if len(rows) > 1 else ""
        self.warn_once(
            "nan",
            f"step {step.number}: what {type(self).__name__} sees of {rows[0]}{others} is not finite. The training "
            f"goes on; Trainer(detect_anomaly=True) finds where it begins.",
        )

    def tell_of_unreached(self, reached: Mapping[str, Any] | Sequence[str]) -> None:
        """Warns, once, of layers that the network did not run through."""
        missing = [name for name in self.modules if name not in reached]
        if missing:
            others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            self.warn_once(
                "unreached",
                f"{type(self).__name__}: the training step does not run through {missing[0]}{others}: nothing is shown "
                f"of it.",
            )

    def warn_once(self, about: str, message: str) -> None:
        """Warns on the first rank, once per run for each subject."""
        if about not in self.warned:
            self.warned.add(about)
            rank_zero_warn(message)

    def draw(self, board: Board) -> None:
        """Pictures over layers and steps, of what the history holds."""
        if not self.history.steps:
            return
        values = torch.stack(self.history.values, 1)  # (L, S, H)
        seen = torch.stack(self.seen.values, 1).bool()
        for i, metric in enumerate(self.heatmaps):
            rows = [r for r in range(len(self.rows)) if seen[r, :, i].any()]
            if rows:
                title, names = f"{metric}: {self.metrics[metric]}", [self.rows[r] for r in rows]
                picture = heatmap(title, names, self.history.steps, values[rows, :, i], seen[rows, :, i])
                board.image(f"heatmaps/{metric}", picture)

    # What goes on with a resumed run.

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on as if it had not been interrupted: tensors and plain data."""
        return {
            "samples_taken": self.samples_taken,
            "history": self.history.state_dict(),
            "seen": self.seen.state_dict(),
            "rows": list(self.rows),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up what `state_dict` returned."""
        self.samples_taken = state_dict["samples_taken"]
        self.history.load_state_dict(state_dict["history"])
        self.seen.load_state_dict(state_dict["seen"])
        self.rows = list(state_dict["rows"])
