"""Do gradients vanish or explode on their way through the network?"""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from normzoo.errors import InputError
from normzoo.metrics import growth, norms, ratio
from normzoo.monitoring.layers import own_parameters
from normzoo.monitoring.monitor import Monitor
from normzoo.monitoring.probe import Layers, is_weighted, of_kind
from normzoo.monitoring.sample import Heard, Readings, Samples, Step
from normzoo.monitoring.schedule import Schedule
from normzoo.monitoring.writer import Chart

NONE = torch.zeros(0, dtype=torch.float64)


class Notes(NamedTuple):
    """What is noted of a step."""

    order: tuple[str, ...]
    """Layers as they ran."""
    flowing: tuple[str, ...]
    """Those whose output has a gradient."""
    squares: Tensor
    """Its squared norm, for each of them."""
    with_gradient: tuple[bool, ...]
    """Which of the parameters have one."""
    by_parameter: dict[str, Tensor]
    """Norms of gradients, weights and updates, for each parameter."""


class GradientFlow(Monitor):
    """Shows the size of gradients and updates layer by layer, and names the first layer where they vanish or explode.

    - `flow_norm/`: `||dL / dy_l||`, of the step's loss with respect to the layer's output, over all ranks;
    - `grad_norm/`: `||dL / dw_l||` of the layer's weights, over all ranks, unscaled, not clipped yet;
    - `grad_norm_clipped/`: the same as the optimizer took it, where the Trainer clips;
    - `grad_ratio/`: `||dL / dw_l|| / ||w_l||`;
    - `update_ratio/`: `||w_l' - w_l|| / ||w_l||`, what the step has made of it: about 1e-3 is healthy with SGD;
    - `flow/growth`: the factor by which `flow_norm` grows per layer towards the first, a fit over all layers;
    - `flow/vanishing` and `flow/exploding`: the number of layers whose `flow_norm` is below or above a share of the
      last layer's. The first that is, on the way back, is named in a warning, once when it begins.

    Norms are in units of the loss per unit of what they belong to; ratios and growth have no unit.

    Args:
        every: optimizer steps between samples, or a function of the step.
        layers: names with `*`, or classes; None for all layers with weights but norms.
        vanishing: the share of the last layer's flow below which a layer's has vanished, in (0, 1).
        exploding: the share above which it has exploded, above 1.

    Raises:
        InputError: `layers` matches nothing; a share out of range.

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
    }
    totals: Mapping[str, str] = {
        "flow/growth": "factor by which the gradient grows per layer towards the first",
        "flow/vanishing": "number of layers whose gradient has vanished",
        "flow/exploding": "number of layers whose gradient has exploded",
    }
    heatmaps = ("flow_norm", "grad_norm", "update_ratio")

    def __init__(
        self,
        every: int | Schedule = 50,
        layers: Layers | None = None,
        vanishing: float = 1e-3,
        exploding: float = 1e3,
    ) -> None:
        super().__init__(every, layers, detail_every=0)
        if not 0 < vanishing < 1 < exploding:
            raise InputError(
                f"GradientFlow(vanishing={vanishing!r}, exploding={exploding!r}): they are shares of the last layer's "
                f"flow, the one in (0, 1), the other above 1; 1e-3 and 1e3 are the defaults."
            )
        self.vanishing = vanishing
        self.exploding = exploding

    def reset(self) -> None:
        super().reset()
        self.order: list[str] = []

    def usual_layers(self, model: nn.Module) -> dict[str, nn.Module]:
        return of_kind(model, is_weighted)

    def find_layers(self, model: nn.Module) -> None:
        super().find_layers(model)
        self.parameters = {name: own_parameters(module) for name, module in self.modules.items()}
        self.flat = [p for own in self.parameters.values() for p in own]
        owners = [i for i, own in enumerate(self.parameters.values()) for _ in own]
        self.owner = torch.tensor(owners, dtype=torch.long)
        self.place = {name: i for i, name in enumerate(self.modules)}

    def readings(self) -> Readings:
        return {("gradient", norm_of): self.modules}

    def begin(self, step: Step) -> None:
        self.noted: dict[str, Tensor] = {}
        self.weights: list[Tensor] = []
        self.gradients: list[Tensor] = []
        """Norms of gradients, (G,), of each optimizer."""
        self.with_gradient: list[int] = []
        """The places of their parameters in `flat`."""
        self.scale = 1.0 if step.on_copy else loss_scale(step)  # as it is in this step's backward pass

    def before_update(self, step: Step, optimizer: Optimizer) -> None:
        """Keeps the norms of an optimizer's gradients, and, before the first of several moves them, the weights."""
        if not self.weights:
            self.weights = [p.detach().clone() for p in self.flat]
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        known = set(self.with_gradient)
        mine = [i for i, p in enumerate(self.flat) if id(p) in own and p.grad is not None and i not in known]
        self.gradients.append(norms([gradient_of(self.flat[i]) for i in mine]))
        self.with_gradient += mine

    def collect(self, step: Step, heard: Heard) -> Notes:
        passes = heard["gradient", norm_of]
        order = tuple(dict.fromkeys(name for name, _ in passes))
        seen = [(name, norm) for name, norm in passes if norm is not None]
        flowing = tuple(dict.fromkeys(name for name, _ in seen))
        squares = NONE
        if seen:
            squares = torch.stack([norm for _, norm in seen]).double().cpu().square() / self.scale**2
        if len(flowing) < len(seen):  # some ran several times
            place = torch.tensor([flowing.index(name) for name, _ in seen])
            squares = squares.new_zeros(len(flowing)).index_add_(0, place, squares)
        if self.weights:
            found = torch.cat([one.double().cpu() for one in self.gradients])
            if self.with_gradient != list(range(len(self.flat))):
                place = torch.tensor(self.with_gradient, dtype=torch.long)
                found = found.new_zeros(len(self.flat)).index_copy_(0, place, found)
            self.noted["grad_norm"] = found
            self.noted["weight"] = norms(self.weights)
            torch._foreach_sub_(self.weights, [p.detach() for p in self.flat])  # in place: no further copy
            self.noted["update"] = norms(self.weights)
            if step.trainer.gradient_clip_val:
                self.noted["grad_norm_clipped"] = norms([gradient_of(p) for p in self.flat])
        self.weights = []
        by_parameter = {name: one.double().cpu() for name, one in self.noted.items()}
        known = set(self.with_gradient)
        with_gradient = tuple(i in known for i in range(len(self.flat)))
        return Notes(order, flowing, squares, with_gradient, by_parameter)

    def merge(self, parts: Sequence[Notes]) -> Notes:
        # What the step minimizes is the average of the losses of all ranks, each of which counts the same.
        if len(parts) == 1:
            return parts[0]
        squares: dict[str, Tensor] = {}
        for part in parts:
            for name, square in zip(part.flowing, part.squares, strict=True):
                squares[name] = squares.get(name, torch.zeros_like(square)) + square / len(parts) ** 2
        order = tuple(dict.fromkeys(name for part in parts for name in part.order))
        summed = torch.stack(list(squares.values())) if squares else NONE
        return parts[0]._replace(order=order, flowing=tuple(squares), squares=summed)

    def structure(self, found: Notes) -> Hashable:
        return found.order, found.flowing, found.with_gradient, tuple(found.by_parameter)

    def digest(self, numbers: Sequence[int], found: Sequence[Notes]) -> Samples | None:
        first = found[0]
        self.tell_of_unreached(first.order)
        self.order = list(dict.fromkeys([*self.order, *first.order]))
        if not self.order:
            return None
        count = len(self.modules)
        place = torch.tensor([self.place[name] for name in first.flowing], dtype=torch.long)
        flow = torch.full((len(found), count), torch.nan, dtype=torch.float64)
        flow[:, place] = torch.stack([one.squares for one in found]).sqrt()
        flows = torch.zeros(count, dtype=torch.bool)
        flows[place] = True
        values, applies = {"flow_norm": flow}, {"flow_norm": flows}
        by_layer = {name: self.by_layer([one.by_parameter[name] for one in found]) for name in first.by_parameter}
        learns = torch.zeros(count).index_add_(0, self.owner, torch.tensor(first.with_gradient).float()) > 0
        for metric in ("grad_norm", "grad_norm_clipped"):
            if metric in by_layer:
                values[metric], applies[metric] = by_layer[metric], learns
        if "weight" in by_layer:
            has_share = learns & (by_layer["weight"] != 0)  # a weight of 0 has no share
            for metric, part in (("grad_ratio", "grad_norm"), ("update_ratio", "update")):
                values[metric], applies[metric] = ratio(by_layer[part], by_layer["weight"]), has_share
        chosen = torch.tensor([self.place[name] for name in self.order])
        flowing = [name for name in self.order if name in first.flowing]
        in_order = flow[:, torch.tensor([self.place[name] for name in flowing], dtype=torch.long)].tolist()
        self.told = [
            self.tell(number, dict(zip(flowing, sizes, strict=True)))
            for number, sizes in zip(numbers, in_order, strict=True)
        ]
        values = {metric: column[:, chosen] for metric, column in values.items()}
        return Samples(self.order, values, {metric: there[..., chosen] for metric, there in applies.items()})

    def by_layer(self, norms_of_parameters: Sequence[Tensor]) -> Tensor:
        """The norm of each layer's tensors together: of K x (P,), (K, L)."""
        squares = torch.stack(list(norms_of_parameters)).square()
        return squares.new_zeros(len(squares), len(self.modules)).index_add_(1, self.owner, squares).sqrt()

    def totals_of(self, samples: Samples) -> list[dict[str, float]]:
        return self.told

    def tell(self, number: int, flow: Mapping[str, float]) -> dict[str, float]:
        """Growth of the gradient over the layers of a step; layers where it vanishes or explodes, with warnings."""
        if not flow:
            return {}
        last = list(flow.values())[-1]
        vanishing = [name for name, size in flow.items() if size == 0 or size < self.vanishing * last]
        exploding = [name for name, size in flow.items() if size == math.inf or size > self.exploding * last]
        self.flag(number, "vanishes", vanishing, flow)
        self.flag(number, "explodes", exploding, flow)
        told = {"flow/vanishing": float(len(vanishing)), "flow/exploding": float(len(exploding))}
        if len(flow) > 1:
            told["flow/growth"] = growth(torch.tensor(list(flow.values()))).item()
        return told

    def flag(self, number: int, what: str, where: Sequence[str], flow: Mapping[str, float]) -> None:
        """Warns when it begins, of the first layer on the way back from the loss."""
        if not where:
            self.warned.discard(what)
            return
        first, (last, at_last) = where[-1], list(flow.items())[-1]
        self.warn_once(
            what,
            f"step {number}: the gradient {what} at {first}: {flow[first]:.3g} with respect to its output, "
            f"{at_last:.3g} at the last layer, {last}; so it is in {len(where)} of {len(flow)} layers. Norms, another "
            f"init or learning rate, or gradient clipping may help.",
        )

    def charts(self) -> list[Chart]:
        told = {
            "flow_norm": "gradient of each layer's output",
            "grad_norm": "gradient of each layer's weights",
            "grad_ratio": "gradient / weight",
            "update_ratio": "update / weight",
        }
        charts = [Chart(f"{title} ({metric})", (f"^{metric}/",)) for metric, title in told.items()]
        return [Chart("growth per layer, layers that vanish or explode", ("^flow/",)), *charts]


def norm_of(module: nn.Module, gradient: Tensor) -> Tensor:
    """What a probe reads of a gradient."""
    return torch.linalg.vector_norm(gradient, dtype=torch.promote_types(gradient.dtype, torch.float32))


def gradient_of(parameter: nn.Parameter) -> Tensor:
    """The gradient, a 0 where there is none."""
    return parameter.new_zeros(1) if parameter.grad is None else parameter.grad


def loss_scale(step: Step) -> float:
    """What the backward pass multiplies the loss by: of mixed precision, and of accumulation."""
    scaler = getattr(step.trainer.precision_plugin, "scaler", None)
    return (scaler.get_scale() if scaler is not None else 1.0) / step.trainer.accumulate_grad_batches
