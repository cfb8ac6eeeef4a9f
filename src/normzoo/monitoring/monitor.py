"""What monitors share: which layers, when, what a sample is, and how it is written."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import groupby
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
from normzoo.monitoring.probe import Layers, find
from normzoo.monitoring.sample import Heard, Readings, Samples, Step
from normzoo.monitoring.sampler import Sampler
from normzoo.monitoring.schedule import Schedule, as_schedule
from normzoo.monitoring.writer import Board, Chart


class Monitor(Callback):
    """A callback that samples a network while it trains, and writes what it finds layer by layer.

    Of a step that is sampled, every monitor sees the same forward and backward pass, on all ranks. What it writes has
    the tags `METRIC/LAYER`, and all of it once more as one tensor `[layers, metrics]`. While a step is sampled it only
    takes notes; those of several samples are worked out together, after a second at the latest.

    Args:
        every: optimizer steps between samples, or a function of the step.
        layers: which modules, by patterns of their names (`net.blocks.*.norm`) or by class; None for those that the
            question is about.
        detail_every: optimizer steps, at least, between samples that also write what is large, as histograms; 0 for
            never.
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
            raise InputError(f"{name}(detail_every={detail_every!r}): a number of steps; 500 is common, 0 is never.")
        if layers is not None and not isinstance(layers, str | type) and not layers:
            raise InputError(f"{name}(layers={layers!r}): no layer at all; leave layers out for the usual ones.")
        self.every = as_schedule(every)
        self.layers = layers
        self.detail_every = detail_every
        self.modules: dict[str, nn.Module] = {}
        self.label = name
        """What its tables are called: its class, and a number if there are several of it."""
        self.in_detail = False
        self.settle_all: Callable[[], None] = nothing_to_settle
        """Works out what all monitors of the Trainer have noted."""
        self.reset()

    def reset(self) -> None:
        """Forgets what it has seen: a run begins."""
        self.rows: list[str] = []
        self.tags: list[list[str]] = []
        self.detailed_at = -1
        self.history = History()
        self.newest: tuple[list[list[float]], list[list[bool]]] = ([], [])
        self.pending: list[tuple[int, Any, bool]] = []
        self.warned: set[str] = set()

    @property
    def state_key(self) -> str:
        """Under which a checkpoint keeps its state: several of a class differ in what they look at."""
        own = {name: repr(getattr(self, name)) for name in ("units", "q", "steps") if hasattr(self, name)}
        return self._generate_state_key(layers=repr(self.layers), **own)

    # What a monitor defines.

    def usual_layers(self, model: nn.Module) -> dict[str, nn.Module]:
        """The modules that the question is about, where the user names none."""
        raise NotImplementedError

    def readings(self) -> Readings:
        """What it listens to while a step is sampled: a reader for the inputs, outputs or gradients of layers."""
        return {}

    def begin(self, step: Step) -> None:
        """Before the forward pass of a step that is sampled."""

    def before_update(self, step: Step, optimizer: Optimizer) -> None:
        """Before an optimizer moves its weights: their gradients are whole, and not clipped yet."""

    def collect(self, step: Step, heard: Heard) -> Any:
        """After the update: what this rank has to say. It goes to all ranks, pickled."""
        raise NotImplementedError

    def merge(self, parts: Sequence[Any]) -> Any:
        """What all ranks have to say together, from what each `collect` returned."""
        return parts[0]

    def structure(self, found: Any) -> Hashable:
        """What samples have in common that are worked out together; by default each is on its own."""
        return id(found)

    def digest(self, numbers: Sequence[int], found: Sequence[Any]) -> Samples | None:
        """Works out K samples of the same structure; None for nothing.

        Args:
            numbers: their steps.
            found: what `merge` returned for each.
        """
        raise NotImplementedError

    def totals_of(self, samples: Samples) -> Sequence[Mapping[str, float]]:
        """Values that are no layer's: tag -> value, for each of K samples."""
        return ()

    def detail(self, board: Board, number: int, found: Any) -> None:
        """Writes what is large of one sample."""

    def charts(self) -> list[Chart]:
        """Its charts in the Custom Scalars tab: a line per layer, for each metric."""
        return [Chart(metric, (f"^{metric}/",)) for metric in self.metrics]

    def tag(self, metric: str, row: str) -> str:
        """The name of a scalar: what stands before the first "/" is the group it is shown in."""
        return f"{metric}/{row}"

    # What all of them do.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self.reset()  # before a checkpoint brings back what the run that it was taken of has seen
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined] # set by Lightning, undeclared
        if not any(isinstance(one, Sampler) for one in callbacks):
            # Before those that write checkpoints: a checkpoint after a step holds what was seen of it.
            savers = [i for i, one in enumerate(callbacks) if isinstance(one, Checkpoint)]
            callbacks.insert(min(savers, default=len(callbacks)), Sampler())

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

    def open(self, step: Step) -> None:
        """Before the forward pass of a step that is sampled."""
        since = step.number - self.detailed_at
        self.in_detail = self.detail_every > 0 and (self.detailed_at < 0 or since >= self.detail_every)
        if self.in_detail:
            self.detailed_at = step.number
        self.begin(step)

    def note(self, step: Step, parts: Sequence[Any]) -> None:
        """Keeps what all ranks have to say of a step, to be worked out later."""
        self.pending.append((step.number, self.merge(parts), self.in_detail))

    def settle(self, board: Board) -> None:
        """Works out and writes what has been noted."""
        pending, self.pending = self.pending, []
        for _, alike in groupby(pending, key=lambda one: self.structure(one[1])):
            group = list(alike)
            numbers = [number for number, _, _ in group]
            samples = self.digest(numbers, [found for _, found, _ in group])
            if samples is not None and samples.values:
                self.write(board, numbers, samples)
            for number, found, in_detail in group:
                if in_detail:
                    self.detail(board, number, found)

    def write(self, board: Board, numbers: Sequence[int], samples: Samples) -> None:
        """Writes samples that have been worked out."""
        # Of the whole run: a table does not change its shape, unless a resumed run looks at other layers.
        if not self.rows or not set(samples.rows) <= set(self.rows):
            self.tags, self.history = [], self.history if not self.rows else History()
            self.rows = [*samples.rows, *(name for name in self.modules if name not in samples.rows)]
        if not self.tags:
            self.tags = [[self.tag(metric, row) for row in self.rows] for metric in self.metrics]
        values, applies = samples.table(self.rows, list(self.metrics))
        listed, there = values.transpose(1, 2).tolist(), applies.transpose(1, 2).tolist()
        for k, number in enumerate(numbers):
            by_tag = {
                tag: value
                for tags, column, known in zip(self.tags, listed[k], there[k], strict=True)
                for tag, value, is_known in zip(tags, column, known, strict=True)
                if is_known
            }
            board.scalars(number, by_tag)
            board.table(number, f"normalization/{self.label}", self.rows, self.metrics, values[k])
            if self.heatmaps and self.history.is_kept():
                drawn = [list(self.metrics).index(metric) for metric in self.heatmaps]
                self.history.add(number, torch.stack([values[k][:, drawn], applies[k][:, drawn]]))
        for number, totals in zip(numbers, self.totals_of(samples), strict=False):
            board.scalars(number, totals)
        self.newest = listed[-1], there[-1]
        broken = applies & ~values.isfinite()
        if broken.any():
            first = int(broken.flatten(1).any(1).nonzero()[0])
            rows = [row for row, b in zip(self.rows, broken[first].any(1).tolist(), strict=True) if b]
            self.tell_of_nan(numbers[first], rows)

    @property
    def latest(self) -> dict[str, dict[str, float]]:
        """The newest sample: metric -> layer -> value, where there is one."""
        self.settle_all()
        return {
            metric: {row: value for row, value, known in zip(self.rows, column, there, strict=True) if known}
            for metric, column, there in zip(self.metrics, *self.newest, strict=False)
        }

    def tell_of_nan(self, number: int, rows: Sequence[str]) -> None:
        """Warns, once, of the first layer with a value that is not finite."""
        others = f", and of {len(rows) - 1} more" if len(rows) > 1 else ""
        self.warn_once(
            "nan",
            f"step {number}: what {type(self).__name__} sees of {rows[0]}{others} is not finite. The training "
            f"goes on; Trainer(detect_anomaly=True) finds where it begins.",
        )

    def tell_of_unreached(self, reached: Mapping[str, Any] | Sequence[str]) -> None:
        """Warns, once, of layers that the network did not run through, if it ran at all."""
        missing = [name for name in self.modules if name not in reached]
        if missing and len(missing) < len(self.modules):
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

    def draw(self, board: Board, step: int) -> None:
        """Pictures over layers and steps, of what the history holds."""
        if not self.history.steps:
            return
        values, seen = torch.stack(self.history.values, 2)  # (L, S, H) each
        seen = seen.bool()
        for i, metric in enumerate(self.heatmaps):
            rows = [r for r in range(len(self.rows)) if seen[r, :, i].any()]
            if rows:
                title, names = f"{metric}: {self.metrics[metric]}", [self.rows[r] for r in rows]
                picture = heatmap(title, names, self.history.steps, values[rows, :, i], seen[rows, :, i])
                board.image(step, f"heatmaps/{metric}", picture)

    # What goes on with a resumed run.

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on as if it had not been interrupted: tensors and plain data."""
        self.settle_all()
        return {
            "detailed_at": self.detailed_at,
            "history": self.history.state_dict(),
            "rows": list(self.rows),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up what `state_dict` returned."""
        self.detailed_at = state_dict["detailed_at"]
        self.history.load_state_dict(state_dict["history"])
        self.rows = list(state_dict["rows"])


def nothing_to_settle() -> None:
    """In the place of the sampler, where there is none yet."""
