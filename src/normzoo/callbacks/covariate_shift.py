"""Do the inputs of a layer keep their distribution?"""

from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from normzoo.distributed.gather import Ranks
from normzoo.errors import InputError
from normzoo.metrics import Moments, kl, slope, w1, w2
from normzoo.monitoring.monitor import Monitor
from normzoo.monitoring.probe import Layers, Probe, is_compiled, is_norm, is_weighted, named_layers, of_kind
from normzoo.monitoring.profile import NOTHING, Profile, aligned, feature_moments, layer_means, merge_profiles, profile
from normzoo.monitoring.replica import Replica
from normzoo.monitoring.sample import Heard, Readings, Samples, Step
from normzoo.monitoring.schedule import Schedule
from normzoo.monitoring.writer import Board, Chart

DISTANCES = ("w1", "w2", "kl")
RECENT = 8
"""Samples of training that evaluation is compared with."""


class CovariateShift(Monitor):
    """Shows how far the distribution of each layer's input moves: over training, from input to output, and to new data.

    `W1 = mean_c W1_c / sigma_c`,  `W2 = sqrt(mean_c (dmu^2 + dsigma^2) / sigma_c^2)`,  `KL = mean_c KL_c`

    A layer's input is taken as one Gaussian per channel, by the mean and the variance of the batch over all ranks; a
    distance is in standard deviations sigma of what it is compared with. Channels that are constant there are left out.

    - `drift_w1/`, `drift_w2/`, `drift_kl/`: the input against a reference, the first sample from `reference_step` on;
    - `step_w1/`, `step_w2/`, `step_kl/`: the input against the sample before;
    - `in_out_w2/`: the layer's output against its input, where they have the same channels;
    - `val_w2/` and `test_w2/`: the inputs of evaluation against those of the last 8 samples of training;
    - `depth_slope/`: how much each of these grows from layer to layer: above 0, "the deeper, the larger".

    W1 and W2 are in standard deviations, KL in nats per channel, slopes in their units per layer. The depth profile is
    the chart with a line per layer, and the picture of layers over steps at the end of the run.

    Args:
        every: optimizer steps between samples, or a function of the step.
        layers: names with `*`, or classes; None for all norms, or in a network without any all layers with weights.
        reference_step: the step from which on a sample is the reference.
        evaluation_batches: batches of each validation and test that count; 0 for none.

    Raises:
        InputError: `layers` matches nothing; a number out of range.
    """

    question = "Covariate shift"
    metrics: Mapping[str, str] = {
        "drift_w1": "Wasserstein-1 distance of the input from the reference, in the reference's standard deviations",
        "drift_w2": "Wasserstein-2 distance of the input from the reference, in the reference's standard deviations",
        "drift_kl": "Kullback-Leibler divergence of the input from the reference, in nats per channel",
        "step_w1": "Wasserstein-1 distance of the input from the last sample's, in its standard deviations",
        "step_w2": "Wasserstein-2 distance of the input from the last sample's, in its standard deviations",
        "step_kl": "Kullback-Leibler divergence of the input from the last sample's, in nats per channel",
        "in_out_w2": "Wasserstein-2 distance of the output from the input, in the input's standard deviations",
    }
    totals: Mapping[str, str] = {
        "val_w2/": "Wasserstein-2 distance of validation from training, in training's standard deviations",
        "test_w2/": "Wasserstein-2 distance of testing from training, in training's standard deviations",
        "depth_slope/": "growth of a distance from layer to layer, in its units per layer",
    }
    heatmaps = ("drift_w2", "step_w2", "in_out_w2")

    def __init__(
        self,
        every: int | Schedule = 50,
        layers: Layers | None = None,
        reference_step: int = 0,
        evaluation_batches: int = 8,
    ) -> None:
        super().__init__(every, layers, detail_every=0)
        for name, value in (("reference_step", reference_step), ("evaluation_batches", evaluation_batches)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise InputError(f"CovariateShift({name}={value!r}): it is a number of at least 0.")
        self.reference_step = reference_step
        self.evaluation_batches = evaluation_batches
        self.replicas: list[Replica] = []

    def reset(self) -> None:
        super().reset()
        self.reference: Profile | None = None
        self.recent: deque[Profile] = deque(maxlen=RECENT)
        self.evaluated: list[Profile] = []
        self.listening: Probe | None = None
        self.new_data: dict[str, dict[str, float]] = {}
        """The newest comparison with other data: "val_w2" or "test_w2" -> layer -> value."""

    def usual_layers(self, model: nn.Module) -> dict[str, nn.Module]:
        return of_kind(model, is_norm) or of_kind(model, is_weighted)

    def readings(self) -> Readings:
        return {("input", feature_moments): self.modules, ("output", feature_moments): self.modules}

    def collect(self, step: Step, heard: Heard) -> tuple[Profile, Profile]:
        return profile(heard["input", feature_moments]), profile(heard["output", feature_moments])

    def merge(self, parts: Sequence[tuple[Profile, Profile]]) -> tuple[Profile, Profile]:
        inputs, outputs = (merge_profiles(side) for side in zip(*parts, strict=True))
        return inputs, outputs

    def structure(self, found: tuple[Profile, Profile]) -> Hashable:
        return tuple((one.names, one.sizes) for one in found)

    def digest(self, numbers: Sequence[int], found: Sequence[tuple[Profile, Profile]]) -> Samples | None:
        inputs = [one for one, _ in found]
        names, sizes = inputs[0].names, inputs[0].sizes
        self.tell_of_unreached(names)
        if not names:
            return None
        later = [number >= self.reference_step for number in numbers]
        if self.reference is None and any(later):
            self.reference = inputs[later.index(True)]
        last = self.recent[-1] if self.recent else NOTHING
        self.recent.extend(inputs)
        now = over_steps(inputs)
        pairs = {
            "drift": (now, over_steps([(self.reference or NOTHING).on(names, sizes)] * len(inputs))),
            "step": (now, over_steps([last.on(names, sizes), *inputs[:-1]])),
            "in_out": (over_steps([out.on(names, sizes) for _, out in found]), now),
        }
        p, q = (stacked(side) for side in zip(*pairs.values(), strict=True))
        values, known = distances(sizes, p, q)  # (3 distances, 3 pairs, K, L) and (3 pairs, K, L)
        known[0] &= torch.tensor(later).unsqueeze(1)
        shown = {f"{what}_{d}": (i, j) for j, what in enumerate(pairs) for i, d in enumerate(DISTANCES)}
        shown = {name: place for name, place in shown.items() if name in self.metrics}
        by_metric = {name: values[i, j] for name, (i, j) in shown.items()}
        return Samples(names, by_metric, {name: known[j] for name, (_, j) in shown.items()})

    def totals_of(self, samples: Samples) -> list[dict[str, float]]:
        slopes = slope(torch.stack(list(samples.values.values()), 1)).tolist()  # K rows of a slope per metric
        return [
            {f"depth_slope/{name}": s for name, s in zip(samples.values, row, strict=True) if s == s} for row in slopes
        ]

    def charts(self) -> list[Chart]:
        profiles = {"drift_w2": "drift from the reference", "step_w2": "drift from the last sample"}
        profiles |= {"in_out_w2": "output against input", "val_w2": "validation against training"}
        profiles |= {"test_w2": "test against training"}
        charts = [Chart(f"depth profile: {told} ({name})", (f"^{name}/",)) for name, told in profiles.items()]
        return [*charts, Chart("the deeper, the larger? (depth_slope)", ("^depth_slope/",))]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.ranks = Ranks()  # when all are there: later, one may have failed

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.ranks.close()

    # Evaluation: its inputs, layer by layer, against those of training.

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if not trainer.sanity_checking:
            self.listen(trainer, pl_module, "validation_step", batch, batch_idx, dataloader_idx)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.listen(trainer, pl_module, "test_step", batch, batch_idx, dataloader_idx)

    def listen(
        self, trainer: Trainer, module: LightningModule, step: str, batch: Any, batch_idx: int, dataloader_idx: int
    ) -> None:
        """Attaches a probe to one of the first batches of the first loader; on a compiled network runs a copy."""
        if batch_idx >= self.evaluation_batches or dataloader_idx > 0 or not self.recent or not self.modules:
            return
        if not is_compiled(module):
            here = dict(named_layers(module))  # a test may be of another module than the one that was trained
            layers = {name: here[name] for name in self.modules if name in here}
            self.listening = Probe(module, layers, input=feature_moments)
            self.listening.__enter__()
            return
        self.replicas = self.replicas or [Replica(trainer, module)]
        replica = self.replicas[0].refresh()
        named = dict(named_layers(replica.module))
        with (
            Probe(replica.module, {n: named[n] for n in self.modules}, input=feature_moments) as probe,
            torch.no_grad(),
        ):
            replica.run(step, batch, batch_idx)
        self.evaluated.append(profile([(v.name, v.input) for v in probe.visits]))

    def on_validation_batch_end(self, *unused: Any) -> None:
        self.heard()

    def on_test_batch_end(self, *unused: Any) -> None:
        self.heard()

    def heard(self) -> None:
        """Takes the probe off."""
        if self.listening is not None:
            self.listening.__exit__()
            self.evaluated.append(profile([(v.name, v.input) for v in self.listening.visits]))
            self.listening = None

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.compare(trainer, "val_w2")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.compare(trainer, "test_w2")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self.listening is not None:
            self.listening.__exit__()
        self.listening, self.evaluated = None, []

    def compare(self, trainer: Trainer, metric: str) -> None:
        """Writes how far evaluation is from training. All ranks come here, whatever number of batches they had."""
        if not self.recent or trainer.sanity_checking:
            return
        own, self.evaluated = self.evaluated, []
        self.replicas = []
        parts = [part for of_rank in self.ranks.gather(own) for part in of_rank]
        if not parts:
            return
        evaluated, trained = aligned(merge_profiles(parts), merge_profiles(list(self.recent)))
        values, known = distances(trained.sizes, evaluated.moments, trained.moments)
        column = values[DISTANCES.index("w2")]
        found = {name: v for name, v, k in zip(trained.names, column.tolist(), known.tolist(), strict=True) if k}
        self.new_data[metric] = found
        board = Board(trainer)
        step = trainer.global_step
        board.scalars(step, {f"{metric}/{name}": value for name, value in found.items()})
        if len(found) > 1:
            board.scalars(step, {f"depth_slope/{metric}": slope(column).item()})
        columns = {metric: self.totals[f"{metric}/"]}
        board.table(step, f"normalization/{self.label}/{metric}", trained.names, columns, column[:, None])
        board.write()

    # What goes on with a resumed run.

    def state_dict(self) -> dict[str, Any]:
        reference = None if self.reference is None else self.reference.state_dict()
        return {**super().state_dict(), "reference": reference, "recent": [one.state_dict() for one in self.recent]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        reference = state_dict["reference"]
        self.reference = None if reference is None else Profile.from_state(reference)
        self.recent = deque(map(Profile.from_state, state_dict["recent"]), maxlen=RECENT)


def stacked(parts: Sequence[Moments]) -> Moments:
    """Moments along a new first axis."""
    return Moments(*(torch.stack(list(column)) for column in zip(*parts, strict=True)))


def over_steps(profiles: Sequence[Profile]) -> Moments:
    """(K, sum C_l) each, of K profiles with the same layers."""
    return stacked([one.moments for one in profiles])


def distances(sizes: tuple[int, ...], p: Moments, q: Moments) -> tuple[Tensor, Tensor]:
    """How far p is from q, layer by layer: W1 and W2 in standard deviations of q, KL in nats.

    Args:
        sizes: C_l of each layer.
        p: n, mean and var (..., sum C_l).
        q: n, mean and var (..., sum C_l); n is 0 where there is nothing to compare with.

    Returns:
        W1, W2 and KL (3, ..., L); and (..., L), where there is such a value: both have the layer, and not all channels
        are constant in q.
    """
    counts = (p.n > 0) & (q.n > 0) & (q.var != 0)
    values = layer_means(sizes, torch.stack([w1(p, q) / q.std, (w2(p, q) / q.std).square(), kl(p, q)]), counts)
    values[1] = values[1].sqrt()
    return values, layer_means(sizes, counts.double()) > 0
