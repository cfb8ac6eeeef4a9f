"""The few scalars that tell the story in TensorBoard and other loggers; all numbers are in the tables."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

import torch

from normzoo.metrics import growth, slope
from normzoo.monitoring.writer import Chart

Values = Mapping[str, float]
"""Row of a table -> value, first layer to last."""


def log10(value: float) -> float:
    """The decimal logarithm; of 0, as a gradient has that underflows, that of float32's least number above it."""
    return math.log10(value) if value > 0 else -45.0 if value == 0 else math.nan


def first_by_last(values: Sequence[float]) -> float:
    """The decimal logarithm of the first layer's value as a share of the last one's."""
    return log10(values[0]) - log10(values[-1])


def log10_growth(values: Sequence[float]) -> float:
    """The decimal logarithm of the factor by which a gradient grows per layer on its way back."""
    return log10(growth(torch.tensor(values)).item())


def log10_median(values: Sequence[float]) -> float:
    """The decimal logarithm of the median."""
    return log10(torch.tensor(values).median().item())


def mean(values: Sequence[float]) -> float:
    """The mean over layers."""
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else sum(values)


def log10_mean(values: Sequence[float]) -> float | None:
    """The decimal logarithm of the mean; none of 0, as it is in the reference itself."""
    found = mean(values)
    return None if found == 0 else log10(found)


def log10_over_depth(values: Sequence[float]) -> float | None:
    """The decimal logarithm of the factor from layer to layer; none of fewer than two that are above 0."""
    found = slope(torch.tensor(values).log10()).item()
    return None if math.isnan(found) else found


def last(values: Sequence[float]) -> float:
    """The last layer's."""
    return values[-1]


@dataclass(frozen=True)
class Overview:
    """A scalar that sums up a metric over the layers.

    Args:
        tag: its name. TensorBoard sorts by it; the part before the "/" is the group of cards.
        metric: of the table.
        reduce: from the values of the layers, first to last, to the scalar; None for none.
        meaning: what it is, and its unit.
    """

    tag: str
    metric: str
    reduce: Callable[[Sequence[float]], float | None]
    meaning: str


OVERVIEWS = (
    Overview(
        "1_gradient/log10_first_by_last",
        "flow_norm",
        first_by_last,
        "gradient of the first layer's output by that of the last, decimal logarithm: far below 0 it vanishes",
    ),
    Overview(
        "1_gradient/log10_growth_per_layer",
        "flow_norm",
        log10_growth,
        "factor by which the gradient grows per layer towards the first, a fit over all layers, decimal logarithm",
    ),
    Overview(
        "1_gradient/log10_update_ratio",
        "update_ratio",
        log10_median,
        "update as a share of the weights, median over layers, decimal logarithm: about -3 is healthy with SGD",
    ),
    Overview(
        "2_shift/log10_over_time",
        "drift_w2",
        log10_mean,
        "drift of a layer's input since the reference, mean over layers but the first, whose input is data, decimal "
        "logarithm",
    ),
    Overview(
        "2_shift/log10_over_time_growth_per_layer",
        "drift_w2",
        log10_over_depth,
        "factor of this drift from layer to layer, decimal logarithm: above 0, the deeper, the larger",
    ),
    Overview("2_shift/over_depth", "depth_w2", last, "distance of the last layer's input from the network's input"),
    Overview("2_shift/val", "val_w2", mean, "distance of validation from training at equal weights, mean over layers"),
    Overview("2_shift/test", "test_w2", mean, "distance of testing from training at equal weights, mean over layers"),
    Overview("2_shift/noise_floor_val", "val_w2_floor", mean, "what batches of one distribution give for 2_shift/val"),
    Overview(
        "2_shift/noise_floor_test", "test_w2_floor", mean, "what batches of one distribution give for 2_shift/test"
    ),
    Overview("3_running/gap", "running_gap", mean, "distance of batch and running means, mean over layers"),
    Overview("4_activations/dead", "dead", max, "share of dead units, of the layer that has most"),
    Overview("4_activations/saturated", "saturated", max, "share of saturated inputs, of the layer that has most"),
    Overview("4_band/p15", "unit_p15", last, "15th percentile of the last nonlinearity's input, one unit"),
    Overview("4_band/p50", "unit_p50", last, "median of the last nonlinearity's input, one unit"),
    Overview("4_band/p85", "unit_p85", last, "85th percentile of the last nonlinearity's input, one unit"),
    Overview(
        "5_internal_shift/relative",
        "ics_relative",
        mean,
        "change of the gradient by the layers below, mean over layers",
    ),
    Overview("6_landscape/loss_range", "loss_range", last, "range of the loss along the gradient"),
)
BY_LAYER: Mapping[str, tuple[str, Callable[[float], float], str]] = {
    "flow_norm": ("1_gradient_log10", log10, "gradient of the layer's output, decimal logarithm"),
    "running_gap": ("3_running_gap", float, "distance of batch and running means, in running standard deviations"),
}
"""Metric -> the group of its scalars with a line per layer, the scale, and what it is."""
SUMMED_UP = {one.metric for one in OVERVIEWS}


def overview(latest: Mapping[str, Values]) -> dict[str, float]:
    """Tag -> scalar, from metric -> layer -> value."""
    data = [layer for layer, value in latest.get("depth_w2", {}).items() if value == 0]  # the network's input
    if data and len(latest.get("drift_w2", {})) > 1:
        latest = {**latest, "drift_w2": {n: v for n, v in latest["drift_w2"].items() if n not in data}}
    known = [one for one in OVERVIEWS if latest.get(one.metric)]
    reduced = ((one.tag, one.reduce(list(latest[one.metric].values()))) for one in known)
    found = {tag: value for tag, value in reduced if value is not None}
    for metric, (group, scale, _) in BY_LAYER.items():
        found.update({f"{group}/{layer}": scale(value) for layer, value in latest.get(metric, {}).items()})
    return found


def lines(title: str, *groups: str) -> Chart:
    """A chart with a line for each tag of some groups."""
    return Chart(title, tuple(f"^{group}/" for group in groups))


# The same for every run: TensorBoard merges the layouts of all runs it shows.
LAYOUT: Mapping[str, Sequence[Chart]] = {
    "1 Do gradients vanish or explode?": [
        Chart("first layer as a share of the last, log10", ("^1_gradient/log10_first_by_last",)),
        lines("gradient of each layer's output, log10", "1_gradient_log10"),
        Chart("growth per layer, log10", ("^1_gradient/log10_growth_per_layer",)),
        Chart("update as a share of the weights, log10", ("^1_gradient/log10_update_ratio",)),
    ],
    "2 Do a layer's inputs keep their distribution?": [
        Chart("drift since the reference, mean over layers, log10", ("^2_shift/log10_over_time$",)),
        Chart("the deeper, the larger? drift, growth per layer, log10", ("^2_shift/log10_over_time_growth_per_layer",)),
        Chart("from the network's input to the last layer's", ("^2_shift/over_depth",)),
        Chart("validation against training, and the noise floor", ("^2_shift/val", "^2_shift/noise_floor_val")),
    ],
    "3 Do the running statistics describe the batches?": [
        Chart("distance of the means, mean over layers", ("^3_running/gap",)),
        lines("distance of the means, each layer", "3_running_gap"),
    ],
    "4 How are activations distributed?": [
        lines("dead units, saturated inputs: the worst layer", "4_activations"),
        Chart("one unit of the last nonlinearity: 15, 50, 85 %", ("4_band/p50", "4_band/p15", "4_band/p85"), band=True),
    ],
    "5 Does the update of the layers below change a gradient?": [lines("relative change", "5_internal_shift")],
    "6 How far does the gradient predict the loss?": [lines("range of the loss along the gradient", "6_landscape")],
}

PINNED = (
    "1_gradient/log10_first_by_last",
    "2_shift/log10_over_time",
    "3_running/gap",
    "val/loss",
)


def time_series_url(runs: str = "") -> str:
    """The address at which a local TensorBoard opens on the cards that tell most.

    Args:
        runs: a regular expression of the runs to show.
    """
    cards = json.dumps([{"plugin": "scalars", "tag": tag} for tag in PINNED], separators=(",", ":"))
    return f"http://localhost:6006/?runFilter={quote(runs)}&smoothing=0&pinnedCards={quote(cards)}#timeseries"
