"""Do gradients vanish or explode on their way through the network?"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from normzoo.callbacks._board import Board, Chart
from normzoo.callbacks._layers import own_parameters
from normzoo.callbacks._monitor import Heard, Monitor, Readings, Sample, Step
from normzoo.callbacks.schedule import Schedule
from normzoo.errors import InputError
from normzoo.metrics import growth, norms, ratio
from normzoo.probes import Layers, is_weighted, of_kind


class GradientFlow(Monitor):
    """Shows the size of gradients and updates layer by layer, and names the first layer where they vanish or explode.

    - `flow_norm/`: `||dL / dy_l||`, of the loss with respect to the layer's output, over the batch of all ranks;
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
        self.order: list[str] = []
        self.flagged: set[str] = set()

    def usual_layers(self, model: nn.Module) -> dict[str, nn.Module]:
        return of_kind(model, is_weighted)

    def find_layers(self, model: nn.Module) -> None:
        super().find_layers(model)
        self.parameters = {name: own_parameters(module) for name, module in self.modules.items()}
        self.flat = [p for own in self.parameters.values() for p in own]
        owners = [i for i, own in enumerate(self.parameters.values()) for _ in own]
        self.owner = torch.tensor(owners, dtype=torch.long)

    def readings(self) -> Readings:
        return {("gradient", squared_norm): self.modules}

    def begin(self, step: Step) -> None:
        self.gradient: Tensor | None = None

    def before_update(self, step: Step) -> None:
        """Keeps the weights and the norms of gradients."""
        self.gradient = self.by_layer([zero_or(p.grad, p) for p in self.flat])
        self.has_gradient = self.by_layer_any([p.grad is not None for p in self.flat])
        self.weights = [p.detach().clone() for p in self.flat]

    def by_layer(self, tensors: Sequence[Tensor]) -> Tensor:
        """The norm of each layer's tensors together, (L,) in float64 on the CPU."""
        sums = torch.zeros(len(self.modules), dtype=torch.float64)
        return sums.index_add_(0, self.owner, norms(tensors).double().cpu().square()).sqrt()

    def by_layer_any(self, conditions: Sequence[bool]) -> Tensor:
        """Whether a condition holds for any tensor of each layer, bool (L,)."""
        counts = torch.zeros(len(self.modules))
        return counts.index_add_(0, self.owner, torch.tensor(conditions, dtype=torch.float32)) > 0

    def collect(self, step: Step, heard: Heard) -> dict[str, Any]:
        scale = loss_scale(step)
        flow: dict[str, list[Tensor]] = {}
        for name, square in heard["gradient", squared_norm]:
            flow.setdefault(name, []).extend([] if square is None else [square])
        squares = {name: sum(many[1:], many[0]) / scale**2 for name, many in flow.items() if many}
        listed = torch.stack(list(squares.values())).tolist() if squares else []
        found: dict[str, Any] = {"samples": step.samples, "order": list(flow)}
        found["flow"] = dict(zip(squares, listed, strict=True))
        if self.gradient is not None:
            size = self.by_layer(self.weights)
            moved = torch._foreach_sub([p.detach() for p in self.flat], self.weights)
            found["grad_norm"], found["grad_ratio"] = self.gradient, ratio(self.gradient, size)
            found["update_ratio"] = ratio(self.by_layer(list(moved)), size)
            if step.trainer.gradient_clip_val:
                found["grad_norm_clipped"] = self.by_layer([zero_or(p.grad, p) for p in self.flat])
        self.weights = []
        return found

    def merge(self, step: Step, parts: Sequence[Any]) -> Sample:
        # The loss of all ranks is the average of theirs, weighted by samples: so are its gradients.
        total = sum(part["samples"] for part in parts)
        squares: dict[str, float] = {}
        for part in parts:
            for name, square in part["flow"].items():
                squares[name] = squares.get(name, 0.0) + (part["samples"] / total) ** 2 * square
        self.order = list(dict.fromkeys([*self.order, *(name for part in parts for name in part["order"])]))
        rows = self.order
        self.tell_of_unreached(rows)
        place = [list(self.modules).index(name) for name in rows]
        values = {
            "flow_norm": torch.tensor([squares.get(name, torch.nan) for name in rows], dtype=torch.float64).sqrt()
        }
        applies = {"flow_norm": torch.tensor([name in squares for name in rows])}
        learned = torch.tensor([bool(self.parameters[name]) for name in rows])
        for metric in ("grad_norm", "grad_norm_clipped", "grad_ratio", "update_ratio"):
            if metric in parts[0]:
                values[metric] = parts[0][metric][place]
                applies[metric] = learned & self.has_gradient[place]
                if metric.endswith("ratio"):  # a weight of 0 has no share
                    applies[metric] &= ~values[metric].isnan() | values["grad_norm"].isnan()
        return Sample(rows, values, applies)

    def write(self, step: Step, sample: Sample, board: Board) -> None:
        known = sample.applies["flow_norm"]
        if known.any():
            names = [row for row, k in zip(sample.rows, known.tolist(), strict=True) if k]
            flow = sample.values["flow_norm"][known]
            share = flow / flow[-1]
            vanishing = (share < self.vanishing) | (flow == 0)
            exploding = (share > self.exploding) | ~flow.isfinite()
            if len(names) > 1:
                board.scalars({"flow/growth": growth(flow).item()})
            board.scalars({"flow/vanishing": vanishing.sum().item(), "flow/exploding": exploding.sum().item()})
            self.flag(step, "vanishes", names, vanishing, flow)
            self.flag(step, "explodes", names, exploding, flow)
        super().write(step, sample, board)

    def flag(self, step: Step, what: str, names: Sequence[str], where: Tensor, flow: Tensor) -> None:
        """Warns when it begins, of the first layer on the way back from the loss."""
        if not where.any():
            self.flagged.discard(what)
            self.warned.discard(what)
            return
        if what not in self.flagged:
            self.flagged.add(what)
            first = int(where.nonzero()[-1])
            self.warn_once(
                what,
                f"step {step.number}: the gradient {what} at {names[first]}: {flow[first].item():.3g} with respect to "
                f"its output, {flow[-1].item():.3g} at the last layer, {names[-1]}; so it is in {int(where.sum())} of "
                f"{len(names)} layers. Norms, another init or learning rate, or gradient clipping may help.",
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


def squared_norm(module: nn.Module, gradient: Tensor) -> Tensor:
    """What a probe reads of a gradient: the sum of squares."""
    return (
        torch.linalg.vector_norm(gradient, dtype=torch.promote_types(gradient.dtype, torch.float32)).double().square()
    )


def zero_or(gradient: Tensor | None, like: Tensor) -> Tensor:
    """A gradient, zeros where there is none."""
    return like.new_zeros(1) if gradient is None else gradient


def loss_scale(step: Step) -> float:
    """What the backward pass multiplies the loss by: of mixed precision, and of accumulation."""
    scaler = getattr(step.trainer.precision_plugin, "scaler", None)
    return (scaler.get_scale() if scaler is not None else 1.0) / step.trainer.accumulate_grad_batches
