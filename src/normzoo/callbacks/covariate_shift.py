"""Do the inputs of a layer keep their distribution?"""

from collections import deque
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from normzoo.callbacks._board import Board, Chart
from normzoo.callbacks._channels import Channels, joined
from normzoo.callbacks._monitor import Monitor, Sample, Step
from normzoo.callbacks._ranks import Ranks
from normzoo.callbacks._replica import Replica
from normzoo.callbacks.running_statistics import input_moments, moments_by_layer, over_ranks
from normzoo.callbacks.schedule import Schedule
from normzoo.errors import InputError
from normzoo.metrics import Moments, kl, slope, w1, w2
from normzoo.probes import Layers, Probe, Visit, is_compiled, is_norm, is_weighted, named_layers, of_kind

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
        "val_w2": "Wasserstein-2 distance of validation from training, in training's standard deviations",
        "test_w2": "Wasserstein-2 distance of testing from training, in training's standard deviations",
    }
    totals: Mapping[str, str] = {"depth_slope/": "growth of a distance from layer to layer, in its units per layer"}
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
        self.reference: dict[str, Moments] = {}
        self.last: dict[str, Moments] = {}
        self.recent: deque[dict[str, Moments]] = deque(maxlen=RECENT)
        self.order: list[str] = []
        self.evaluated: list[dict[str, Moments]] = []
        self.listening: Probe | None = None

    def usual_layers(self, model: nn.Module) -> dict[str, nn.Module]:
        return of_kind(model, is_norm) or of_kind(model, is_weighted)

    def probe(self, model: nn.Module, modules: Mapping[str, nn.Module]) -> Probe | None:
        return Probe(model, modules, input=input_moments, output=input_moments)

    def collect(self, step: Step, visits: Sequence[Visit]) -> list[dict[str, Moments]]:
        return [moments_by_layer(visits), moments_by_layer(visits, "output")]

    def merge(self, step: Step, parts: Sequence[Any]) -> Sample | None:
        inputs, outputs = (over_ranks(side) for side in zip(*parts, strict=True))
        self.tell_of_unreached(inputs)
        self.order = list(dict.fromkeys([*self.order, *inputs]))
        rows = self.order
        if not self.reference and step.number >= self.reference_step:
            self.reference = inputs
        pairs = {
            "drift": {name: (inputs[name], self.reference[name]) for name in inputs if name in self.reference},
            "step": {name: (inputs[name], self.last[name]) for name in inputs if name in self.last},
            "in_out": {name: (outputs[name], inputs[name]) for name in inputs if name in outputs},
        }
        self.last = inputs
        self.recent.append(inputs)
        values: dict[str, Tensor] = {}
        applies: dict[str, Tensor] = {}
        for what, by_layer in pairs.items():
            for metric, column in distances(rows, by_layer).items():
                if f"{what}_{metric}" in self.metrics and by_layer:
                    values[f"{what}_{metric}"] = column
                    applies[f"{what}_{metric}"] = torch.tensor(
                        [comparable(*by_layer.get(r, (None, None))) for r in rows]
                    )
        return Sample(rows, values, applies) if values else None

    def write(self, step: Step, sample: Sample, board: Board) -> None:
        board.scalars({f"depth_slope/{name}": slope(v).item() for name, v in sample.values.items() if len(v) > 1})
        super().write(step, sample, board)

    def charts(self) -> list[Chart]:
        profiles = {"drift_w2": "drift from the reference", "step_w2": "drift from the last sample"}
        profiles |= {"in_out_w2": "output against input", "val_w2": "validation against training"}
        profiles |= {"test_w2": "test against training"}
        charts = [Chart(f"depth profile: {told} ({name})", (f"^{name}/",)) for name, told in profiles.items()]
        return [*charts, Chart("the deeper, the larger? (depth_slope)", ("^depth_slope/",))]

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
            self.listening = Probe(module, self.modules, input=input_moments)
            self.listening.__enter__()
            return
        replica = Replica(trainer, module)
        named = dict(named_layers(replica.module))
        with Probe(replica.module, {n: named[n] for n in self.modules}, input=input_moments) as probe, torch.no_grad():
            replica.run(step, deepcopy(batch), batch_idx)
        self.evaluated.append(moments_by_layer(probe.visits))

    def on_validation_batch_end(self, *unused: Any) -> None:
        self.heard()

    def on_test_batch_end(self, *unused: Any) -> None:
        self.heard()

    def heard(self) -> None:
        """Takes the probe off."""
        if self.listening is not None:
            self.listening.__exit__()
            self.evaluated.append(moments_by_layer(self.listening.visits))
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
        ranks = Ranks()
        own, self.evaluated = self.evaluated, []
        parts = [part for of_rank in ranks.gather(own) for part in of_rank]
        ranks.close()
        evaluated, trained = over_ranks(parts) if parts else {}, over_ranks(list(self.recent))
        pairs = {name: (evaluated[name], trained[name]) for name in self.order if name in evaluated and name in trained}
        if not pairs:
            return
        board = Board(trainer)
        column = distances(list(pairs), pairs)["w2"]
        found = dict(zip(pairs, column.tolist(), strict=True))
        self.latest[metric] = found
        board.scalars({f"{metric}/{name}": value for name, value in found.items()})
        if len(found) > 1:
            board.scalars({f"depth_slope/{metric}": slope(column).item()})
        board.table(
            f"normalization/{type(self).__name__}/{metric}",
            list(pairs),
            {metric: self.metrics[metric]},
            column[:, None],
        )
        board.write(trainer.global_step)

    # What goes on with a resumed run.

    def state_dict(self) -> dict[str, Any]:
        sets = {"reference": [self.reference], "last": [self.last], "recent": list(self.recent)}
        moments = {key: [{n: tuple(m) for n, m in one.items()} for one in many] for key, many in sets.items()}
        return {**super().state_dict(), **moments, "order": list(self.order)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)

        def back(key: str) -> list[dict[str, Moments]]:
            return [{name: Moments(*m) for name, m in one.items()} for one in state_dict[key]]

        [self.reference], [self.last] = back("reference"), back("last")
        self.recent = deque(back("recent"), maxlen=RECENT)
        self.order = list(state_dict["order"])


def comparable(p: Moments | None, q: Moments | None) -> bool:
    """Whether there are two distributions of the same channels, of which one at least varies in what the other is."""
    return p is not None and q is not None and p.mean.shape == q.mean.shape and not bool((q.var == 0).all())


def distances(rows: Sequence[str], pairs: Mapping[str, tuple[Moments, Moments]]) -> dict[str, Tensor]:
    """W1, W2 and KL of p from q for every row, (L,) each; NaN where there is no pair of the same channels."""
    fit = [row for row in rows if row in pairs and pairs[row][0].mean.shape == pairs[row][1].mean.shape]
    found = torch.full((3, len(rows)), torch.nan, dtype=torch.float64)
    if fit:
        p, q = (joined([pairs[row][side] for row in fit]) for side in (0, 1))
        channels = Channels([pairs[row][0].mean.numel() for row in fit])
        per_channel = torch.stack([w1(p, q) / q.std, (w2(p, q) / q.std).square(), kl(p, q)])
        by_layer = channels.mean(per_channel, q.var != 0)
        by_layer[1] = by_layer[1].sqrt()
        found[:, [rows.index(row) for row in fit]] = by_layer
    return dict(zip(DISTANCES, found, strict=True))
