"""Do the running statistics tell what batches are like?"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from normzoo.metrics import Moments, gap, kl, w2
from normzoo.monitoring.monitor import Monitor
from normzoo.monitoring.probe import Layers, is_norm, is_weighted, of_kind
from normzoo.monitoring.profile import (
    NOTHING,
    Profile,
    feature_moments,
    layer_means,
    merge_profiles,
    owner_of,
    profile,
)
from normzoo.monitoring.sample import Heard, Readings, Samples, Step
from normzoo.monitoring.schedule import Schedule
from normzoo.monitoring.writer import Board

GAPS = ("running_gap", "running_w2", "running_kl")


NONE = torch.zeros(0)


class Notes(NamedTuple):
    """What is noted of a step."""

    batch: Profile
    mean: Tensor
    """(sum C_l,), running."""
    var: Tensor
    """(sum C_l,), running."""
    learned: Tensor
    """All weights, then all biases."""


class RunningStatistics(Monitor):
    """Shows how far the batch's statistics are from the running ones, by which evaluation normalizes; gamma and beta.

    `gap = mean_c |mu_B - mu_r| / sigma_r`,  `W2 = sqrt(mean_c (dmu^2 + dsigma^2) / sigma_r^2)`,
    `KL = mean_c (ln(var_r / var_B) + (var_B + dmu^2) / var_r - 1) / 2`

    B is the training batch, over all ranks, with the unbiased variance; r the running statistics before the layer has
    seen it. A layer that runs twice in a step is compared with both batches together. Channels whose running variance
    is 0 are left out. Layers without running mean and variance of their input's channels show gamma and beta alone; a
    network without norms shows nothing.

    Tags, each with the name of the layer: `running_gap/`, `running_w2/` in running standard deviations, `running_kl/`
    in nats per channel; `gamma_mean/`, `gamma_std/`, `beta_mean/`, `beta_std/` over the channels of weight and bias.
    Every 500 steps also the histograms of the channels: `running_mean/`, `running_var/`, `running_gap_channels/`,
    `gamma/`, `beta/`, and a table `[channels, metrics]` per layer.

    Args:
        every: optimizer steps between samples, or a function of the step.
        layers: names with `*`, or classes; None for all norms.
        detail_every: optimizer steps, at least, between samples with channels; 0 for never.

    Raises:
        InputError: `layers` matches nothing; a number out of range.
    """

    question = "Running statistics"
    metrics: Mapping[str, str] = {
        "running_gap": "mean distance of batch mean and running mean, in running standard deviations",
        "running_w2": "Wasserstein-2 distance of batch and running statistics, in running standard deviations",
        "running_kl": "Kullback-Leibler divergence of the batch from the running statistics, in nats per channel",
        "gamma_mean": "mean of the weight over channels",
        "gamma_std": "standard deviation of the weight over channels",
        "beta_mean": "mean of the bias over channels",
        "beta_std": "standard deviation of the bias over channels",
    }
    heatmaps = ("running_gap", "running_w2")

    def __init__(self, every: int | Schedule = 50, layers: Layers | None = None, detail_every: int = 500) -> None:
        super().__init__(every, layers, detail_every)

    def usual_layers(self, model: nn.Module) -> dict[str, nn.Module]:
        return of_kind(model, is_norm) or of_kind(model, is_weighted)

    def find_layers(self, model: nn.Module) -> None:
        super().find_layers(model)
        self.keeping = {name: m for name, m in self.modules.items() if keeps_statistics(m)}
        self.sizes = tuple(m.running_mean.numel() for m in self.keeping.values())  # type: ignore[operator]
        self.vectors = {"gamma": vectors_of(self.modules, "weight"), "beta": vectors_of(self.modules, "bias")}
        self.learned_sizes = tuple(v.numel() for by_layer in self.vectors.values() for v in by_layer.values())

    def readings(self) -> Readings:
        return {("input", feature_moments): self.keeping} if self.keeping else {}

    def begin(self, step: Step) -> None:
        """Takes the running statistics as the forward pass will find them; weights and biases too."""
        self.mean, self.var = (
            torch.cat([getattr(m, name).detach() for m in self.keeping.values()]).cpu() if self.keeping else NONE
            for name in ("running_mean", "running_var")
        )
        learned = [v.detach().flatten() for by_layer in self.vectors.values() for v in by_layer.values()]
        self.learned = torch.cat(learned).cpu() if learned else NONE

    def collect(self, step: Step, heard: Heard) -> Notes:
        batch = profile(heard["input", feature_moments]) if self.keeping else NOTHING
        return Notes(batch, self.mean, self.var, self.learned)

    def merge(self, parts: Sequence[Notes]) -> Notes:
        return parts[0]._replace(batch=merge_profiles([part.batch for part in parts]))

    def structure(self, found: Notes) -> Hashable:
        return found.batch.names, found.batch.sizes

    def digest(self, numbers: Sequence[int], found: Sequence[Notes]) -> Samples:
        self.tell_of_unreached([*found[0].batch.names, *(name for name in self.modules if name not in self.keeping)])
        rows = list(self.modules)
        values: dict[str, Tensor] = {}
        applies: dict[str, Tensor] = {}

        def put(names: Sequence[str], columns: Mapping[str, Tensor], known: Tensor | bool = True) -> None:
            place = torch.tensor([rows.index(name) for name in names], dtype=torch.long)
            there = torch.zeros(len(found), len(rows), dtype=torch.bool)
            there[:, place] = known
            for metric, column in columns.items():
                values[metric] = torch.full(there.shape, torch.nan, dtype=torch.float64)
                values[metric][:, place], applies[metric] = column, there

        if self.keeping:
            ours, running = self.compared(found)
            counts = (ours.n > 1) & (running.var != 0)
            distances = [gap(ours, running), (w2(ours, running) / running.std).square(), kl(ours, running)]
            means = layer_means(self.sizes, torch.stack(distances), counts)
            means[1] = means[1].sqrt()
            put(list(self.keeping), dict(zip(GAPS, means, strict=True)), layer_means(self.sizes, counts.double()) > 0)
        learned = torch.stack([one.learned for one in found]).double()
        for what, by_layer, mean, std in self.spread(learned):
            put(by_layer, {f"{what}_mean": mean, f"{what}_std": std})
        return Samples(rows, values, applies)

    def compared(self, found: Sequence[Notes]) -> tuple[Moments, Moments]:
        """The moments of batches and the running ones, (K, sum C_l) each, of all layers that keep some."""
        names = tuple(self.keeping)
        columns = zip(*(one.batch.on(names, self.sizes).moments for one in found), strict=True)
        ours = Moments(*(torch.stack(list(column)) for column in columns)).unbiased()
        mean, var = (torch.stack([getattr(one, what) for one in found]).double() for what in ("mean", "var"))
        return ours, Moments(ours.n, mean, var)

    def spread(self, learned: Tensor) -> Iterator[tuple[str, list[str], Tensor, Tensor]]:
        """ "gamma" and "beta", their layers, and mean and standard deviation over channels, (K, L) each."""
        if not self.learned_sizes:
            return
        mean = layer_means(self.learned_sizes, learned)
        std = layer_means(self.learned_sizes, (learned - mean[:, owner_of(self.learned_sizes)]).square()).sqrt()
        at = 0
        for what, by_layer in self.vectors.items():
            here = slice(at, at + len(by_layer))
            at += len(by_layer)
            yield what, list(by_layer), mean[:, here], std[:, here]

    def detail(self, board: Board, number: int, found: Notes) -> None:
        of_layer: dict[str, dict[str, tuple[str, Tensor]]] = {name: {} for name in self.modules}
        if self.keeping:
            ours, running = (Moments(*(column[0] for column in side)) for side in self.compared([found]))
            told = {
                "batch_mean": ("mean of the batch", ours.mean),
                "batch_var": ("unbiased variance of the batch", ours.var),
                "running_mean": ("running mean", running.mean),
                "running_var": ("running variance", running.var),
                "running_gap_channels": ("distance of the means, in running standard deviations", gap(ours, running)),
            }
            for what, (unit, whole) in told.items():
                for name, v in zip(self.keeping, whole.split(self.sizes), strict=True):
                    of_layer[name][what] = unit, v
        learned = iter(found.learned.double().split(self.learned_sizes))
        for what, by_layer in self.vectors.items():
            for name in by_layer:
                of_layer[name][what] = f"{what} of the channel", next(learned)
        for name, columns in of_layer.items():
            for what, (_, v) in columns.items():
                if not what.startswith("batch"):
                    board.histogram(number, f"{what}/{name}", v)
            if columns and len({v.numel() for _, v in columns.values()}) == 1:
                table = torch.stack([v for _, v in columns.values()], 1)
                rows = [str(i) for i in range(len(table))]
                board.table(number, f"channels/{name}", rows, {k: unit for k, (unit, _) in columns.items()}, table)


def keeps_statistics(module: nn.Module) -> bool:
    """Whether a layer has a running mean and a running variance, a value per channel."""
    mean, var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    return isinstance(mean, Tensor) and isinstance(var, Tensor) and mean.dim() == 1 and mean.shape == var.shape


def vectors_of(modules: Mapping[str, nn.Module], name: str) -> dict[str, Tensor]:
    """The weights or the biases of norms, where they have some."""
    found = {layer: getattr(module, name, None) for layer, module in modules.items() if is_norm(module)}
    return {layer: v for layer, v in found.items() if isinstance(v, Tensor) and v.numel()}
