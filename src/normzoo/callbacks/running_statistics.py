"""Do the running statistics tell what batches are like?"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from normzoo.callbacks._board import Board
from normzoo.callbacks._monitor import Heard, Monitor, Readings, Sample, Step
from normzoo.callbacks._profile import (
    NOTHING,
    Profile,
    aligned,
    feature_moments,
    layer_means,
    merge_profiles,
    owner_of,
    profile,
)
from normzoo.callbacks.schedule import Schedule
from normzoo.metrics import Moments, gap, kl, w2
from normzoo.probes import Layers, is_norm, is_weighted, of_kind

GAPS = ("running_gap", "running_w2", "running_kl")


class RunningStatistics(Monitor):
    """Shows how far the batch's statistics are from the running ones, by which evaluation normalizes; gamma and beta.

    `gap = mean_c |mu_B - mu_r| / sigma_r`,  `W2 = sqrt(mean_c (dmu^2 + dsigma^2) / sigma_r^2)`,
    `KL = mean_c (ln(var_r / var_B) + (var_B + dmu^2) / var_r - 1) / 2`

    B is the training batch, over all ranks, with the unbiased variance; r the running statistics before the layer has
    seen it. A layer that runs twice in a step is compared with both batches together. Channels whose running variance
    is 0 are left out. Layers without running mean and variance of their input's channels show gamma and beta alone.

    Tags, each with the name of the layer: `running_gap/`, `running_w2/` in running standard deviations, `running_kl/`
    in nats per channel; `gamma_mean/`, `gamma_std/`, `beta_mean/`, `beta_std/` over the channels of weight and bias.
    Every tenth sample also the histograms of the channels: `running_mean/`, `running_var/`, `running_gap_channels/`,
    `gamma/`, `beta/`, and a table `[channels, metrics]` per layer.

    Args:
        every: optimizer steps between samples, or a function of the step.
        layers: names with `*`, or classes; None for all norms.
        detail_every: samples between two with channels; 0 for never.

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

    def __init__(self, every: int | Schedule = 50, layers: Layers | None = None, detail_every: int = 10) -> None:
        super().__init__(every, layers, detail_every)

    def usual_layers(self, model: nn.Module) -> dict[str, nn.Module]:
        return of_kind(model, is_norm) or of_kind(model, is_weighted)

    def find_layers(self, model: nn.Module) -> None:
        super().find_layers(model)
        self.keeping = {name: m for name, m in self.modules.items() if keeps_statistics(m)}
        self.vectors = {"gamma": vectors_of(self.modules, "weight"), "beta": vectors_of(self.modules, "bias")}

    def readings(self) -> Readings:
        return {("input", feature_moments): self.keeping} if self.keeping else {}

    def begin(self, step: Step) -> None:
        """Takes the running statistics as the forward pass will find them; weights and biases too."""
        names, layers = tuple(self.keeping), list(self.keeping.values())
        sizes = tuple(m.running_mean.numel() for m in layers)  # type: ignore[operator]
        both = [
            torch.cat([getattr(m, name).detach() for m in layers]).double().cpu() if layers else torch.zeros(0)
            for name in ("running_mean", "running_var")
        ]
        self.running = Profile(names, sizes, Moments(torch.full_like(both[0], torch.nan), *both))
        self.affine = affine_moments(self.vectors)

    def collect(self, step: Step, heard: Heard) -> Profile:
        return profile(heard["input", feature_moments]) if self.keeping else NOTHING

    def merge(self, step: Step, parts: Sequence[Any]) -> Sample:
        batch = merge_profiles(parts)
        self.tell_of_unreached([*batch.names, *(name for name in self.modules if name not in self.keeping)])
        rows = list(self.modules)
        values = {m: torch.full((len(rows),), torch.nan, dtype=torch.float64) for m in self.metrics}
        applies = {m: torch.zeros(len(rows), dtype=torch.bool) for m in self.metrics}

        def put(metric: str, names: Sequence[str], column: Tensor, known: Tensor | bool = True) -> None:
            place = [rows.index(name) for name in names]
            values[metric][place], applies[metric][place] = column, known

        # Layers whose running statistics are those of the channels of their input.
        batch, running = self.compared = aligned(batch, self.running)
        if batch.names:
            ours, expected = batch.moments.unbiased(), running.moments
            self.channel_gap = gap(ours, expected)
            distances = [self.channel_gap, (w2(ours, expected) / expected.std).square(), kl(ours, expected)]
            varies = expected.var != 0
            found = layer_means(batch.sizes, torch.stack(distances), varies)
            found[1] = found[1].sqrt()
            for metric, column in zip(GAPS, found, strict=True):
                put(metric, batch.names, column, layer_means(batch.sizes, varies.double()) > 0)
        for metric, (names, column) in self.affine.items():
            put(metric, names, column)
        return Sample(rows, values, applies)

    def detail(self, board: Board) -> None:
        batch, running = self.compared
        of_layer: dict[str, dict[str, tuple[str, Tensor]]] = {name: {} for name in self.modules}
        if batch.names:
            told = {
                "batch_mean": ("mean of the batch", batch.moments.mean),
                "batch_var": ("variance of the batch", batch.moments.var),
                "running_mean": ("running mean", running.moments.mean),
                "running_var": ("running variance", running.moments.var),
                "running_gap_channels": ("distance of the means, in running standard deviations", self.channel_gap),
            }
            for what, (unit, whole) in told.items():
                for name, v in zip(batch.names, whole.split(batch.sizes), strict=True):
                    of_layer[name][what] = unit, v
        for what, vectors in self.vectors.items():
            for name, v in vectors.items():
                of_layer[name][what] = f"{what} of the channel", v.detach().double().cpu().flatten()
        for name, columns in of_layer.items():
            for what, (_, v) in columns.items():
                if not what.startswith("batch"):
                    board.histogram(f"{what}/{name}", v)
            if columns and len({v.numel() for _, v in columns.values()}) == 1:
                table = torch.stack([v for _, v in columns.values()], 1)
                rows = [str(i) for i in range(len(table))]
                board.table(f"channels/{name}", rows, {k: unit for k, (unit, _) in columns.items()}, table)


def affine_moments(vectors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, tuple[list[str], Tensor]]:
    """Mean and standard deviation over channels of weights and biases.

    Args:
        vectors: "gamma" or "beta" -> layer -> its values.

    Returns:
        "gamma_mean" and so on -> names of layers, values (L,).
    """
    owners = [(what, name) for what, by_layer in vectors.items() for name in by_layer]
    if not owners:
        return {}
    flat = [vectors[what][name].detach().flatten() for what, name in owners]
    sizes = tuple(len(v) for v in flat)
    whole = torch.cat(flat).double().cpu()
    mean = layer_means(sizes, whole)
    std = layer_means(sizes, (whole - mean[owner_of(sizes)]).square()).sqrt()
    found, at = {}, 0
    for what, by_layer in vectors.items():
        here = slice(at, at + len(by_layer))
        at += len(by_layer)
        found[f"{what}_mean"] = list(by_layer), mean[here]
        found[f"{what}_std"] = list(by_layer), std[here]
    return found


def keeps_statistics(module: nn.Module) -> bool:
    """Whether a layer has a running mean and a running variance, a value per channel."""
    mean, var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    return isinstance(mean, Tensor) and isinstance(var, Tensor) and mean.dim() == 1 and mean.shape == var.shape


def vectors_of(modules: Mapping[str, nn.Module], name: str) -> dict[str, Tensor]:
    """The weights or the biases of norms, where they have some."""
    found = {layer: getattr(module, name, None) for layer, module in modules.items() if is_norm(module)}
    return {layer: v for layer, v in found.items() if isinstance(v, Tensor) and v.numel()}
