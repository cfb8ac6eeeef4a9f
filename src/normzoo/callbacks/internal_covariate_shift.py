"""Does the update of the layers below change a layer's gradient?"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from normzoo.errors import InputError
from normzoo.metrics import internal_covariate_shift
from normzoo.monitoring.layers import Layers, is_weighted, named_layers, of_kind, own_parameters
from normzoo.monitoring.monitor import Monitor
from normzoo.monitoring.probe import Probe
from normzoo.monitoring.replica import copied_batch, refuse_own_batches
from normzoo.monitoring.sample import Seen, Step, Table
from normzoo.monitoring.schedule import Schedule

CHOSEN = 6
"""The number of layers that are chosen if the user names none."""


class InternalCovariateShift(Monitor):
    """Shows how much a layer's gradient changes when the layers before it make their update.

    `||G - G'||`, `||G - G'|| / ||G||` and `<G, G'> / (||G|| ||G'||)`, where G is the gradient of the batch's loss with
    respect to the layer's weights, and G' the same with all layers that run before it at their weights from after the
    step

    Both are computed on a copy of the module, by its own `training_step`, on the same batch with the same buffers and
    random numbers. For the first layer G' is G: 0, 0 and 1. Over ranks both are averages, weighted by their samples.
    A sample costs one step and, for every further layer, another half to one.

    With several optimizers (manual optimization), the loss of a layer is that of the optimizer that updates it: the sum
    of what `training_step` passes to `manual_backward` between the optimizer's `zero_grad` and its first update. The
    step is that of all optimizers together.

    Metrics: `ics_l2` in units of the gradient, `ics_relative`, `ics_cosine`.

    This is one of three definitions of internal covariate shift, which answer different questions:

    - **over time** (Ioffe and Szegedy 2015; `drift_w2` and `step_w2` of `CovariateShift`): how far the distribution of
      a layer's input moves while the layers before it learn. In a deep network without norms it grows with depth, by
      orders of magnitude if the training diverges or saturates; behind a norm that centres and scales it stays small;
    - **over depth** (`block_w2` and `depth_w2` of `CovariateShift`): how far the distribution moves from layer to
      layer in a single step. Without norms it grows with depth where signals grow or fade on their way; with norms all
      layers have about the same distance from the network's input;
    - **by gradients** (Santurkar et al. 2018; this monitor): how much the update of the layers below changes a layer's
      gradient. With BatchNorm it is often larger than without, and that is expected: it is the paper's point that
      batch normalization helps although it does not reduce this shift, as it makes the landscape smoother
      (`LossLandscape`).

    Args:
        every: optimizer steps between samples, or a function of the step; None for 1000, or less in a run so short
            that there were fewer than 20 samples.
        layers: names or classes, with `*`; None for all layers with weights, or, of more than six, for six that are
            evenly spread from the first to the last.

    Raises:
        InputError: `layers` matches nothing, or nothing that learns; a module that cannot be copied.

    Reference: Shibani Santurkar, Dimitris Tsipras, Andrew Ilyas, Aleksander Madry. How Does Batch Normalization Help
    Optimization? 2018. arXiv 1805.11604, definition 2.1.
    """

    question = "Internal covariate shift"
    usual_every = 1000
    metrics: Mapping[str, str] = {
        "ics_l2": "distance of the gradients before and after the update of the layers below",
        "ics_relative": "the same as a share of the gradient",
        "ics_cosine": "cosine of the angle between the two gradients",
    }

    def __init__(self, every: int | Schedule | None = None, layers: Layers | None = None) -> None:
        super().__init__(every, layers, detail_every=0)
        self.order: list[str] = []
        self.chosen: list[str] = []
        self.trained: set[str] = set()

    def usual_layers(self, model: nn.Module) -> dict[str, nn.Module]:
        return of_kind(model, is_weighted)

    def find_layers(self, model: nn.Module) -> None:
        super().find_layers(model)
        self.modules = {name: m for name, m in self.modules.items() if own_parameters(m)}
        if not self.modules:
            raise InputError(
                f"InternalCovariateShift(layers={self.layers!r}): none of these layers has weights of its own; choose "
                f"others."
            )
        self.order, self.chosen, self.trained = [], [], set()

    def begin(self, step: Step) -> None:
        """Copies the weights and the batch from before the step."""
        refuse_own_batches(step.module)
        self.before = step.replica().weights()
        self.batch = copied_batch(step.batch)

    def read(self, step: Step, seen: Seen) -> list[tuple[str, list[float]]]:
        """Computes the gradients of all batches: every rank finds the same."""
        after = {name: p.detach() for name, p in step.module.named_parameters() if name in self.before}
        if self.trained != self.before.keys():  # at first, and when weights are frozen or unfrozen
            self.choose(step)
        wanted = {layer: [name for name in self.names[layer] if name in self.before] for layer in self.chosen}
        wanted = {layer: names for layer, names in wanted.items() if names}  # those that still learn
        together = list(dict.fromkeys(name for names in wanted.values() for name in names))  # layers may share one
        unmoved = self.gradients(step, self.before, together) or {}
        found: list[tuple[str, list[float]]] = []
        for layer, names in wanted.items() if unmoved else ():
            place = self.order.index(layer)
            below = {n for earlier in self.order[:place] for n in self.names[earlier]}
            below = (below | self.others if place else below) - set(names)  # a shared weight is the layer's own
            mixed = {n: after[n].clone().requires_grad_() if n in below else w for n, w in self.before.items()}
            # Nothing below has moved: G' is G. With several ranks all compute it, whatever has run on each.
            moved = unmoved if not below and step.ranks.size == 1 else self.gradients(step, mixed, names)
            if moved is not None:
                shift = internal_covariate_shift([unmoved[n] for n in names], [moved[n] for n in names])
                found.append((layer, torch.stack(list(shift)).tolist()))
        self.before, self.batch = {}, None
        return found

    def gradients(self, step: Step, weights: Mapping[str, Tensor], wanted: list[str]) -> dict[str, Tensor] | None:
        """The gradients of the batch's loss at some weights, by name; None where the batch is skipped."""
        if not wanted:
            return None
        replica = step.replica()
        found = replica.loss_and_gradients(step.ranks, step.samples, self.batch, step.batch_idx, weights, wanted)
        return None if found is None else dict(zip(wanted, found[1], strict=True))

    def choose(self, step: Step) -> None:
        """Finds the order in which layers with weights run, norms included, and chooses those to compare."""
        replica = step.replica()
        named = dict(named_layers(replica.module))
        owners = {name: m for name, m in named.items() if name and own_parameters(m)}
        with Probe(replica.module, owners) as probe:
            replica.loss(self.batch, step.batch_idx, self.before)
        self.trained = set(self.before)
        self.order = list(dict.fromkeys(visit.name for visit in probe.visits))
        known = {id(p): name for name, p in replica.module.named_parameters()}
        self.names = {name: [known[id(p)] for p in own_parameters(owners[name])] for name in self.order}
        # Weights that no layer uses in a call of its own, such as those of the LightningModule.
        self.others = self.trained - {n for names in self.names.values() for n in names}
        reached = [name for name in self.order if name in self.modules]
        self.chosen = [name for name in reached if not self.trained.isdisjoint(self.names[name])]
        if self.layers is not None:
            self.warn_of_unreached(reached)
        elif len(self.chosen) > CHOSEN:
            places = [round(i * (len(self.chosen) - 1) / (CHOSEN - 1)) for i in range(CHOSEN)]
            self.chosen = [self.chosen[i] for i in places]

    def compute(self, number: int, sample: list[tuple[str, list[float]]]) -> Table:
        # A gradient of zeros, as of a layer whose units are dead, has no share and no angle.
        values = {
            metric: {layer: c[i] for layer, c in sample if math.isfinite(c[i]) or not math.isfinite(c[0])}
            for i, metric in enumerate(self.metrics)
        }
        return Table([layer for layer, _ in sample], values)
