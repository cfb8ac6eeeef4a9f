"""Norms whose backward pass is an algorithm of its own, and not the derivative of the forward pass.

Their tables are those of every rule (see `_ops/scale_shift.py`), and so is the form of the gradient, `dx = scale dy +
slope x + constant`. But slope and constant depend on statistics of gradients that the layer has collected in earlier
backward passes, and the present gradients dy update these statistics.

The second derivative is that of this gradient, as a function of x and dy.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from normzoo.norms._ops.buffers import snapshot
from normzoo.norms._ops.ranks import Group
from normzoo.norms._ops.running import RunningStatistics, is_captured
from normzoo.norms._ops.scale import scale_per_channel
from normzoo.norms._ops.scale_shift import MaybeTensor, Rule, by_plane, gradients
from normzoo.norms._ops.second_derivatives import gradient_of, is_batched, needs_autograd
from normzoo.norms._ops.tensors import in_forward_mode, in_torch_func, is_transformed

# (d_scale, d_shift, mean, var, scale, shift, *buffers, *others) -> (slope, constant, *next values of the buffers); the
# first two broadcast to (N, C).
Gradient = Callable[..., tuple[Tensor, ...]]


class Feedback(torch.autograd.Function):
    """Returns the tables scale and shift; in the backward pass, the layer's `gradient` sets slope and constant of dx.

    `Tables` computes `slope = 2 d_var / L` and `constant = d_mean / L - slope mean`; solved for d_mean and d_var::

        d_var = L slope / 2,   d_mean = L (constant + slope mean)

    This is not linear in dy, so it must enter the gradient once. Later calls of backward in a graph that is
    differentiated twice belong to the second derivative, for which scale and shift are functions of the moments. So
    each gradient that is differentiated again needs its own graph, see `by_plane_apart`.

    Whatever `gradient` reads is an argument: `vmap` over an ensemble of layers passes those of all of them.
    """

    @staticmethod
    def forward(
        mean: Tensor, var: Tensor, scale: Tensor, shift: Tensor, gradient: Gradient, once: "Pass", *given: Any
    ) -> tuple[Tensor, Tensor]:
        return scale.clone(), shift.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:4])
        ctx.gradient, ctx.once, *ctx.given = inputs[4:]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        d_scale, d_shift = grad_outputs
        mean, var, scale, shift = ctx.saved_tensors
        if not torch.compiler.is_compiling():
            # Nested torch.func transforms have a node each for the same pass.
            graph = ctx.once if ctx.once.transformed else ctx
            if getattr(graph, "differentiated", False):
                return None, None, d_scale, d_shift, *[None] * (2 + len(ctx.given))
            graph.differentiated = torch.is_grad_enabled()
        d_mean, d_var, *values = ctx.gradient(d_scale, d_shift, mean, var, scale, shift, *ctx.given)
        ctx.once.move(*zip(ctx.given, values, strict=False))
        return d_mean, d_var, *[None] * (4 + len(ctx.given))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        """The tables of an ensemble, whose gradient is that of each member."""
        *tables, gradient, once = inputs[:6]
        tables = [
            t.expand(info.batch_size, *t.shape) if d is None else t.movedim(d, 0)
            for t, d in zip(tables, in_dims[:4], strict=True)
        ]
        given = [v if d is None else v.movedim(d, 0) for v, d in zip(inputs[6:], in_dims[6:], strict=True)]
        members = (*[0] * 6, *(None if d is None else 0 for d in in_dims[6:]))
        return Feedback.apply(*tables, torch.vmap(gradient, members), once, *given), (0, 0)


def with_feedback(
    mean: Tensor,
    var: Tensor,
    scale: Tensor,
    shift: Tensor,
    positions: int,
    gradient: Gradient,
    once: "Pass",
    *given: Tensor | float,
) -> tuple[Tensor, Tensor]:
    """The tables scale and shift, with the gradient of `Feedback`; forward-mode differentiation has none to change.

    Args:
        mean: (N, C), of the planes.
        var: (N, C), of the planes.
        scale: the table; broadcasts to (N, C).
        shift: the same.
        positions: values in a plane.
        gradient: sets the gradient; see `Gradient`.
        once: the forward pass.
        given: the further arguments of `gradient`: the buffers whose next values it returns, before the others.
    """
    if in_forward_mode():
        return scale, shift
    of_moments = partial(gradient_of_moments, gradient, positions)
    tables: tuple[Tensor, Tensor] = Feedback.apply(mean, var, scale, shift, of_moments, once, *given)
    return tables


def gradient_of_moments(
    gradient: Gradient, positions: int, d_scale: Tensor, d_shift: Tensor, mean: Tensor, var: Tensor, *others: Any
) -> tuple[Tensor, ...]:
    """d_mean and d_var from slope and constant; and the next values of the buffers."""
    slope, constant, *values = gradient(d_scale, d_shift, mean, var, *others)
    return positions * (constant + slope * mean), positions / 2 * slope.expand(mean.shape), *values


def averaged_over(group: Group, gradient: Gradient) -> Gradient:
    """The same gradient, where the loss is the mean of the losses of R ranks, as distributed training has it.

    Its input is then R times the share of a rank. Statistics of gradients are computed from the shares: they equal
    those of one rank with the whole batch, so a run can resume with another number of ranks.
    """
    if group is None:
        return gradient
    size = dist.get_world_size(group)

    def shared(d_scale: Tensor, d_shift: Tensor, *others: Any) -> tuple[Tensor, ...]:
        slope, constant, *values = gradient(d_scale / size, d_shift / size, *others)
        return size * slope, size * constant, *values

    return shared


def by_plane_apart(x: Tensor, rule: Rule, *, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, ...]:
    """`by_plane`, with a graph of its own for each gradient that is to be differentiated again."""

    def formula(x: Tensor, weight: MaybeTensor, bias: MaybeTensor) -> tuple[Tensor, ...]:
        return by_plane(x, rule, weight=weight, bias=bias)

    if is_transformed():
        return formula(x, weight, bias)
    return Apart.apply(formula, x, weight, bias)


class Apart(torch.autograd.Function):
    """The first of the outputs of a formula, and the others without gradient."""

    @staticmethod
    def forward(ctx: Any, formula: Callable[..., tuple[Tensor, ...]], *inputs: Tensor | None) -> tuple[Tensor, ...]:
        needed = ctx.needs_input_grad[1:]
        with torch.enable_grad():
            leaves = [None if t is None else t.detach().requires_grad_(n) for t, n in zip(inputs, needed, strict=True)]
            y, *aside = formula(*leaves)
        ctx.save_for_backward(*inputs)
        ctx.formula, ctx.leaves, ctx.y = formula, tuple(leaves), y
        ctx.mark_non_differentiable(*aside)
        return y.detach(), *aside

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        dy = grad_outputs[0]
        if needs_autograd(dy):
            return None, *gradient_of(lambda *t: ctx.formula(*t)[0], ctx.saved_tensors, ctx.needs_input_grad[1:], dy)
        return None, *gradients((ctx.y,), (dy,), ctx.leaves)


class Pass:
    """Updates that must happen once in all backward passes of one forward pass.

    Args:
        buffers: what is updated.
    """

    def __init__(self, *buffers: Tensor) -> None:
        self.transformed = in_torch_func()
        self.moved = any(map(is_captured, buffers))

    def move(self, *moves: tuple[Tensor, Tensor]) -> None:
        """Sets each buffer to its next value, in the first backward pass of a single gradient."""
        if torch.compiler.is_compiling():  # compiled code runs backward once, and its tracing must have no side effect
            for buffer, value in moves:
                replace(buffer, snapshot(value))
        elif not self.moved and not any(is_captured(buffer) or is_batched(value) for buffer, value in moves):
            self.moved = True
            for buffer, value in moves:
                replace(buffer, value)


@torch.no_grad()
def replace(buffer: Tensor, value: Tensor) -> None:
    """Sets the buffer to its next value, where that is finite: NaN would stay forever."""
    buffer.copy_(torch.where(value.isfinite(), value.to(buffer.dtype), buffer))


class RunningSquare(RunningStatistics):
    """A layer with a running mean of the squares, and no mean: `y = weight x / sqrt(running_square + eps) + bias`."""

    running_square: Tensor

    def add_running(self, tracked: bool) -> None:
        self.register_buffer("running_square", torch.ones(self.num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def normalize_by_running(self, x: Tensor) -> Tensor:
        scale = (self.running_square + self.eps).rsqrt()
        return scale_per_channel(x, scale if self.weight is None else scale * self.weight, None, self.bias)
