"""Do the running statistics describe the batches?"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from normzoo.metrics import Moments, gap, kl, w2
from normzoo.monitoring.channels import (
    Channels,
    averages,
    feature_moments,
    joined,
    merge_channels,
    merge_passes,
    shared_layers,
)
from normzoo.monitoring.layers import Layers, is_norm, is_weighted, of_kind
from normzoo.monitoring.monitor import Monitor
from normzoo.monitoring.sample import Readings, Seen, Step, Table
from normzoo.monitoring.schedule import Schedule
from normzoo.monitoring.writer import EventWriter


class Sample(NamedTuple):
    """What is read of a step."""

    batch: Channels
    running: Channels
    """The running statistics before the step."""
    learned: dict[str, dict[str, Tensor]]
    """"gamma" or "beta" -> layer -> (C_l,)."""


class RunningStatistics(Monitor):
    """Shows the distance of the batch statistics from the running statistics, which evaluation uses; gamma and beta.

    `gap = mean_c |mu_B - mu_r| / sigma_r`,  `W2 = sqrt(mean_c (dmu^2 + dsigma^2) / sigma_r^2)`,
    `KL = mean_c (ln(var_r / var_B) + (var_B + dmu^2) / var_r - 1) / 2`,
    `lag = median_c (u u' / 2 + s s' / 4)` with `u = dmu sqrt((1 / var_B + 1 / var_r) / 2)` and
    `s = sigma_B / sigma_r - sigma_r / sigma_B`

    B is the training batch, over all ranks, with the unbiased variance; r the running statistics before the layer has
    seen it. A layer that runs twice in a step is compared with both batches together. Channels whose running variance
    is 0 are left out, in KL and lag also those that are constant in the batch. Layers without running mean and variance
    of their input's channels show gamma and beta alone; a network without norms shows nothing.

    Lag is the symmetric divergence `(KL(B || r) + KL(r || B)) / 2` with one factor of each square from this sample and
    one, `u'` and `s'`, from the sample before: about 0 where batches differ by chance alone, whatever their size.

    Tags, each with the name of the layer: `running_gap/`, `running_w2/` in running standard deviations, `running_kl/`
    and `running_lag/` in nats per channel; `gamma_mean/`, `gamma_std/`, `beta_mean/`, `beta_std/` over the channels of
    weight and bias. Every 1000 steps also a table `[channels, metrics]` per layer.

    Args:
        every: optimizer steps between samples, or a function of the step; None for 200, or less in a run so short
            that there were fewer than 20 samples.
        layers: names or classes, with `*`; None for all norms.
        detail_every: at least so many optimizer steps between samples with channels; 0 for never; None for 1000, or
            less in a short run.

    Raises:
        InputError: `layers` matches nothing; a number out of range.
    """

    question = "Running statistics"
    metrics: Mapping[str, str] = {
        "running_gap": "mean distance of batch mean and running mean, in running standard deviations",
        "running_w2": "Wasserstein-2 distance of batch and running statistics, in running standard deviations",
        "running_kl": "Kullback-Leibler divergence of the batch from the running statistics, in nats per channel",
        "running_lag": "symmetric divergence of batch and running statistics without noise, median, nats per channel",
        "gamma_mean": "mean of the weight over channels",
        "gamma_std": "standard deviation of the weight over channels",
        "beta_mean": "mean of the bias over channels",
        "beta_std": "standard deviation of the bias over channels",
    }

    def __init__(
        self, every: int | Schedule | None = None, layers: Layers | None = None, detail_every: int | None = None
    ) -> None:
        super().__init__(every, layers, detail_every)

    def reset(self) -> None:
        super().reset()
        self.differences: dict[str, Tensor] = {}
        """Of the newest sample, see `differences`."""

    def usual_layers(self, model: nn.Module) -> dict[str, nn.Module]:
        return of_kind(model, is_norm) or of_kind(model, is_weighted)

    def find_layers(self, model: nn.Module) -> None:
        super().find_layers(model)
        self.keeping = {name: module for name, module in self.modules.items() if keeps_statistics(module)}

    def readings(self) -> Readings:
        return {("input", feature_moments): self.keeping}

    def begin(self, step: Step) -> None:
        """Copies the running statistics, weights and biases as the forward pass finds them."""
        one = torch.ones((), dtype=torch.float64)
        self.running = {
            name: Moments(one, copied(m.running_mean), copied(m.running_var))  # type: ignore[arg-type] # tensors
            for name, m in self.keeping.items()
        }
        self.learned = {"gamma": vectors_of(self.modules, "weight"), "beta": vectors_of(self.modules, "bias")}

    def read(self, step: Step, seen: Seen) -> Sample:
        return Sample(merge_passes(seen["input", feature_moments]), self.running, self.learned)

    def merge(self, parts: Sequence[Sample]) -> Sample:
        return parts[0]._replace(batch=merge_channels([part.batch for part in parts]))

    def compute(self, number: int, sample: Sample) -> Table:
        self.warn_of_unreached([*sample.batch, *(name for name in self.modules if name not in self.keeping)])
        before, self.differences = self.differences, differences(sample)
        both = {n: (one, before[n]) for n, one in self.differences.items() if n in before}
        lags = {n: lag(*pair) for n, pair in both.items() if pair[0].shape == pair[1].shape}
        values = {
            **gaps(sample),
            "running_lag": {n: value for n, value in lags.items() if not math.isnan(value)},
            **spreads(sample.learned),
        }
        return Table(list(self.modules), values)

    def detail(self, writer: EventWriter, number: int, sample: Sample) -> None:
        for name in self.modules:
            columns = dict(channels_of(name, sample))
            if columns and len({values.numel() for _, values in columns.values()}) == 1:
                table = torch.stack([values for _, values in columns.values()], 1)
                units = {what: unit for what, (unit, _) in columns.items()}
                writer.table(number, f"channels/{name}", list(map(str, range(len(table)))), units, table)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "differences": dict(self.differences)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.differences = dict(state_dict["differences"])


def gaps(sample: Sample) -> dict[str, dict[str, float]]:
    """Metric -> layer -> the distance of the batch from the running statistics."""
    names = shared_layers(sample.batch, sample.running)
    if not names:
        return {}
    batch, running = (joined([channels[name] for name in names]) for channels in (sample.batch, sample.running))
    batch = batch.unbiased()
    sizes = [len(sample.running[name].mean) for name in names]
    known = (batch.n > 1) & (running.var != 0)
    columns = torch.stack([gap(batch, running), (w2(batch, running) / running.std).square(), kl(batch, running)])
    means = averages(sizes, columns, torch.stack([known, known, known & (batch.var != 0)]))
    found = {
        metric: {name: value for name, value in zip(names, row, strict=True) if value is not None}
        for metric, row in zip(("running_gap", "running_w2", "running_kl"), means, strict=True)
    }
    return {**found, "running_w2": {name: square**0.5 for name, square in found["running_w2"].items()}}


def differences(sample: Sample) -> dict[str, Tensor]:
    """Layer -> (2, C_l), u and s of each channel; NaN where the batch or the running statistics are constant."""
    names = shared_layers(sample.batch, sample.running)
    if not names:
        return {}
    batch, running = (joined([channels[name] for name in names]) for channels in (sample.batch, sample.running))
    batch = batch.unbiased()
    means = (batch.mean - running.mean) * ((1 / batch.var + 1 / running.var) / 2).sqrt()
    spreads = batch.std / running.std - running.std / batch.std  # 2 sinh of half the logarithm of var_B / var_r
    both = torch.stack([means, spreads]).where((batch.var > 0) & (running.var > 0), torch.nan)
    return dict(zip(names, both.split([len(sample.running[name].mean) for name in names], 1), strict=True))


def lag(now: Tensor, before: Tensor) -> float:
    """The median over channels of the lag, from u and s in two samples, (2, C) each; NaN if no channel has one."""
    u, s = now * before
    return (u / 2 + s / 4).nanmedian().item()


def spreads(learned: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, float]]:
    """Metric -> layer -> mean and standard deviation of gamma and beta over the channels."""
    found = {}
    for what, by_layer in learned.items():
        found[f"{what}_mean"] = {name: v.mean().item() for name, v in by_layer.items()}
        found[f"{what}_std"] = {name: v.std(correction=0).item() for name, v in by_layer.items()}
    return found


def channels_of(layer: str, sample: Sample) -> Iterator[tuple[str, tuple[str, Tensor]]]:
    """The columns of a layer's table of channels: name, unit and values (C_l,)."""
    if layer in shared_layers(sample.batch, sample.running):
        batch, running = sample.batch[layer].unbiased(), sample.running[layer]
        yield "batch_mean", ("mean of the batch", batch.mean)
        yield "batch_var", ("unbiased variance of the batch", batch.var)
        yield "running_mean", ("running mean", running.mean)
        yield "running_var", ("running variance", running.var)
        yield "running_gap_channels", ("distance of the means, in running standard deviations", gap(batch, running))
    for what, by_layer in sample.learned.items():
        if layer in by_layer:
            yield what, (f"{what} of the channel", by_layer[layer])


def keeps_statistics(module: nn.Module) -> bool:
    """Whether a layer has a running mean and a running variance, with one value per channel."""
    mean, var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    return isinstance(mean, Tensor) and isinstance(var, Tensor) and mean.dim() == 1 and mean.shape == var.shape


def copied(values: Tensor) -> Tensor:
    """A copy on the CPU, in float64; of a sharded tensor, all of it."""
    values = values.full_tensor() if hasattr(values, "full_tensor") else values
    return values.detach().flatten().to("cpu", torch.float64, copy=True)


def vectors_of(modules: Mapping[str, nn.Module], name: str) -> dict[str, Tensor]:
    """Copies of the weights or the biases of norms that have some."""
    found = {layer: getattr(module, name, None) for layer, module in modules.items() if is_norm(module)}
    return {layer: copied(v) for layer, v in found.items() if isinstance(v, Tensor) and v.numel()}
