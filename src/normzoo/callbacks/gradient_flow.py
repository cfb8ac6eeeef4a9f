"""Do gradients vanish or explode on their way through the network, and does every layer learn?"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from normzoo.metrics import norms
from normzoo.monitoring.layers import Layers, is_weighted, of_kind, own_parameters
from normzoo.monitoring.monitor import Monitor
from normzoo.monitoring.sample import Readings, Seen, Step, Table
from normzoo.monitoring.schedule import Schedule


class Sample(NamedTuple):
    """What is read of a step."""

    order: list[str]
    """Layers in the order of execution."""
    flow: dict[str, float]
    """Layer -> squared norm of the gradient of its output, where there is one."""
    parameters: dict[str, dict[str, float]]
    """Metric -> layer -> value, of its weights."""


class GradientFlow(Monitor):
    """Shows the size of gradients and updates layer by layer.

    - `flow_norm/`: `||dL / dy_l||`, of the loss of the step's first batch with respect to the layer's output;
    - `grad_norm/`: `||dL / dw_l||` of the layer's weights, over all ranks, unscaled, not clipped yet;
    - `grad_norm_clipped/`: the same as the optimizer took it, where the Trainer clips;
    - `grad_ratio/`: `||dL / dw_l|| / ||w_l||`;
    - `update_ratio/`: `||w_l' - w_l|| / ||w_l||`, the relative size of the update: about 1e-3 is healthy with SGD;
    - `turn/`: `||d - (d.w / ||w||^2) w|| / ||w||` with `d = w_l' - w_l`, the part of the update across the weights.
      Weight decay moves along them, so that a layer that only decays has 0; as has one that is frozen. A frozen layer
      that the module moves itself, such as a moving average of another, has no value.

    Norms are in units of the loss per unit of what they belong to; ratios and turn have no unit. `turn` takes each
    parameter of a layer for itself, as weight decay does. `Verdicts` names the layer where gradients vanish or explode,
    and layers that do not learn.

    Args:
        every: optimizer steps between samples, or a function of the step; None for 200, or less in a run so short
            that there were fewer than 20 samples.
        layers: names or classes, with `*`; None for all layers with weights but norms.

    Raises:
        InputError: `layers` matches nothing; a number out of range.

    Reference: Xavier Glorot, Yoshua Bengio. Understanding the difficulty of training deep feedforward neural networks.
    2010. Growth of batch norm: Greg Yang et al. A Mean Field Theory of Batch Normalization. 2019. arXiv 1902.08129.
    """

    question = "Gradient flow"
    metrics: Mapping[str, str] = {
        "flow_norm": "norm of the gradient with respect to the layer's output",
        "grad_norm": "norm of the gradient with respect to the layer's weights, before clipping",
        "grad_norm_clipped": "norm of the gradient with respect to the layer's weights, after clipping",
        "grad_ratio": "norm of the gradient as a share of the norm of the weights",
        "update_ratio": "norm of the update as a share of the norm of the weights",
        "turn": "norm of the part of the update that is across the weights, as a share of their norm",
    }

    def __init__(self, every: int | Schedule | None = None, layers: Layers | None = None) -> None:
        super().__init__(every, layers, detail_every=0)

    def reset(self) -> None:
        super().reset()
        self.order: list[str] = []
        self.frozen: dict[str, float] = {}
        """Layer whose weights do not learn -> their norm at the newest sample."""

    def usual_layers(self, model: nn.Module) -> dict[str, nn.Module]:
        return of_kind(model, is_weighted)

    def find_layers(self, model: nn.Module) -> None:
        super().find_layers(model)
        self.owned = [(name, p) for name, module in self.modules.items() for p in own_parameters(module)]

    def readings(self) -> Readings:
        return {("gradient", norm_of): self.modules}

    def begin(self, step: Step) -> None:
        trained = [(name, p) for name, p in self.owned if p.requires_grad]  # which may change during training
        self.owners, self.parameters = [name for name, _ in trained], [p for _, p in trained]
        self.still = self.find_still()
        self.weights: list[Tensor] = []
        self.gradients: dict[int, float] = {}
        """Place of a parameter -> norm of its gradient."""
        self.scale = 1.0 if step.on_copy else loss_scale(step)  # that of this step's backward pass

    def find_still(self) -> list[str]:
        """The layers that do not learn, and whose weights are those of the last sample."""
        weights = [(name, p.detach()) for name, p in self.owned if not p.requires_grad]
        sizes: dict[str, float] = {}
        for (name, _), size in zip(weights, norms([p for _, p in weights]).tolist(), strict=True):
            sizes[name] = sizes.get(name, 0.0) + size
        before, self.frozen = self.frozen, sizes
        return [name for name, size in sizes.items() if before.get(name, size) == size]

    def before_update(self, step: Step, optimizer: Optimizer) -> None:
        """Reads the gradients of an optimizer; before the first of several updates, copies the weights."""
        if not self.weights:
            self.weights = [p.detach().clone() for p in self.parameters]
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        gradients = {i: p.grad for i, p in enumerate(self.parameters) if id(p) in own and p.grad is not None}
        fresh = {i: gradient for i, gradient in gradients.items() if i not in self.gradients}
        self.gradients.update(zip(fresh, norms(list(fresh.values())).tolist(), strict=True))

    def read(self, step: Step, seen: Seen) -> Sample:
        passes = seen["gradient", norm_of]
        flow: dict[str, float] = {}
        for name, norm in passes:
            if norm is not None:
                flow[name] = flow.get(name, 0.0) + (float(norm) / self.scale) ** 2
        return Sample(list(dict.fromkeys(name for name, _ in passes)), flow, self.read_parameters(step))

    def read_parameters(self, step: Step) -> dict[str, dict[str, float]]:
        """Metric -> layer -> value, of the weights of a layer; only `turn` of those that did not learn in this step."""
        frozen = dict.fromkeys(self.still, 0.0)
        if not self.weights:
            return {"turn": frozen}
        weights = norms(self.weights).tolist()
        for before, p in zip(self.weights, self.parameters, strict=True):
            before.sub_(p.detach())  # in place: no further copy
        weight, update = self.by_layer(weights), self.by_layer(norms(self.weights).tolist())
        across = self.by_layer(norms(list(map(across_weights, self.weights, self.parameters, weights))).tolist())
        self.weights = []
        learn = {self.owners[i] for i in self.gradients}
        gradient = self.by_layer([self.gradients.get(i, 0.0) for i in range(len(self.parameters))])
        found = {"grad_norm": gradient}
        if step.trainer.gradient_clip_val:
            clipped = [p.new_zeros(1) if p.grad is None else p.grad for p in self.parameters]
            found["grad_norm_clipped"] = self.by_layer(norms(clipped).tolist())
        # Weights that are all 0 have no ratio.
        found["grad_ratio"] = {name: gradient[name] / size for name, size in weight.items() if size}
        found["update_ratio"] = {name: update[name] / size for name, size in weight.items() if size}
        found = {metric: {n: v for n, v in by_layer.items() if n in learn} for metric, by_layer in found.items()}
        return {**found, "turn": {**frozen, **{name: across[name] / size for name, size in weight.items() if size}}}

    def by_layer(self, sizes: Sequence[float]) -> dict[str, float]:
        """The norm of each layer, from the norms of its parameters."""
        squares = dict.fromkeys(self.owners, 0.0)
        for name, size in zip(self.owners, sizes, strict=True):
            squares[name] += size**2
        return {name: math.sqrt(square) for name, square in squares.items()}

    def merge(self, parts: Sequence[Sample]) -> Sample:
        # The step minimizes the average of the losses of all ranks, each of which counts the same.
        order = list(dict.fromkeys(name for part in parts for name in part.order))
        share = 1 / len(parts) ** 2
        flow = {
            name: sum(part.flow[name] * share for part in parts if name in part.flow)
            for name in dict.fromkeys(name for part in parts for name in part.flow)
        }
        return parts[0]._replace(order=order, flow=flow)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "frozen": self.frozen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.frozen = dict(state_dict.get("frozen", {}))

    def compute(self, number: int, sample: Sample) -> Table | None:
        self.warn_of_unreached(sample.order)
        self.order = list(dict.fromkeys([*self.order, *sample.order]))
        flow = {name: math.sqrt(sample.flow[name]) for name in self.order if name in sample.flow}
        parameters = {
            metric: {name: by_layer[name] for name in self.order if name in by_layer}
            for metric, by_layer in sample.parameters.items()
        }
        return Table(self.order, {"flow_norm": flow, **parameters}) if self.order else None


def norm_of(module: nn.Module, gradient: Tensor) -> Tensor:
    """Reads the norm of a gradient."""
    return norms([gradient])[0]


def across_weights(back: Tensor, parameter: Tensor, size: float) -> Tensor:
    """The part of an update across the weights.

    Args:
        back: the weights before the update, minus those after it.
        parameter: the weights after it.
        size: the norm of those before it.
    """
    before = parameter.detach() + back
    along = (back * before).sum() / size**2 if size else 0.0
    return back - along * before


def loss_scale(step: Step) -> float:
    """The factor of the loss in the backward pass: of mixed precision, and of gradient accumulation."""
    scaler = getattr(step.trainer.precision_plugin, "scaler", None)
    return (scaler.get_scale() if scaler is not None else 1.0) / step.trainer.accumulate_grad_batches
