"""Do the inputs of a layer keep their distribution?"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn

from normzoo.distributed.gather import Ranks
from normzoo.errors import InputError
from normzoo.metrics import Moments, kl, spread_between, w1, w2
from normzoo.monitoring.channels import (
    Channels,
    averages,
    feature_moments,
    from_state,
    joined,
    merge_channels,
    merge_passes,
    pooled,
    shared_layers,
    to_state,
)
from normzoo.monitoring.layers import Layers, is_compiled, is_norm, is_weighted, named_layers, of_kind
from normzoo.monitoring.monitor import Monitor
from normzoo.monitoring.probe import Probe
from normzoo.monitoring.replica import Replica, copied_batch, has_own_loop, plain, size_of
from normzoo.monitoring.sample import Readings, Seen, Step, Table
from normzoo.monitoring.schedule import Schedule
from normzoo.monitoring.writer import EventWriter

BATCHES = 8
"""Batches of training that evaluation is compared with."""
KEPT_BYTES = 1 << 28
"""Fewer batches are kept if they are larger than this together."""
UNCERTAIN = 0.05
"""Squared relative error of a feature's standard deviation above which it is left out."""
RARE = 1e-3
"""The variance of a feature, as a share of the mean over its layer, below which it is left out."""
SAVED_BYTES = 1 << 22
"""Batches that are larger than this together, those of all ranks, are not kept in checkpoints."""


class Sample(NamedTuple):
    """What is read of a step."""

    inputs: Channels
    outputs: Channels
    batch: Any
    """This rank's batch and its number, for checkpoints; None with a single rank."""


class CovariateShift(Monitor):
    """Shows how the distribution of each layer's input changes: over time, over depth, and on new data.

    `W1 = mean_c W1_c / sigma_c`,  `W2 = sqrt(mean_c (dmu^2 + dsigma^2) / sigma_c^2)`,  `KL = mean_c KL_c`

    Each feature c of the input is described by a Gaussian with its mean and variance over the batch of all ranks. sigma
    is the standard deviation of the distribution compared with; features that are constant there are left out.

    **Over time**, during training:

    - `drift_w1`, `drift_w2`, `drift_kl`: the input against a reference, the first sample from `reference_step` on;
    - `step_w2`: the input against the previous sample.

    **Over depth**, in one sample, W2 of all values of a layer together, whatever their feature, in standard deviations
    of the former:

    - `block_w2`: the input of the next layer with weights against this layer's: what layer, norm and activation change;
    - `depth_w2`: the input against the network's input, that of the first layer with weights;
    - `in_out_w2`: the output of a norm against its input, feature by feature;
    - `mean`, `std`, `count`: mean and standard deviation of the input, and how many values each feature has.

    **On new data**, validation and test against training:

    - `val_w2`, `test_w2`: the first batches of the evaluation against up to 8 batches of training, the first of the run
      and then those of the newest samples. When evaluation begins, these run once more through the module's
      `training_step`, on a copy of the module, with the weights and in the mode of the evaluation. What data
      augmentation changes is part of the distance. Manual optimization takes `validation_step` and `test_step` for
      them;
    - `val_w2_floor`, `test_w2_floor`: the noise floor, which as many values of the training's distribution give,
      `floor^2 = (1 / N_p + 1 / N_q) mean_c s_c^2 / sigma_c^2` with the unbiased variance between the batches of
      training `s_c^2 = sum_k n_k ((mu_kc - mu_c)^2 + (sigma_kc - sigma_c)^2) / (K - 1)`: with K_p and K_q batches of
      one size it is `(1 / K_p + 1 / K_q) mean_c (Var_k mu_kc + Var_k sigma_kc) / sigma_c^2`. Distances of
      one to two floors are no shift; there is no floor of a single batch. Features that hardly vary in training, as a
      unit that is active for one sample in a hundred, are left out: sigma is not known where
      `s_c^2 / (N_q sigma_c^2) > 0.05`, nor where `sigma_c^2` is below a thousandth of the mean over the layer;
    - `drift_w2_floor`: the same for a single batch against another, in the mode of evaluation.

    A validation is compared if a tenth of the run has passed since the last one that was, or if it is the last; a test
    always. W1, W2 and their floors are in standard deviations, KL in nats per feature.

    Args:
        every: optimizer steps between samples, or a function of the step; None for 200, or less in a run so short
            that there were fewer than 20 samples.
        layers: names or classes, with `*`; None for all norms and all layers with weights.
        reference_step: the first sample at this step or later is the reference.
        evaluation_batches: the number of batches of each validation and test to read; 0 for none.

    Raises:
        InputError: `layers` matches nothing; a number out of range.

    Reference: Sergey Ioffe, Christian Szegedy. Batch Normalization: Accelerating Deep Network Training by Reducing
    Internal Covariate Shift. 2015. arXiv 1502.03167.
    """

    question = "Covariate shift"
    metrics: Mapping[str, str] = {
        "drift_w1": "Wasserstein-1 distance of the input from the reference, in the reference's standard deviations",
        "drift_w2": "Wasserstein-2 distance of the input from the reference, in the reference's standard deviations",
        "drift_kl": "Kullback-Leibler divergence of the input from the reference, in nats per feature",
        "step_w2": "Wasserstein-2 distance of the input from the previous sample, in its standard deviations",
        "in_out_w2": "Wasserstein-2 distance of a norm's output from its input, in the input's standard deviations",
        "block_w2": "Wasserstein-2 distance of the next layer's input from this one's, in the latter's standard "
        "deviations, of all values together",
        "depth_w2": "Wasserstein-2 distance of the input from the network's input, in the latter's standard "
        "deviations, of all values together",
        "val_w2": "Wasserstein-2 distance of validation from training at equal weights, in training's standard "
        "deviations",
        "val_w2_floor": "val_w2 of as many values of the training's distribution",
        "test_w2": "Wasserstein-2 distance of testing from training at equal weights, in training's standard "
        "deviations",
        "test_w2_floor": "test_w2 of as many values of the training's distribution",
        "drift_w2_floor": "drift_w2 of two batches of the training's distribution at equal weights",
        "mean": "mean of the input, in its units",
        "std": "standard deviation of the input, of all values together, in its units",
        "count": "values of each feature of the input",
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
        self.run_length = math.inf

    def reset(self) -> None:
        super().reset()
        self.reference: Channels = {}
        self.previous: Channels = {}
        self.batches: deque[tuple[Any, int]] = deque(maxlen=BATCHES)
        """The newest batches that were sampled, on the CPU, with their numbers."""
        self.saved: deque[list[Any]] = deque(maxlen=BATCHES)
        """Those of all ranks, for checkpoints, if there are several ranks."""
        self.kept_at = -1
        self.is_full = False
        self.compared_at = -1
        self.compares = False
        self.forget_evaluation()

    def forget_evaluation(self) -> None:
        """Forgets what was read of an evaluation."""
        self.trained: list[Channels] | None = None
        self.evaluated: list[Channels] = []
        self.probe: Probe | None = None
        self.replica: Replica | None = None

    def set_rates(self, steps: float) -> None:
        super().set_rates(steps)
        self.run_length = steps

    def usual_layers(self, model: nn.Module) -> dict[str, nn.Module]:
        takes_indices = nn.Embedding | nn.EmbeddingBag
        return of_kind(model, lambda m: is_norm(m) or (is_weighted(m) and not isinstance(m, takes_indices)))

    def find_layers(self, model: nn.Module) -> None:
        super().find_layers(model)
        self.weighted = [name for name, m in self.modules.items() if is_weighted(m)] or list(self.modules)
        self.norms = [name for name, m in self.modules.items() if is_norm(m)]

    # Training.

    def readings(self) -> Readings:
        return {("input", feature_moments): self.modules, ("output", feature_moments): self.norms}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keeps the first batches, too: a first validation may come before there are enough samples."""
        if len(self.batches) < BATCHES and not self.is_full and not self.ranks.many:
            self.keep(trainer.global_step, batch, batch_idx)

    def begin(self, step: Step) -> None:
        """Keeps the batch."""
        self.keep(step.number, step.batch, step.batch_idx)

    def keep(self, number: int, batch: Any, batch_idx: int) -> None:
        """Copies a batch, before the step can change it, unless one of this step is there."""
        if self.evaluation_batches and number != self.kept_at:
            self.kept_at = number
            self.batches.append((move_data_to_device(copied_batch(batch), torch.device("cpu")), batch_idx))
            while sum(size_of(batch) for batch, _ in self.batches) > KEPT_BYTES and len(self.batches) > 1:
                self.batches.popleft()
                self.is_full = True

    def read(self, step: Step, seen: Seen) -> Sample:
        inputs, outputs = (merge_passes(seen[site]) for site in self.readings())
        return Sample(inputs, outputs, as_saved(self.batches[-1]) if step.ranks.many and self.batches else None)

    def merge(self, parts: Sequence[Sample]) -> Sample:
        if len(parts) > 1:
            self.saved.append([part.batch for part in parts])
        inputs, outputs, _ = zip(*parts, strict=True)
        return Sample(merge_channels(inputs), merge_channels(outputs), None)

    def compute(self, number: int, sample: Sample) -> Table | None:
        inputs = sample.inputs
        self.warn_of_unreached(inputs)
        if not inputs:
            return None
        begun = number >= self.reference_step
        if begun:
            self.reference = {**inputs, **self.reference}  # a layer may run for the first time later
        pairs = {
            "drift": (inputs, self.reference if begun else {}),
            "step": (inputs, self.previous),
            "in_out": (sample.outputs, inputs),
        }
        self.previous = inputs
        values = {metric: by_layer for metric, by_layer in distances(pairs).items() if metric in self.metrics}
        return Table(list(inputs), {**values, **over_depth(inputs, self.weighted)})

    # Evaluation: the inputs of its layers, and those of batches of training at the same weights.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.ranks = Ranks()  # while all ranks are here: later, one may have failed

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.ranks.close()

    def is_due(self, trainer: Trainer) -> bool:
        """Whether a validation is compared: after a tenth of the run, and at its end. The same on all ranks."""
        if trainer.sanity_checking or not self.evaluation_batches:
            return False
        if trainer.state.fn == TrainerFn.FITTING and self.compared_at >= 0 and math.isfinite(self.run_length):
            step = trainer.global_step
            return step >= self.run_length or step - self.compared_at >= self.run_length / 10
        return True

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.compares = self.is_due(trainer)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.compares = self.evaluation_batches > 0

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.read_evaluation(trainer, pl_module, "validation_step", batch, batch_idx, dataloader_idx)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.read_evaluation(trainer, pl_module, "test_step", batch, batch_idx, dataloader_idx)

    def read_evaluation(
        self, trainer: Trainer, module: LightningModule, step: str, batch: Any, batch_idx: int, dataloader_idx: int
    ) -> None:
        """Attaches a probe for one of the first batches of the first loader; of a compiled network, runs a copy."""
        if not self.compares or batch_idx >= self.evaluation_batches or dataloader_idx > 0:
            return
        if self.trained is None:  # now, as callbacks that evaluate other weights have set them, and reset them later
            self.trained = self.read_training(trainer, module, step)
        if not self.trained:
            return
        if is_compiled(module) and self.replica is not None:
            self.evaluated.append(self.read_copy(self.replica, step, batch, batch_idx))
        else:
            self.probe = self.probe_of(module)
            self.probe.__enter__()

    def read_training(self, trainer: Trainer, module: LightningModule, step: str) -> list[Channels]:
        """Runs the batches of training on a copy, as it is now. All ranks call it: steps may wait for each other."""
        count = min(self.ranks.gather(len(self.batches)))
        if count == 0:
            return []
        if not self.modules:  # a test of a checkpoint in a new Trainer
            self.find_layers(module)
        try:
            self.replica = Replica(trainer, module)
        except InputError as error:
            self.warn_once("copy", f"CovariateShift compares no evaluation with training: {error}")
            return []
        step = step if has_own_loop(module) else "training_step"
        batches = [(move_data_to_device(one, module.device), i) for one, i in list(self.batches)[-count:]]
        return [self.read_copy(self.replica, step, one, i) for one, i in batches]

    def read_copy(self, replica: Replica, step: str, batch: Any, batch_idx: int) -> Channels:
        """Runs a step of a copy without gradients. One that raises in evaluation mode counts up to there."""
        with torch.no_grad(), self.probe_of(replica.module) as probe:
            try:
                replica.run(step, batch, batch_idx)
            except Exception as error:
                name = f"{type(replica.original).__name__}.{step}"
                self.warn_once(
                    step,
                    f"CovariateShift runs {name} on training batches, in evaluation mode and without gradients, which "
                    f"raises {type(error).__name__}: {str(error).rstrip('.')}. "
                    f"val_w2 and test_w2 show the layers that run before. Let {name} work there, or set "
                    f"evaluation_batches=0.",
                )
        return seen_by(probe)

    def probe_of(self, module: nn.Module) -> Probe:
        """A probe of the inputs of the layers; a test may be of another module than the one that was trained."""
        named = dict(named_layers(module))
        return Probe(module, {name: named[name] for name in self.modules if name in named}, input=feature_moments)

    def detach(self) -> None:
        """Removes the probe, and keeps what it read."""
        if self.probe is not None:
            self.probe.__exit__()
            self.evaluated.append(seen_by(self.probe))
            self.probe = None

    def on_validation_batch_end(self, *unused: Any) -> None:
        self.detach()

    def on_test_batch_end(self, *unused: Any) -> None:
        self.detach()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.compare(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.compare(trainer, pl_module, "test")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.detach()
        self.forget_evaluation()

    def compare(self, trainer: Trainer, module: LightningModule, kind: str) -> None:
        """Writes how far evaluation is from training. All ranks call it, whatever their number of batches."""
        if not self.compares:
            return
        if self.trained is None:  # a rank without a batch, for which the others wait; its weights may be reset by now
            self.read_training(trainer, module, "test_step" if kind == "test" else "validation_step")
        parts = self.ranks.gather((self.trained or [], self.evaluated))
        self.forget_evaluation()
        trained, evaluated = ([one for part in side for one in part] for side in zip(*parts, strict=True))
        if not (trained and evaluated):
            return
        self.compared_at = trainer.global_step
        table = compared(kind, trained, evaluated, max(len(part) for part, _ in parts))
        if table.rows:
            writer = EventWriter(trainer)
            self.write(writer, trainer.global_step, table)
            writer.flush()

    # Checkpoints.

    def state_dict(self) -> dict[str, Any]:
        own = [[as_saved(one)] for one in self.batches]
        batches = list(self.saved) or own  # [batch][rank]
        fits = size_of(batches) <= SAVED_BYTES and all(one is not None for of_ranks in batches for one in of_ranks)
        return {
            **super().state_dict(),
            "reference": to_state(self.reference),
            "previous": to_state(self.previous),
            "compared_at": self.compared_at,
            "batches": batches if fits else [],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.reference, self.previous = from_state(state_dict["reference"]), from_state(state_dict["previous"])
        self.compared_at = state_dict["compared_at"]
        saved = state_dict["batches"]
        if saved:  # else they were too large; what a test of a checkpoint finds here, the training has left
            rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
            self.batches = deque((of_ranks[rank] for of_ranks in saved if rank < len(of_ranks)), BATCHES)
            self.saved = deque((one for one in saved if len(one) > 1), BATCHES)


def as_saved(kept: tuple[Any, int]) -> tuple[Any, int] | None:
    """A batch and its number for a checkpoint; None of one that is large or not made of tensors."""
    batch = plain(kept[0])
    return None if batch is None or BATCHES * size_of(batch) > SAVED_BYTES else (batch, kept[1])


def seen_by(probe: Probe) -> Channels:
    """The moments of the inputs that a probe has read."""
    return merge_passes((visit.name, visit.input) for visit in probe.visits)


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
    columns = torch.stack([w1(p, q) / q.std, w2(p, q).square() / q.var, kl(p, q)])
    means = averages(sizes, columns, torch.stack([known, known, known & (p.var != 0)]))
    for (pair, name), shift, square, divergence in zip(rows, *means, strict=True):
        values = {"w1": shift, "w2": None if square is None else square**0.5, "kl": divergence}
        for metric, value in values.items():
            if value is not None:
                found[f"{pair}_{metric}"][name] = value
    return found


def over_depth(inputs: Channels, weighted: Sequence[str]) -> dict[str, dict[str, float]]:
    """Metric -> layer -> how the distribution of all values of an input changes from layer to layer.

    Args:
        inputs: of the layers, in the order of execution.
        weighted: the names of those between which blocks lie.
    """
    of_layers = pooled(inputs)
    order = [name for name in weighted if name in of_layers]
    order.sort(key=list(inputs).index)
    blocks = zip(order[1:], order[:-1], strict=True)
    pairs = {
        "block_w2": [(former, of_layers[later], of_layers[former]) for later, former in blocks],
        "depth_w2": [(name, one, of_layers[order[0]]) for name, one in of_layers.items()] if order else [],
    }
    return {
        **{metric: {n: gaussian_w2(p, q) for n, p, q in rows if q[1] != 0} for metric, rows in pairs.items()},
        "mean": {name: mean for name, (mean, _) in of_layers.items()},
        "std": {name: std for name, (_, std) in of_layers.items()},
        "count": {name: one.n.max().item() for name, one in inputs.items()},
    }


def gaussian_w2(p: tuple[float, float], q: tuple[float, float]) -> float:
    """W2 of two Gaussians, from mean and standard deviation, in standard deviations of q."""
    return math.hypot(p[0] - q[0], p[1] - q[1]) / q[1]


def compared(kind: str, trained: Sequence[Channels], evaluated: Sequence[Channels], steps: int) -> Table:
    """The distance of evaluation from training, and its noise floor.

    Args:
        kind: "val" or "test".
        trained: the moments of each batch of training.
        evaluated: those of each batch of the evaluation.
        steps: of how many steps the batches of training are; with several ranks, more batches than steps.
    """
    p_layers, q_layers = merge_channels(evaluated), merge_channels(trained)
    names = shared_layers(p_layers, q_layers)
    if not names:
        return Table([], {})
    p, q = (joined([side[name] for name in names]) for side in (p_layers, q_layers))
    parts = [joined([part_of(one, name, q_layers[name]) for name in names]) for one in trained]
    spread = spread_between(*map(torch.stack, zip(*parts, strict=True))) / q.var
    squares = [w2(p, q).square() / q.var, spread * (1 / p.n + 1 / q.n), spread * 2 * steps / q.n]
    typical = torch.cat([q_layers[name].var.mean().expand_as(q_layers[name].var) for name in names])
    counts = (q.var > RARE * typical) & ~(spread / q.n > UNCERTAIN)
    known = torch.stack([counts, *[counts & ~spread.isnan()] * 2])
    means = averages([len(q_layers[name].mean) for name in names], torch.stack(squares), known)
    found = {
        metric: {name: square**0.5 for name, square in zip(names, row, strict=True) if square is not None}
        for metric, row in zip((f"{kind}_w2", f"{kind}_w2_floor", "drift_w2_floor"), means, strict=True)
    }
    return Table(names, found)


def part_of(part: Channels, name: str, whole: Moments) -> Moments:
    """The moments of a layer in a part, or of nothing."""
    one = part.get(name)
    if one is not None and one.mean.shape == whole.mean.shape:
        return one
    return Moments(torch.zeros_like(whole.n), torch.zeros_like(whole.mean), torch.zeros_like(whole.var))
