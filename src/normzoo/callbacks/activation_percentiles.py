"""How are the inputs of a nonlinearity distributed, and how does that change while the network learns?"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from normzoo.errors import InputError
from normzoo.metrics import effective_rank, percentiles, sampled
from normzoo.metrics.percentiles import BUCKETS
from normzoo.metrics.saturation import flat
from normzoo.monitoring.monitor import Monitor
from normzoo.monitoring.probe import (
    Layers,
    Probe,
    feature_axis,
    is_activation,
    is_norm,
    is_weighted,
    named_layers,
    of_kind,
)
from normzoo.monitoring.sample import Heard, Samples, Step
from normzoo.monitoring.schedule import Schedule
from normzoo.monitoring.writer import Board, Chart
from normzoo.norms._base import Norm

SAVED_BYTES = 1 << 22
"""A larger probe batch is not kept in checkpoints."""

# Where an activation is flat: its slope is below a tenth of its largest.
FLAT: dict[type[nn.Module], tuple[float, float]] = {
    nn.Sigmoid: (-4.0, 4.0),
    nn.LogSigmoid: (-torch.inf, 4.0),
    nn.Tanh: (-2.0, 2.0),
    nn.Hardsigmoid: (-3.0, 3.0),
    nn.Hardtanh: (-1.0, 1.0),
    nn.ReLU: (0.0, torch.inf),
    nn.ReLU6: (0.0, 6.0),
    nn.ELU: (-3.0, torch.inf),
    nn.CELU: (-3.0, torch.inf),
    nn.SELU: (-3.0, torch.inf),
    nn.GELU: (-2.5, torch.inf),
    nn.SiLU: (-6.0, torch.inf),
    nn.Mish: (-6.0, torch.inf),
    nn.Softplus: (-4.0, torch.inf),
}


class ActivationPercentiles(Monitor):
    """Shows the {15, 50, 85}th percentiles of what goes into the nonlinearities, on a batch that stays the same.

    The figure of the batch normalization paper is that of one unit: `unit_p15/LAYER/UNIT` and so on. `input_p15/LAYER`
    and so on are those of all units of the layer together, which is another quantity: the units' own means differ.

    Besides: `saturated/LAYER`, the share of the inputs that lie where the nonlinearity is flat (a sigmoid's beyond 4, a
    ReLU's at 0 and below), and `dead/LAYER`, the share of the units all of whose inputs do. Every 500 steps also
    `effective_rank/LAYER`, in directions, and a histogram `input/LAYER`.

    The probe batch runs through the module's own `training_step`, on a copy of the module: in training mode, with the
    same random numbers each time, and without a trace in the training. Percentiles are in the units of the input. Up
    to 16,384 values of a layer or unit on a rank they are exact; of more values that many are looked at, evenly spread,
    and the rank of a percentile is off by at most 1.6 points with a probability of 0.999.

    Args:
        every: optimizer steps between samples, or a function of the step.
        layers: names with `*`, or classes, whose input is looked at; None for all activation modules of torch's, or
            in a network without any for what its norms, or else its layers with weights, put out.
        units: which channels of each layer have lines of their own.
        q: the percentages of the lower line, the middle and the upper.
        batch: the probe batch, as `training_step` takes it; None for the first batch that is sampled.
        samples: the most values of a layer or unit that are looked at.
        detail_every: optimizer steps, at least, between samples with effective rank and histogram; 0 for never.

    Raises:
        InputError: `layers` matches nothing; a unit that a layer has not got; a batch that `training_step` cannot take;
            a number out of range.

    Reference: Sergey Ioffe, Christian Szegedy. Batch Normalization: Accelerating Deep Network Training by Reducing
    Internal Covariate Shift. 2015. arXiv 1502.03167, section 4.1 and figure 1.
    """

    question = "Percentiles of activations"
    heatmaps = ("input_width", "saturated")

    def __init__(
        self,
        every: int | Schedule = 100,
        layers: Layers | None = None,
        units: Sequence[int] = (0,),
        q: tuple[float, float, float] = (15, 50, 85),
        batch: Any = None,
        samples: int = 1 << 14,
        detail_every: int = 500,
    ) -> None:
        self.given = batch
        super().__init__(every, layers, detail_every)
        if len(q) != 3 or not 0 <= q[0] < q[1] < q[2] <= 100:
            raise InputError(f"ActivationPercentiles(q={q!r}): three percentages that rise, as (15, 50, 85).")
        if any(isinstance(u, bool) or not isinstance(u, int) or u < 0 for u in units):
            raise InputError(f"ActivationPercentiles(units={units!r}): channels by their numbers, from 0 on.")
        if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1000:
            raise InputError(f"ActivationPercentiles(samples={samples!r}): at least 1000; 16384 is the default.")
        self.units = tuple(units)
        self.q = tuple(q)
        self.samples = samples
        names = [f"p{share:g}" for share in q]
        self.input_names, self.unit_names = [f"input_{n}" for n in names], [f"unit_{n}" for n in names]
        self.metrics = {
            **{f"input_p{share:g}": f"{share:g}th percentile of the inputs of all units" for share in q},
            "input_width": f"distance of the {q[2]:g}th and the {q[0]:g}th percentile of the inputs of all units",
            **{f"unit_p{share:g}": f"{share:g}th percentile of the inputs of one unit" for share in q},
            "saturated": "share of the inputs where the nonlinearity is flat",
            "dead": "share of the units with no other inputs than such",
            "effective_rank": "directions that the inputs of all units fill, 1 to their number",
        }

    def reset(self) -> None:
        super().reset()
        self.batch = self.given
        self.random: Tensor | None = None
        self.tapped: tuple[nn.Module, list[Probe]] | None = None
        """A copy of the module, and what listens to it."""

    def usual_layers(self, model: nn.Module) -> dict[str, nn.Module]:
        return of_kind(model, is_activation) or of_kind(model, is_norm) or of_kind(model, is_weighted)

    def begin(self, step: Step) -> None:
        """Runs the probe batch, before the training's own."""
        if self.batch is None:
            self.batch = deepcopy(step.batch)
        if self.random is None:
            self.random = torch.get_rng_state()  # the same in every sample
        replica = step.replica.refresh()
        if self.tapped is None or self.tapped[0] is not replica.module:
            self.tapped = replica.module, self.taps(replica.module)
        probes = self.tapped[1]
        try:
            given = step.trainer.precision_plugin.convert_input(self.batch)
            here = move_data_to_device(given, step.module.device)
            with ExitStack() as stack:
                for probe in probes:
                    stack.enter_context(probe)
                replica.run("training_step", here, random_state=self.random, is_fresh=True)
        except InputError:
            raise
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            if self.given is None:
                raise
            raise InputError(
                f"ActivationPercentiles(batch=...): the module's training_step cannot take it ({error}); give a batch "
                f"as the training data yields it, or leave it out."
            ) from error
        self.found: dict[str, dict[str, Any]] = {}
        for visit in (visit for probe in probes for visit in probe.visits):
            one = visit.output if visit.input is None else visit.input
            if one is not None:
                self.found.setdefault(visit.name, one)  # of a layer that runs twice, the first time

    def taps(self, module: nn.Module) -> list[Probe]:
        """Probes of what goes into nonlinearities, on a copy of the module."""
        named = dict(named_layers(module))
        modules = {name: named[name] for name in self.modules}
        inside = {n: m for n, m in modules.items() if self.layers is not None or reads_input(m)}
        outside = {n: m for n, m in modules.items() if n not in inside}
        probes = [Probe(module, inside, input=self.read)] if inside else []
        return probes + ([Probe(module, outside, output=self.read)] if outside else [])

    def collect(self, step: Step, heard: Heard) -> dict[str, Any]:
        return self.found

    def read(self, module: nn.Module, x: Tensor) -> dict[str, Any]:
        """What is kept of a layer's input."""
        axis = feature_axis(module, x)
        if self.units and max(self.units) >= x.shape[axis]:
            raise InputError(
                f"ActivationPercentiles(units={list(self.units)}): a {type(module).__name__} has {x.shape[axis]} units "
                f"(its input is {tuple(x.shape)}); units are counted from 0; name layers that have them."
            )
        # Copies: an activation that works in place writes over its input.
        found: dict[str, Any] = {
            "all": copied(sampled(x, self.samples)),
            "units": {u: copied(sampled(x.select(axis, u), self.samples)) for u in self.units},
        }
        bounds = next((b for kind, b in FLAT.items() if type(module) is kind), None)
        if bounds is not None:
            others = [i for i in range(x.dim()) if i != axis]
            found["flat"] = flat(x, *bounds).sum(others).cpu()  # of each unit
            found["count"] = x.numel() // max(x.shape[axis], 1)
        if self.in_detail:
            found["rank"] = copied(sampled_rows(x, axis, self.samples))
        return found

    def merge(self, parts: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
        return parts

    def structure(self, found: Sequence[dict[str, Any]]) -> Hashable:
        return tuple((name, tuple(notes)) for part in found for name, notes in part.items())

    def digest(self, numbers: Sequence[int], found: Sequence[Any]) -> Samples:
        reached = list(dict.fromkeys(name for part in found[0] for name in part))
        self.tell_of_unreached(reached)
        names = [*reached, *(name for name in self.modules if name not in reached)]
        rows = [*names, *(f"{name}/{u}" for name in names for u in self.units)]
        place = {row: i for i, row in enumerate(rows)}
        values = {
            metric: torch.full((len(found), len(rows)), torch.nan, dtype=torch.float64) for metric in self.metrics
        }
        applies = {metric: torch.zeros(len(rows), dtype=torch.bool) for metric in self.metrics}
        for name in reached:
            of_steps = [[part[name] for part in parts if name in part] for parts in found]
            for row, metric, column in self.of_layer(name, of_steps):
                values[metric][:, place[row]] = column
                applies[metric][place[row]] = True
        return Samples(rows, values, applies)

    def of_layer(self, name: str, of_steps: Sequence[Sequence[dict[str, Any]]]) -> Iterator[tuple[str, str, Tensor]]:
        """Row, metric and values (K,) of all there is to say of a layer in K samples, from the notes of the ranks."""
        band = bands([joined(notes, "all") for notes in of_steps], self.q)
        for metric, column in zip((*self.input_names, "input_width"), (*band, band[2] - band[0]), strict=True):
            yield name, metric, column
        first = of_steps[0][0]
        if "flat" in first:
            flat_of_units = [torch.stack([one["flat"] for one in notes]).sum(0) for notes in of_steps]
            counts = [sum(one["count"] for one in notes) for notes in of_steps]
            steps = list(zip(flat_of_units, counts, strict=True))
            yield name, "saturated", torch.stack([by_unit.double().mean() / max(n, 1) for by_unit, n in steps])
            yield name, "dead", torch.stack([(by_unit == n).double().mean() for by_unit, n in steps])
        if "rank" in first:
            fills = [effective_rank(joined(notes, "rank")) for notes in of_steps]
            yield name, "effective_rank", torch.stack(fills)
        for u in self.units:
            band = bands([joined([one["units"] for one in notes], u) for notes in of_steps], self.q)
            for metric, column in zip(self.unit_names, band, strict=True):
                yield f"{name}/{u}", metric, column

    def detail(self, board: Board, number: int, found: Sequence[dict[str, Any]]) -> None:
        for name in dict.fromkeys(name for part in found for name in part):
            board.histogram(number, f"input/{name}", torch.cat([part[name]["all"] for part in found if name in part]))

    def charts(self) -> list[Chart]:
        low, middle, high = self.input_names
        unit_low, unit_middle, unit_high = self.unit_names
        charts = []
        for name in self.rows[: len(self.modules)] or self.modules:
            charts.append(
                Chart(f"{name}: all units", (f"{middle}/{name}", f"{low}/{name}", f"{high}/{name}"), band=True)
            )
            for u in self.units:
                tags = (f"{unit_middle}/{name}/{u}", f"{unit_low}/{name}/{u}", f"{unit_high}/{name}/{u}")
                charts.append(Chart(f"{name}: unit {u}", tags, band=True))
        return charts

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.tapped = None

    # What goes on with a resumed run.

    def state_dict(self) -> dict[str, Any]:
        batch = None if self.given is not None else plain(self.batch)
        return {
            **super().state_dict(),
            "batch": batch if size_of(batch) <= SAVED_BYTES else None,
            "random": self.random,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.random = state_dict["random"]
        if self.given is None:
            self.batch = state_dict["batch"]


def joined(notes: Sequence[dict[Any, Any]], key: Any) -> Tensor:
    """What the ranks have noted under a key, one behind the other."""
    return notes[0][key] if len(notes) == 1 else torch.cat([one[key] for one in notes])


def bands(rows: Sequence[Tensor], q: Sequence[float]) -> Tensor:
    """(Q, K), the percentiles of K rows; of many short ones all at once."""
    if len({len(row) for row in rows}) == 1 and len(rows[0]) <= BUCKETS:
        return percentiles(torch.stack(list(rows)), q, dim=1)
    return torch.stack([percentiles(row, q) for row in rows], 1)


def reads_input(module: nn.Module) -> bool:
    """Whether what a nonlinearity takes in is what this module takes in; else it is what the module puts out."""
    return is_activation(module) or (isinstance(module, Norm) and module.facts.brings_activation)


def sampled_rows(x: Tensor, axis: int, samples: int) -> Tensor:
    """(R, C), positions of samples, evenly spread, about `samples` values in all but at least 2 C rows if there are."""
    rows = x.movedim(axis, -1).reshape(-1, x.shape[axis])
    return rows[:: max(len(rows) // max(samples // x.shape[axis], 2 * x.shape[axis]), 1)]


def copied(x: Tensor) -> Tensor:
    """A tensor's values, on the CPU, in float32."""
    return x.to("cpu", torch.float32, copy=True)


def plain(batch: Any) -> Any:
    """A batch of tensors, tuples, lists and mappings as what a checkpoint may hold; None of anything else."""
    if isinstance(batch, Tensor):
        return batch.detach().cpu()
    if isinstance(batch, tuple | list):
        parts = [plain(one) for one in batch]
        return None if any(p is None for p in parts) else tuple(parts) if type(batch) is tuple else parts
    if type(batch) is dict:
        found = {key: plain(one) for key, one in batch.items()}
        return None if any(v is None for v in found.values()) else found
    return batch if type(batch) in (int, float, bool, str) else None


def size_of(batch: Any) -> int:
    """Bytes of the tensors in a batch."""
    if isinstance(batch, Tensor):
        return batch.numel() * batch.element_size()
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    return sum(size_of(one) for one in batch) if isinstance(batch, tuple | list) else 0
