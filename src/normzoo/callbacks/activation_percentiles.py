"""How are the inputs of a nonlinearity distributed, and how does this change during training?"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from normzoo.errors import InputError
from normzoo.metrics import effective_rank, percentiles, sampled
from normzoo.metrics.saturation import flat
from normzoo.monitoring.layers import (
    Layers,
    feature_axis,
    is_activation,
    is_norm,
    is_weighted,
    named_layers,
    of_kind,
)
from normzoo.monitoring.monitor import Monitor
from normzoo.monitoring.probe import Probe
from normzoo.monitoring.random_state import random_state
from normzoo.monitoring.replica import copied_batch, plain, size_of
from normzoo.monitoring.sample import Seen, Step, Table
from normzoo.monitoring.schedule import Schedule
from normzoo.monitoring.writer import EventWriter
from normzoo.norms._base import Norm

BINS = 40
SAVED_BYTES = 1 << 22
"""A larger probe batch is not kept in checkpoints."""

# Where an activation counts as flat: its slope is at most 0.11 of its largest.
FLAT: dict[type[nn.Module], tuple[float, float]] = {
    nn.Sigmoid: (-4.0, 4.0),
    nn.LogSigmoid: (-torch.inf, 4.0),
    nn.Tanh: (-2.0, 2.0),
    nn.Hardsigmoid: (-3.0, 3.0),
    nn.ReLU: (0.0, torch.inf),
    nn.ELU: (-3.0, torch.inf),
    nn.CELU: (-3.0, torch.inf),
    nn.SELU: (-3.0, torch.inf),
    nn.GELU: (-2.5, torch.inf),
    nn.SiLU: (-6.0, torch.inf),
    nn.Mish: (-6.0, torch.inf),
}


@dataclass
class Inputs:
    """What is read of a layer's input on one rank.

    Args:
        values: (S,), of all units.
        units: unit -> (S,).
        flat: (C,), how many values of each unit lie where the nonlinearity is flat; None if it is nowhere.
        channels: C, the number of units.
        count: values per unit.
        rows: (R, C), some positions with all units, for the effective rank; None in most samples.
    """

    values: Tensor
    units: dict[int, Tensor]
    flat: Tensor | None
    channels: int
    count: int
    rows: Tensor | None


class ActivationPercentiles(Monitor):
    """Shows the {15, 50, 85}th percentiles of the inputs of the nonlinearities, always for the same batch.

    - `unit_p15/LAYER/UNIT` ...: of one unit, as in the figure of the batch normalization paper;
    - `input_p15/LAYER` ...: of all units of a layer together, whose means differ; `input_width/LAYER`: its width;
    - `saturated/LAYER`: the share of the inputs where the nonlinearity is flat (sigmoid beyond 4, ReLU at 0 and below);
    - `dead/LAYER`: the share of the units all of whose inputs are saturated;
    - every 1000 steps `effective_rank/LAYER`, in directions;
    - a histogram of the inputs of each layer in a table of its own: its least and its largest value, and the counts of
      40 bins of equal width between them, of the values that are finite.

    The probe batch runs through the module's own `training_step` on a copy of the module, in training mode and with the
    same random numbers each time. It does not affect the training. Percentiles are in the units of the input. They are
    exact for up to 16,384 values of a layer or unit on each rank. Of more values, as many are sampled, evenly spread:
    the rank of a percentile is then off by at most 1.6 points with probability 0.999.

    Args:
        every: optimizer steps between samples, or a function of the step; None for 400, or less in a run so short
            that there were fewer than 20 samples.
        layers: names or classes, with `*`; None for all activation modules of torch. In a network without any, the
            outputs of its norms are read, or else those of its layers with weights.
        units: the channels of each layer with lines of their own.
        q: the lower, the middle and the upper percentage.
        batch: the probe batch, as `training_step` takes it; None for the first batch that is sampled.
        samples: the largest number of values of a layer or unit.
        detail_every: at least so many optimizer steps between samples with effective rank; 0 for never; None for
            1000, or less in a short run.

    Raises:
        InputError: `layers` matches nothing; a layer has no such unit; `training_step` cannot take the batch; a number
            is out of range.

    Reference: Sergey Ioffe, Christian Szegedy. Batch Normalization: Accelerating Deep Network Training by Reducing
    Internal Covariate Shift. 2015. arXiv 1502.03167, section 4.1 and figure 1.
    """

    question = "Percentiles of activations"
    usual_every = 400

    def __init__(
        self,
        every: int | Schedule | None = None,
        layers: Layers | None = None,
        units: Sequence[int] = (0,),
        q: tuple[float, float, float] = (15, 50, 85),
        batch: Any = None,
        samples: int = 1 << 14,
        detail_every: int | None = None,
    ) -> None:
        self.given = batch
        super().__init__(every, layers, detail_every)
        if len(q) != 3 or not 0 <= q[0] < q[1] < q[2] <= 100:
            raise InputError(f"ActivationPercentiles(q={q!r}): give three ascending percentages, such as (15, 50, 85).")
        if any(isinstance(u, bool) or not isinstance(u, int) or u < 0 for u in units):
            raise InputError(f"ActivationPercentiles(units={units!r}): give numbers of channels, from 0.")
        if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1000:
            raise InputError(f"ActivationPercentiles(samples={samples!r}): give at least 1000; the default is 16384.")
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
            "dead": "share of the units all of whose inputs are there",
            "effective_rank": "number of directions in which the inputs of all units vary, 1 to the number of units",
        }

    def reset(self) -> None:
        super().reset()
        self.batch = self.given
        self.random: dict[str, Any] | None = None
        self.probes: list[dict[str, Any]] = []
        """The batch and the random numbers of each rank, for checkpoints."""
        self.is_gathered = False

    def usual_layers(self, model: nn.Module) -> dict[str, nn.Module]:
        return of_kind(model, is_activation) or of_kind(model, is_norm) or of_kind(model, is_weighted)

    def begin(self, step: Step) -> None:
        """Runs the probe batch, before the training's own."""
        if self.batch is None:
            if self.rows:  # of a sample before the checkpoint
                rank_zero_warn(
                    f"ActivationPercentiles: the checkpoint does not hold the probe batch, which is larger than "
                    f"{SAVED_BYTES >> 20} MB or not made of tensors in tuples, lists and dictionaries; another one is "
                    f"used from here on. ActivationPercentiles(batch=...) keeps it."
                )
            self.batch = copied_batch(step.batch)
        if self.random is None:
            self.random = random_state(step.module.device)  # the same in every sample
        if not self.is_gathered:  # once: they stay the same
            batch = None if self.given is not None else plain(self.batch)
            own = {"batch": batch if size_of(batch) <= SAVED_BYTES else None, "random": self.random}
            self.probes, self.is_gathered = step.ranks.gather(own), True
        replica = step.replica()
        try:
            given = step.trainer.precision_plugin.convert_input(self.batch)
            here = move_data_to_device(given, step.module.device)
            with self.probe(replica.module) as probe:
                replica.run("training_step", here, random=self.random)
        except InputError:
            raise
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            if self.given is None:
                raise
            raise InputError(
                f"ActivationPercentiles(batch=...): the module's training_step cannot take it ({error}); give a batch "
                f"as the training data yields it, or leave it out."
            ) from error
        self.found: dict[str, list[Inputs]] = {}
        for visit in probe.visits:
            one = visit.output if visit.input is None else visit.input
            passes = self.found.setdefault(visit.name, [])
            if one is not None and (not passes or passes[0].channels == one.channels):
                passes.append(one)

    def probe(self, module: nn.Module) -> Probe:
        """A probe of the inputs of the nonlinearities, in a copy of the module."""
        named = dict(named_layers(module))
        layers = {name: named[name] for name in self.modules}
        takes = {name for name, layer in layers.items() if self.layers is not None or takes_input(layer)}
        inputs = {name: self.read_input for name in layers if name in takes}
        return Probe(module, layers, input=inputs, output={n: self.read_input for n in layers if n not in takes})

    def read_input(self, module: nn.Module, x: Tensor) -> Inputs:
        """Reads the input of a nonlinearity. Copies it, as a nonlinearity that works in place overwrites it."""
        axis = feature_axis(module, x)
        if self.units and max(self.units) >= x.shape[axis]:
            raise InputError(
                f"ActivationPercentiles(units={list(self.units)}): a {type(module).__name__} has {x.shape[axis]} units "
                f"(its input is {tuple(x.shape)}), counted from 0; choose layers that have these units."
            )
        bounds = flat_bounds(module)
        others = [i for i in range(x.dim()) if i != axis]
        return Inputs(
            values=copied(sampled(x, self.samples)),
            units={u: copied(sampled(x.select(axis, u), self.samples)) for u in self.units},
            flat=None if bounds is None else flat(x, *bounds).sum(others).cpu(),
            channels=x.shape[axis],
            count=x.numel() // max(x.shape[axis], 1),
            rows=copied(sampled_rows(x, axis, self.samples)) if self.in_detail else None,
        )

    def read(self, step: Step, seen: Seen) -> dict[str, list[Inputs]]:
        return {name: passes for name, passes in self.found.items() if passes}

    def merge(self, parts: Sequence[dict[str, list[Inputs]]]) -> dict[str, list[Inputs]]:
        layers = dict.fromkeys(name for part in parts for name in part)
        return {name: [one for part in parts for one in part.get(name, ())] for name in layers}

    def compute(self, number: int, sample: dict[str, list[Inputs]]) -> Table:
        self.warn_of_unreached(sample)
        names = [*sample, *(name for name in self.modules if name not in sample)]
        rows = [*names, *(f"{name}/{u}" for name in names for u in self.units)]
        values: dict[str, dict[str, float]] = {metric: {} for metric in self.metrics}
        for row, metric, value in self.of_units(sample):
            values[metric][row] = value
        for name, parts in sample.items():
            for row, metric, value in self.of_layer(name, parts):
                values[metric][row] = value
        return Table(rows, values)

    def of_units(self, sample: dict[str, list[Inputs]]) -> Iterator[tuple[str, str, float]]:
        """Row, metric and value: the percentiles of single units, all that have equally many values at once."""
        by_size: dict[int, dict[str, Tensor]] = {}
        for name, parts in sample.items():
            for u in self.units:
                values = torch.cat([part.units[u] for part in parts])
                by_size.setdefault(len(values), {})[f"{name}/{u}"] = values
        for of_rows in by_size.values():
            bands = percentiles(torch.stack(list(of_rows.values())), self.q, dim=1).T.tolist()
            for row, band in zip(of_rows, bands, strict=True):
                yield from ((row, metric, value) for metric, value in zip(self.unit_names, band, strict=True))

    def of_layer(self, name: str, parts: Sequence[Inputs]) -> Iterator[tuple[str, str, float]]:
        """Row, metric and value: all metrics of a layer as a whole, from its inputs in each pass on each rank."""
        band = percentiles(torch.cat([part.values for part in parts]), self.q).tolist()
        for metric, value in zip((*self.input_names, "input_width"), (*band, band[2] - band[0]), strict=True):
            yield name, metric, value
        flat_of_units, count = [part.flat for part in parts if part.flat is not None], sum(part.count for part in parts)
        if flat_of_units:
            total = torch.stack(flat_of_units).sum(0)
            yield name, "saturated", total.double().mean().item() / max(count, 1)
            yield name, "dead", (total == count).double().mean().item()
        rows = [part.rows for part in parts if part.rows is not None]
        rank = effective_rank(torch.cat(rows)).item() if rows else math.nan
        if not math.isnan(rank):  # some inputs vary
            yield name, "effective_rank", rank

    def finish(self, writer: EventWriter, number: int, parts: Sequence[dict[str, list[Inputs]]]) -> None:
        super().finish(writer, number, parts)
        layers = {name: torch.cat([one.values for one in passes]) for name, passes in self.merge(parts).items()}
        if layers:
            columns = {"low": "least value", "high": "largest value"} | {f"bin_{i}": "values" for i in range(BINS)}
            table = histograms(list(layers.values()), BINS)
            writer.table(number, f"normalization/{self.label}/histogram", list(layers), columns, table)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "probes": self.probes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.probes, self.is_gathered = state_dict["probes"], False
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        own = next(iter(self.probes[rank:]), {"batch": None, "random": None})  # there may be more ranks than before
        self.random = own["random"]
        if self.given is None:
            self.batch = own["batch"]


def flat_bounds(module: nn.Module) -> tuple[float, float] | None:
    """The bounds of the range in which a nonlinearity is not flat; None if it is nowhere flat."""
    if isinstance(module, nn.Hardtanh):  # ReLU6 too
        return module.min_val, module.max_val
    if isinstance(module, nn.Softplus):
        return -4.0 / module.beta, torch.inf
    return next((bounds for kind, bounds in FLAT.items() if isinstance(module, kind)), None)


def takes_input(module: nn.Module) -> bool:
    """Whether a module applies a nonlinearity to its input; otherwise the output is the input of one."""
    return is_activation(module) or (isinstance(module, Norm) and module.facts.brings_activation)


def sampled_rows(x: Tensor, axis: int, samples: int) -> Tensor:
    """(R, C), evenly spread positions: about `samples` values, but at least 2 C rows if there are so many."""
    rows = x.movedim(axis, -1).reshape(-1, x.shape[axis])
    return rows[:: max(len(rows) // max(samples // x.shape[axis], 2 * x.shape[axis]), 1)]


def copied(x: Tensor) -> Tensor:
    """A copy on the CPU, in float32."""
    return x.to("cpu", torch.float32, copy=True)


def histograms(rows: Sequence[Tensor], bins: int) -> Tensor:
    """The least and the largest of the finite values of each row, and their counts in bins of equal width between them.

    Args:
        rows: L rows of values (S_l,), on the CPU.
        bins: the number of bins B. A value on an edge belongs to the bin above, the largest to the last one.

    Returns:
        (L, 2 + B): low, high, counts. A row of equal values has them in the first bin; one without values is NaN.
    """
    found = np.full((len(rows), 2 + bins), np.nan)
    for row, values in zip(found, rows, strict=True):
        x = values.double().numpy()
        if x.size and not np.isfinite(x.max() - x.min()):
            x = x[np.isfinite(x)]
        if x.size:
            low, high = x.min(), x.max()
            place = ((x - low) * (bins / (high - low) if high > low else 0.0)).astype(np.intp)
            row[:2] = low, high
            row[2:] = np.bincount(np.minimum(place, bins - 1), minlength=bins)
    return torch.from_numpy(found)
