"""Do the running statistics tell what batches are like?"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from normzoo.callbacks._board import Board
from normzoo.callbacks._channels import Channels, joined, merged
from normzoo.callbacks._monitor import Monitor, Sample, Step
from normzoo.callbacks.schedule import Schedule
from normzoo.metrics import Moments, gap, kl, moments, w2
from normzoo.probes import Layers, Probe, Visit, feature_axis, is_norm, is_weighted, of_kind

GAPS = ("running_gap", "running_w2", "running_kl")
AFFINE = ("gamma_mean", "gamma_std", "beta_mean", "beta_std")


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
        self.affine: dict[str, tuple[Tensor | None, Tensor | None]] = {}

    def probe(self, model: nn.Module, modules: Mapping[str, nn.Module]) -> Probe | None:
        keeping = {name: modules[name] for name in self.keeping if name in modules}
        return Probe(model, keeping, input=input_moments) if keeping else None

    def begin(self, step: Step) -> None:
        """Takes the running statistics as the forward pass will find them; weights and biases too."""
        layers = self.keeping.values()
        self.before = [
            torch.cat([getattr(m, name).detach() for m in layers]).double().cpu() if self.keeping else torch.zeros(0)
            for name in ("running_mean", "running_var")
        ]
        self.learned = self.affine_moments()

    def collect(self, step: Step, visits: Sequence[Visit]) -> dict[str, Moments]:
        return moments_by_layer(visits)

    def merge(self, step: Step, parts: Sequence[Any]) -> Sample:
        batch = over_ranks(parts)
        self.tell_of_unreached([*batch, *(name for name in self.modules if name not in self.keeping)])
        rows = list(self.modules)
        gaps = self.gaps(batch)
        values, applies = {}, {}
        for names, found in ((GAPS, gaps), (AFFINE, self.learned)):
            for i, metric in enumerate(names):
                column = torch.full((len(rows),), torch.nan, dtype=torch.float64)
                known = torch.zeros(len(rows), dtype=torch.bool)
                for r, row in enumerate(rows):
                    if row in found and (value := found[row][i]) is not None:
                        column[r], known[r] = value, True
                values[metric], applies[metric] = column, known
        return Sample(rows, values, applies)

    def gaps(self, batch: Mapping[str, Moments]) -> dict[str, list[float | None]]:
        """Gap, W2 and KL of every layer that has been reached and keeps a statistic for each channel of its input."""
        sizes = [m.running_mean.numel() for m in self.keeping.values()]  # type: ignore[operator]
        mean, var = (part.split(sizes) for part in self.before)
        self.compared = {
            name: (batch[name].unbiased(), Moments(batch[name].n, mean[i], var[i]))
            for i, name in enumerate(self.keeping)
            if name in batch and batch[name].mean.numel() == sizes[i]
        }
        if not self.compared:
            return {}
        ours, running = (joined(list(side)) for side in zip(*self.compared.values(), strict=True))
        channels = Channels([b.mean.numel() for b, _ in self.compared.values()])
        self.channel_gap = gap(ours, running)
        stacked = torch.stack([self.channel_gap, (w2(ours, running) / running.std).square(), kl(ours, running)])
        found = channels.mean(stacked, running.var > 0)
        found[1] = found[1].sqrt()
        return {name: list(column) for name, column in zip(self.compared, found.T.tolist(), strict=True)}

    def affine_moments(self) -> dict[str, list[float | None]]:
        """Mean and standard deviation over channels of weight and bias, of every layer that has them."""
        pairs = {
            name: (vector(module, "weight"), vector(module, "bias"))
            for name, module in self.modules.items()
            if is_norm(module)
        }
        self.affine = {name: pair for name, pair in pairs.items() if any(v is not None for v in pair)}
        owners = [(name, i) for name, pair in self.affine.items() for i in (0, 1) if pair[i] is not None]
        if not owners:
            return {}
        vectors = [self.affine[name][i].detach() for name, i in owners]  # type: ignore[union-attr]
        channels = Channels([v.numel() for v in vectors])
        flat = torch.cat([v.flatten() for v in vectors]).double().cpu()
        mean = channels.mean(flat)
        std = channels.mean((flat - mean[channels.owner]).square()).sqrt()
        found: dict[str, list[float | None]] = {name: [None] * 4 for name in self.affine}
        for (name, i), a, b in zip(owners, mean.tolist(), std.tolist(), strict=True):
            found[name][2 * i : 2 * i + 2] = a, b
        return found

    def detail(self, board: Board) -> None:
        gaps = self.channel_gap.split([b.mean.numel() for b, _ in self.compared.values()]) if self.compared else ()
        by_layer = dict(zip(self.compared, gaps, strict=True))
        for name in self.modules:
            columns: dict[str, tuple[str, Tensor]] = {}
            if name in self.compared:
                ours, running = self.compared[name]
                columns |= {
                    "batch_mean": ("mean of the batch", ours.mean.cpu()),
                    "batch_var": ("variance of the batch", ours.var.cpu()),
                    "running_mean": ("running mean", running.mean),
                    "running_var": ("running variance", running.var),
                    "running_gap_channels": ("distance of the means, in running standard deviations", by_layer[name]),
                }
            for what, v in zip(("gamma", "beta"), self.affine.get(name, (None, None)), strict=True):
                if v is not None:
                    columns[what] = (f"{what} of the channel", v.detach().double().cpu().flatten())
            for what, (_, v) in columns.items():
                if not what.startswith("batch"):
                    board.histogram(f"{what}/{name}", v)
            if columns and len({v.numel() for _, v in columns.values()}) == 1:
                table = torch.stack([v for _, v in columns.values()], 1)
                rows = [str(i) for i in range(len(table))]
                board.table(f"channels/{name}", rows, {k: unit for k, (unit, _) in columns.items()}, table)


def keeps_statistics(module: nn.Module) -> bool:
    """Whether a layer has a running mean and a running variance, a value per channel."""
    mean, var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    return isinstance(mean, Tensor) and isinstance(var, Tensor) and mean.dim() == 1 and mean.shape == var.shape


def vector(module: nn.Module, name: str) -> Tensor | None:
    """A layer's weight or bias, where it has one with values."""
    found = getattr(module, name, None)
    return found if isinstance(found, Tensor) and found.numel() else None


def input_moments(module: nn.Module, x: Tensor) -> Moments:
    """What a probe reads of an input: count, mean and variance of each feature."""
    return moments(x, feature_axis(module, x))


def moments_by_layer(visits: Sequence[Visit], what: str = "input") -> dict[str, Moments]:
    """The moments of each layer that has been visited, over all visits, on the CPU; in the order of execution."""
    found: dict[str, list[Moments]] = {}
    for visit in visits:
        value = getattr(visit, what)
        if value is not None:
            found.setdefault(visit.name, []).append(value)
    same = {name: [m for m in many if m.mean.shape == many[0].mean.shape] for name, many in found.items()}
    return {name: Moments(*(t.cpu() for t in merged(many))) for name, many in same.items()}


def over_ranks(parts: Sequence[Mapping[str, Moments]]) -> dict[str, Moments]:
    """The moments of each layer over the batches of all ranks, from those of each rank."""
    if len(parts) == 1:
        return dict(parts[0])
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: merged([part[name] for part in parts if name in part]) for name in names}
