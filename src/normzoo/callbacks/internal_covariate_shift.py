"""Does the update of the layers below change a layer's gradient?"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from normzoo.errors import InputError
from normzoo.metrics import internal_covariate_shift
from normzoo.monitoring.layers import own_parameters
from normzoo.monitoring.monitor import Monitor
from normzoo.monitoring.probe import Layers, Probe, is_weighted, named_layers, of_kind
from normzoo.monitoring.sample import Heard, Samples, Step
from normzoo.monitoring.schedule import Schedule

CHOSEN = 4
"""Layers that are looked at where the user names none."""


class InternalCovariateShift(Monitor):
    """Shows how much a layer's gradient changes when the layers before it make their update.

    `||G - G'||`, `||G - G'|| / ||G||` and `<G, G'> / (||G|| ||G'||)`, where G is the gradient of the batch's loss with
    respect to the layer's weights, and G' the same once all layers that run before it hold their weights of after the
    step

    Both are computed on a copy of the module, by its own `training_step`, on the same batch with the same buffers and
    random numbers. For the first layer G' is G: 0, 0 and 1. Over ranks both are averages, weighted by their samples.
    A sample costs one step and, for every further layer, another half to one. Not for modules that optimize by hand.

    Tags: `ics_l2/LAYER` in units of the gradient, `ics_relative/LAYER`, `ics_cosine/LAYER`.

    Args:
        every: optimizer steps between samples, or a function of the step.
        layers: names with `*`, or classes; None for four layers with weights, evenly spread from the first to the last.

    Raises:
        InputError: `layers` matches nothing, or nothing that learns; a module that cannot be copied.

    Reference: Shibani Santurkar, Dimitris Tsipras, Andrew Ilyas, Aleksander Madry. How Does Batch Normalization Help
    Optimization? 2018. arXiv 1805.11604, definition 2.1.
    """

    question = "Internal covariate shift"
    metrics: Mapping[str, str] = {
        "ics_l2": "distance of the gradients before and after the update of the layers below",
        "ics_relative": "the same as a share of the gradient",
        "ics_cosine": "cosine of the angle between the two gradients",
    }
    heatmaps = ("ics_relative", "ics_cosine")

    def __init__(self, every: int | Schedule = 500, layers: Layers | None = None) -> None:
        super().__init__(every, layers, detail_every=0)
        self.order: list[str] = []
        self.chosen: list[str] = []

    def usual_layers(self, model: nn.Module) -> dict[str, nn.Module]:
        return of_kind(model, is_weighted)

    def find_layers(self, model: nn.Module) -> None:
        super().find_layers(model)
        self.modules = {name: m for name, m in self.modules.items() if own_parameters(m)}
        if not self.modules:
            raise InputError(
                f"InternalCovariateShift(layers={self.layers!r}): none of these layers has weights of its own that "
                f"learn; name some that do."
            )
        self.order, self.chosen = [], []

    def begin(self, step: Step) -> None:
        """Keeps the weights, and the batch as it is before the step."""
        step.replica  # noqa: B018 - made now, before the step leaves results on the module
        self.before = {name: p.detach().clone() for name, p in step.module.named_parameters() if p.requires_grad}
        self.batch = deepcopy(step.batch)

    def collect(self, step: Step, heard: Heard) -> list[tuple[str, list[float]]]:
        """Every rank finds the same, as the gradients are those of all batches."""
        weights = {name: p.detach().clone().requires_grad_() for name, p in self.before.items()}
        after = {name: p.detach() for name, p in step.module.named_parameters() if name in self.before}
        if not self.order:
            self.choose(step, weights)
        wanted = {layer: [name for name in self.names[layer] if name in weights] for layer in self.chosen}
        unmoved = self.gradients(step, weights, [name for names in wanted.values() for name in names])
        found: list[tuple[str, list[float]]] = []
        for layer, names in wanted.items() if unmoved is not None else ():
            if not names:  # the layer does not learn any more
                continue
            below = {n for earlier in self.order[: self.order.index(layer)] for n in self.names[earlier]}
            below -= set(names)  # a weight that an earlier layer shares is the layer's own
            mixed = {n: after[n] if n in below else w for n, w in weights.items()}
            g, unmoved = unmoved[: len(names)], unmoved[len(names) :]  # type: ignore[index]
            # Nothing below has moved: G' is G. With several ranks all go the same way, whatever has run on each.
            alone = not below and step.ranks.size == 1
            moved = g if alone else self.gradients(step, mixed, names)
            if moved is not None:
                found.append((layer, torch.stack(list(internal_covariate_shift(g, moved))).tolist()))
        self.before, self.batch = {}, None
        return found

    def gradients(self, step: Step, weights: Mapping[str, Tensor], wanted: list[str]) -> list[Tensor] | None:
        """Of the batch's loss at some weights, for those that are wanted; None where the batch is skipped."""
        if not wanted:
            return None
        found = step.replica.loss_and_gradients(step.ranks, step.samples, self.batch, step.batch_idx, weights, wanted)
        return None if found is None else found[1]

    def choose(self, step: Step, weights: Mapping[str, Tensor]) -> None:
        """Finds out in which order layers with weights run, norms included, and which of them are looked at."""
        replica = step.replica
        named = dict(named_layers(replica.module))
        owners = {name: m for name, m in named.items() if name and own_parameters(m)}
        with Probe(replica.module, owners) as probe:
            replica.loss(self.batch, step.batch_idx, weights)
        self.order = list(dict.fromkeys(visit.name for visit in probe.visits))
        known = {id(p): name for name, p in replica.module.named_parameters()}
        self.names = {name: [known[id(p)] for p in own_parameters(owners[name])] for name in self.order}
        reached = [name for name in self.order if name in self.modules]
        if self.layers is not None:
            self.tell_of_unreached(reached)
            self.chosen = reached
        else:
            count = min(CHOSEN, len(reached))
            self.chosen = [reached[round(i * (len(reached) - 1) / max(count - 1, 1))] for i in range(count)]

    def digest(self, numbers: Sequence[int], found: Sequence[Any]) -> Samples | None:
        [layers] = found
        if not layers:
            return None
        table = torch.tensor([values for _, values in layers], dtype=torch.float64)  # (L, M)
        return Samples([name for name, _ in layers], dict(zip(self.metrics, table.T[:, None], strict=True)))
