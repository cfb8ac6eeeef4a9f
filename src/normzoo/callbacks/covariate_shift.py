"""Do the inputs of a layer keep their distribution?"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from normzoo.distributed.gather import Ranks
from normzoo.errors import InputError
from normzoo.metrics import kl, slope, w1, w2
from normzoo.monitoring.channels import (
    Channels,
    averages,
    feature_moments,
    from_state,
    joined,
    merge_channels,
    merge_passes,
    shared_layers,
    to_state,
)
from normzoo.monitoring.layers import Layers, is_compiled, is_norm, is_weighted, named_layers, of_kind
from normzoo.monitoring.monitor import Monitor
from normzoo.monitoring.probe import Probe
from normzoo.monitoring.replica import Replica
from normzoo.monitoring.sample import Readings, Seen, Step, Table
from normzoo.monitoring.schedule import Schedule
from normzoo.monitoring.writer import EventWriter

RECENT = 8
"""Samples of training that evaluation is compared with."""


class CovariateShift(Monitor):
    """Shows how the distribution of each layer's input changes: during training, from input to output, and on new data.

    `W1 = mean_c W1_c / sigma_c`,  `W2 = sqrt(mean_c (dmu^2 + dsigma^2) / sigma_c^2)`,  `KL = mean_c KL_c`

    Each channel of the input is described by a Gaussian with the mean and variance of the batch, over all ranks. sigma
    is the standard deviation of the distribution compared with; channels that are constant there are left out.

    - `drift_w1/`, `drift_w2/`, `drift_kl/`: the input against a reference, the first sample from `reference_step` on;
    - `step_w1/`, `step_w2/`, `step_kl/`: the input against the previous sample;
    - `in_out_w2/`: the layer's output against its input, where they have the same channels;
    - `val_w2/` and `test_w2/`: the inputs of evaluation against those of the last 8 samples of training;
    - `depth_slope/`: the growth of each of these from layer to layer; above 0, the shift is larger with depth.

    W1 and W2 are in standard deviations, KL in nats per channel, slopes in their units per layer. The chart with a line
    for each layer and the heatmap at the end of the run show the profile over depth.

    Args:
        every: optimizer steps between samples, or a function of the step; None for 50, or less in a run so short
            that there were fewer than 20 samples.
        layers: names or classes, with `*`; None for all norms, or, in a network without any, all layers with weights.
        reference_step: the first sample at this step or later is the reference.
        evaluation_batches: the number of batches of each validation and test to read; 0 for none.

    Raises:
        InputError: `layers` matches nothing; a number out of range.
    """

    question = "Covariate shift"
    metrics: Mapping[str, str] = {
        "drift_w1": "Wasserstein-1 distance of the input from the reference, in the reference's standard deviations",
        "drift_w2": "Wasserstein-2 distance of the input from the reference, in the reference's standard deviations",
        "drift_kl": "Kullback-Leibler divergence of the input from the reference, in nats per channel",
        "step_w1": "Wasserstein-1 distance of the input from the previous sample, in its standard deviations",
        "step_w2": "Wasserstein-2 distance of the input from the previous sample, in its standard deviations",
        "step_kl": "Kullback-Leibler divergence of the input from the previous sample, in nats per channel",
        "in_out_w2": "Wasserstein-2 distance of the output from the input, in the input's standard deviations",
    }
    totals: Mapping[str, str] = {
        "val_w2/": "Wasserstein-2 distance of validation from training, in training's standard deviations",
        "test_w2/": "Wasserstein-2 distance of testing from training, in training's standard deviations",
        "depth_slope/": "growth of a distance from layer to layer, in its units per layer",
    }

    def __init__(
        self,
        every: int | Schedule | None = None,
        layers: Layers | None = None,
        reference_step: int = 0,
        evaluation_batches: int = 8,
    ) -> None:
        super().__init__(every, layers, detail_every=0)
        for name, value in (("reference_step", reference_step), ("evaluation_batches", evaluation_batches)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise InputError(f"CovariateShift({name}={value!r}): give a number of 0 or more.")
        self.reference_step = reference_step
        self.evaluation_batches = evaluation_batches

    def reset(self) -> None:
        super().reset()
        self.reference: Channels = {}
        self.recent: deque[Channels] = deque(maxlen=RECENT)
        self.evaluated: list[Channels] = []
        self.probe: Probe | None = None
        self.replica: Replica | None = None
        self.new_data: dict[str, dict[str, float]] = {}
        """The newest comparison with other data: "val_w2" or "test_w2" -> layer -> value."""

    def usual_layers(self, model: nn.Module) -> dict[str, nn.Module]:
        return of_kind(model, is_norm) or of_kind(model, is_weighted)

    def readings(self) -> Readings:
        return {("input", feature_moments): self.modules, ("output", feature_moments): self.modules}

    def read(self, step: Step, seen: Seen) -> tuple[Channels, Channels]:
        return merge_passes(seen["input", feature_moments]), merge_passes(seen["output", feature_moments])

    def merge(self, parts: Sequence[tuple[Channels, Channels]]) -> tuple[Channels, Channels]:
        inputs, outputs = zip(*parts, strict=True)
        return merge_channels(inputs), merge_channels(outputs)

    def compute(self, number: int, sample: tuple[Channels, Channels]) -> Table | None:
        inputs, outputs = sample
        self.warn_of_unreached(inputs)
        if not inputs:
            return None
        begun = number >= self.reference_step
        if begun:
            self.reference = {**inputs, **self.reference}  # a layer may run for the first time later
        pairs = {
            "drift": (inputs, self.reference if begun else {}),
            "step": (inputs, self.recent[-1] if self.recent else {}),
            "in_out": (outputs, inputs),
        }
        self.recent.append(inputs)
        values = {metric: by_layer for metric, by_layer in distances(pairs).items() if metric in self.metrics}
        return Table(list(inputs), values)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.ranks = Ranks()  # while all ranks are here: later, one may have failed

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.ranks.close()

    # Evaluation: the inputs of its layers, compared with those of training.

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if not trainer.sanity_checking:
            self.read_evaluation(trainer, pl_module, "validation_step", batch, batch_idx, dataloader_idx)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.read_evaluation(trainer, pl_module, "test_step", batch, batch_idx, dataloader_idx)

    def read_evaluation(
        self, trainer: Trainer, module: LightningModule, step: str, batch: Any, batch_idx: int, dataloader_idx: int
    ) -> None:
        """Attaches a probe for one of the first batches of the first loader; of a compiled network, runs a copy."""
        if batch_idx >= self.evaluation_batches or dataloader_idx > 0 or not self.recent:
            return
        if not self.modules:  # a test of a checkpoint in a new Trainer
            self.find_layers(module)
        is_copy = is_compiled(module)
        if is_copy:
            self.replica = self.replica or Replica(trainer, module)
            module = self.replica.refresh().module
        named = dict(named_layers(module))  # a test may be of another module than the one that was trained
        layers = {name: named[name] for name in self.modules if name in named}
        self.probe = Probe(module, layers, input=feature_moments)
        self.probe.__enter__()
        if is_copy and self.replica is not None:
            with torch.no_grad():
                self.replica.run(step, batch, batch_idx)
            self.detach()

    def detach(self) -> None:
        """Removes the probe, and keeps what it read."""
        if self.probe is not None:
            self.probe.__exit__()
            self.evaluated.append(merge_passes((visit.name, visit.input) for visit in self.probe.visits))
            self.probe = None

    def on_validation_batch_end(self, *unused: Any) -> None:
        self.detach()

    def on_test_batch_end(self, *unused: Any) -> None:
        self.detach()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.compare(trainer, "val_w2")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.compare(trainer, "test_w2")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.detach()
        self.evaluated = []

    def compare(self, trainer: Trainer, metric: str) -> None:
        """Writes how far evaluation is from training. All ranks call it, whatever their number of batches."""
        if not self.recent or trainer.sanity_checking:
            return
        own, self.evaluated, self.replica = self.evaluated, [], None
        evaluated = merge_channels([part for of_rank in self.ranks.gather(own) for part in of_rank])
        trained = merge_channels(self.recent)
        if not evaluated:
            return
        found = distances({"new": (evaluated, trained)})["new_w2"]
        self.new_data[metric] = found
        writer, step = EventWriter(trainer), trainer.global_step
        writer.scalars(step, {f"{metric}/{name}": value for name, value in found.items()})
        writer.scalars(step, slopes({metric: found}, list(trained)))
        column = torch.tensor([[found.get(name, torch.nan)] for name in trained])
        units = {metric: self.totals[f"{metric}/"]}
        writer.table(step, f"normalization/{self.label}/{metric}", list(trained), units, column)
        writer.flush()

    def state_dict(self) -> dict[str, Any]:
        recent = [to_state(one) for one in self.recent]
        return {**super().state_dict(), "reference": to_state(self.reference), "recent": recent}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.reference = from_state(state_dict["reference"])
        self.recent = deque(map(from_state, state_dict["recent"]), maxlen=RECENT)


def distances(pairs: Mapping[str, tuple[Channels, Channels]]) -> dict[str, dict[str, float]]:
    """How far each p is from its q: W1 and W2 in standard deviations of q, KL in nats.

    Args:
        pairs: name -> (p, q).

    Returns:
        "NAME_w1", "NAME_w2" and "NAME_kl" -> layer -> value, for the layers that both have. Channels that are constant
        in q do not count, for KL also those that are constant in p; a layer without others has no value.
    """
    found: dict[str, dict[str, float]] = {f"{pair}_{metric}": {} for pair in pairs for metric in ("w1", "w2", "kl")}
    rows = [(pair, name) for pair, (p, q) in pairs.items() for name in shared_layers(p, q)]
    if not rows:
        return found
    p, q = (joined([pairs[pair][side][name] for pair, name in rows]) for side in (0, 1))  # all at once: it is faster
    sizes = [len(pairs[pair][0][name].mean) for pair, name in rows]
    known = q.var != 0
    columns = torch.stack([w1(p, q) / q.std, (w2(p, q) / q.std).square(), kl(p, q)])
    means = averages(sizes, columns, torch.stack([known, known, known & (p.var != 0)]))
    for (pair, name), shift, square, divergence in zip(rows, *means, strict=True):
        values = {"w1": shift, "w2": None if square is None else square**0.5, "kl": divergence}
        for metric, value in values.items():
            if value is not None:
                found[f"{pair}_{metric}"][name] = value
    return found


def slopes(values: Mapping[str, Mapping[str, float]], layers: Sequence[str]) -> dict[str, float]:
    """Tag -> the slope of a metric from layer to layer, where at least two layers have a finite value."""
    table = torch.tensor([[by_layer.get(name, torch.nan) for name in layers] for by_layer in values.values()])
    found = slope(table.double()).tolist()
    return {f"depth_slope/{metric}": value for metric, value in zip(values, found, strict=True) if value == value}
