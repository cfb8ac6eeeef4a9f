"""Normalization as a scale and a shift.

Given its statistics, nearly every normalization is `y = scale x + shift`, where scale and shift are constant within a
*plane*, the positions of one channel of one sample; or, for a layer that normalizes each position, within the channels
of one position. Layers differ in how the two depend on the means and variances of the planes. A layer writes that as
its *rule*: a few lines of mathematics on tables (N, C), differentiable by autograd and small compared with the input.
This module computes the large passes over x for all of them, with an explicit gradient.

With L values to a plane, S = sum dy and D = sum dy x over each plane, autograd through the rule maps the gradients of
the two tables, D of the scale and S of the shift, to those of the moments, d_mean and d_var. Then::

    dx = scale dy + slope x + constant,   slope = 2 d_var / L,   constant = d_mean / L - slope mean

as `d mean / dx = 1 / L` and `d var / dx = 2 (x - mean) / L`. Only x is saved for the backward pass.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from normzoo.norms._ops import cpu as kernels
from normzoo.norms._ops.second_derivatives import gradient_of, needs_autograd
from normzoo.norms._ops.tensors import at_least_float32, inverse_root

# (mean, var, *tensors) -> (scale, shift, *aside): tables; the moments are (N, C) or (N, L).
Rule = Callable[..., tuple[Tensor, ...]]
MaybeTensor = Tensor | None  # torch 2.8 cannot compile a nested function with such an annotation, but its name

# E[x^2] - E[x]^2 loses log2(1 + mean^2 / var) bits: here 6 of float32's 24, of which summing loses 4 anyway.
LARGEST_MEAN_SQUARE_OVER_VAR = 64.0


def by_plane(
    x: Tensor, rule: Rule, *tensors: Tensor | None, weight: Tensor | None = None, bias: Tensor | None = None
) -> tuple[Tensor, ...]:
    """`y = weight (scale x + shift) + bias`, with tables from the mean and variance of each channel of each sample.

    Args:
        x: (N, C, *) of any floating dtype; (N, C) has planes of one value. Statistics are float32 at least.
        rule: `rule(mean, var, *tensors)` from tables (N, C), the biased variance, to scale and shift, which broadcast
            to (N, C), and further outputs. It has no side effects except collectives, as it may be called again.
        tensors: the other differentiable inputs of the rule, converted to the dtype of the moments.
        weight: (C,) or None.
        bias: (C,) or None.

    Returns:
        y like x; and the further outputs of the rule, without gradient.
    """

    def folded(mean: Tensor, var: Tensor, *given: MaybeTensor) -> tuple[Tensor, ...]:
        *own, w, b = given
        scale, shift, *aside = rule(mean, var, *own)
        if w is not None:
            scale, shift = scale * w, shift * w
        return scale, shift if b is None else shift + b, *aside

    return evaluate(x, folded, (*tensors, weight, bias), None, None, over_channels=False)


def by_position(
    x: Tensor, rule: Rule, *tensors: Tensor | None, weight: Tensor | None = None, bias: Tensor | None = None
) -> tuple[Tensor, ...]:
    """`y = weight (scale x + shift) + bias`, with tables from the mean and variance of the channels at each position.

    As `by_plane`, but the tables of the rule are (N, L), with L positions.
    """
    return evaluate(x, rule, tensors, weight, bias, over_channels=True)


def plane_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the biased variance of each channel of each sample over positions, with gradient: tables (N, C).

    For layers that are not a scale and a shift; those use `by_plane`. With L values to a plane::

        dx = slope (x - mean) + d_mean / L,   slope = 2 d_var / L

    Args:
        x: (N, C, *) of any floating dtype; the moments are float32 at least.

    Returns:
        mean and var.
    """
    wide = at_least_float32(x)
    if x.dim() == 2 or kernels.stays_plain(x):
        return plain_moments(wide)
    volume, last = kernels.as_volume(wide)
    return PlaneMoments.apply(*moments(volume, 1 if last else 2), 1 if last else 2)


def plain_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """The plain formula, for any shape (N, C, *), differentiable to every order."""
    if x.dim() == 2:
        return x, torch.zeros_like(x)
    flat = x.flatten(2)
    mean = flat.mean(2, keepdim=True)
    return mean.squeeze(2), (flat - mean).square().mean(2)


class PlaneMoments(torch.autograd.Function):
    """The moments of a volume, computed by `moments`, and their gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mean: Tensor, var: Tensor, pivot: Tensor | None, dim: int
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, mean, pivot)
        ctx.dim = dim
        return mean.clone(), var.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, pivot = ctx.saved_tensors
        if needs_autograd(*grad_outputs):
            shift = 0 if pivot is None else pivot.unsqueeze(ctx.dim)
            found = gradient_of(
                lambda x: plain_moments(kernels.channels_second(x + shift, ctx.dim)), (x,), (True,), grad_outputs
            )
            return *found, *[None] * 4
        d_mean, d_var = (d / x.shape[ctx.dim] for d in grad_outputs)
        slope = 2 * d_var
        # If the mean was subtracted from x, the mean of x is 0.
        constant = d_mean if pivot is not None else torch.addcmul(d_mean, slope, mean, value=-1)
        return kernels.scale_and_shift(x, slope, constant, ctx.dim), *[None] * 4


def standardize(mean: Tensor, var: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The tables of `(x - mean) / sqrt(var + eps)`."""
    inv_std = inverse_root(var + eps)
    return inv_std, -mean * inv_std


def about(mean: Tensor, scale: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """The tables of `scale (x - mean) + level`.

    A rule that mixes statistics by a parameter mixes distances from the mean of the plane, and adds the mean last:
    otherwise the gradient of the parameter is a difference of numbers as large as the mean.
    """
    return scale, level - scale * mean


def evaluate(
    x: Tensor,
    rule: Rule,
    tensors: tuple[Tensor | None, ...],
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    over_channels: bool,
) -> tuple[Tensor, ...]:
    """Evaluates the rule by `plain` or `Tables`, and converts the result to the dtype of x."""
    wide = at_least_float32(x)
    given = tuple(None if t is None else t.to(wide.dtype) for t in (weight, bias, *tensors))
    if x.dim() == 2 or kernels.stays_plain(x):
        y, *aside = plain(wide, rule, over_channels, *given)
        return y.to(x.dtype), *(a.detach() for a in aside)
    volume, last = kernels.as_volume(wide)
    measured = moments(volume, 2 if over_channels == last else 1)
    y, *aside = Tables.apply(*measured, rule, over_channels, last, *given)
    return kernels.restore(y, x, last).to(x.dtype), *aside


def plain(
    x: Tensor, rule: Rule, over_channels: bool, weight: Tensor | None, bias: Tensor | None, *tensors: Tensor | None
) -> tuple[Tensor, ...]:
    """The plain formula, for any shape (N, C, *), differentiable to every order."""
    channels = (1, -1, *[1] * (x.dim() - 2))
    over = (1,) if over_channels else tuple(range(2, x.dim()))
    full = [1 if axis in over else size for axis, size in enumerate(x.shape)]
    table = (x.shape[0], math.prod(x.shape[2:])) if over_channels else x.shape[:2]
    mean = x.mean(over, keepdim=True) if over else x
    var = (x - mean).square().mean(over) if over else torch.zeros_like(x)
    scale, shift, *aside = rule(mean.reshape(table), var.reshape(table), *tensors)
    size = mean.reshape(table).shape
    y = x * scale.expand(size).reshape(full) + shift.expand(size).reshape(full)
    if weight is not None:
        y = y * weight.view(channels)
    return y if bias is None else y + bias.view(channels), *aside


class Tables(torch.autograd.Function):
    """Forward and backward pass of a rule on a volume (N, a, b); see the module docstring."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mean: Tensor,
        var: Tensor,
        pivot: Tensor | None,
        rule: Rule,
        over_channels: bool,
        channels_last: bool,
        weight: Tensor | None,
        bias: Tensor | None,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        dim = 2 if over_channels == channels_last else 1
        with torch.enable_grad():
            leaves = [None if t is None else t.detach().requires_grad_(t.requires_grad) for t in tensors]
            of_moments = [t.detach().requires_grad_(ctx.needs_input_grad[0]) for t in (mean, var)]
            scale, shift, *aside = rule(*of_moments, *leaves)
            scale, shift = scale.expand(mean.shape), shift.expand(mean.shape)
        ctx.save_for_backward(x, pivot, weight, bias, *tensors)
        ctx.inputs, ctx.tables = (*of_moments, *leaves), (scale, shift)
        ctx.rule, ctx.over_channels, ctx.channels_last, ctx.dim = rule, over_channels, channels_last, dim
        y = kernels.scale_and_shift(x, scale.detach(), shifted(scale, shift, pivot), dim, weight, bias)
        outputs = [a.detach() for a in aside]
        ctx.mark_non_differentiable(*outputs)
        return y, *outputs

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        dy = grad_outputs[0]
        x, pivot, weight, bias, *tensors = ctx.saved_tensors
        if needs_autograd(dy):
            return gradient_of_plain(ctx, dy, x, pivot, weight, bias, tensors)
        dy, dim, (scale, shift) = dy.contiguous(), ctx.dim, ctx.tables
        d_weight = d_bias = None
        if weight is None and bias is None:
            d_shift, d_scale = kernels.sums_and_dots(dy, x, dim)
        else:
            gain = x.new_ones(x.shape[dim]) if weight is None else weight
            z_tables = scale.detach(), shifted(scale, shift, pivot)
            d_shift, d_scale, dots, sums = kernels.weighted_sums_and_dots(dy, x, *z_tables, dim, gain)
            d_weight, d_bias = None if weight is None else dots, None if bias is None else sums
        if pivot is not None:
            d_scale = torch.addcmul(d_scale, pivot, d_shift)
        mean, var, *leaves = ctx.inputs
        d_mean, d_var, *d_leaves = gradients((scale, shift), (d_scale, d_shift), (mean, var, *leaves))
        dx = None
        if ctx.needs_input_grad[0]:
            values = x.shape[dim]
            slope = torch.zeros_like(mean) if d_var is None else d_var * (2 / values)
            constant = torch.zeros_like(mean) if d_mean is None else d_mean / values
            if pivot is None:  # else the mean of x is 0
                constant = torch.addcmul(constant, slope, mean.detach(), value=-1)
            dx = kernels.combine(dy, x, scale.detach(), slope, constant, dim, weight)
        return dx, *[None] * 6, d_weight, d_bias, *d_leaves


def moments(x: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The mean and the biased variance over one axis of a volume.

    Returns:
        x, or x - mean if the square of the mean is so large that the variance would lose its digits; mean; var; and the
        mean again if it was subtracted, else None. Only x has a gradient.
    """
    values = x.shape[dim]
    with torch.no_grad():
        sums, squares = kernels.sums_and_squares(x, dim)
        mean = sums / values
        square = mean.square()
        var = squares / values - square
        if not (square > LARGEST_MEAN_SQUARE_OVER_VAR * var).any():
            return x, mean, var.clamp_min_(0), None
    x = x - mean.unsqueeze(dim)
    with torch.no_grad():
        return x, mean, kernels.sums_and_squares(x, dim)[1] / values, mean


def shifted(scale: Tensor, shift: Tensor, pivot: Tensor | None) -> Tensor:
    """The shift for x - pivot."""
    return shift.detach() if pivot is None else torch.addcmul(shift.detach(), scale.detach(), pivot)


def gradients(
    outputs: tuple[Tensor, ...], d_outputs: tuple[Tensor, ...], inputs: tuple[Tensor | None, ...]
) -> list[Tensor | None]:
    """The gradient of each input, or None."""
    reached = [(y, dy) for y, dy in zip(outputs, d_outputs, strict=True) if y.requires_grad]
    wanted = [t for t in inputs if t is not None and t.requires_grad]
    if not reached or not wanted:
        return [None] * len(inputs)
    ys, dys = zip(*reached, strict=True)
    found = iter(torch.autograd.grad(ys, wanted, dys, retain_graph=True, allow_unused=True))
    return [next(found) if t is not None and t.requires_grad else None for t in inputs]


def gradient_of_plain(
    ctx: Any,
    dy: Tensor,
    x: Tensor,
    pivot: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    tensors: list[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """The gradient of `plain` by autograd, itself differentiable: for second derivatives."""
    turned = 1 if ctx.channels_last else 2

    def formula(x: Tensor, *given: MaybeTensor) -> Tensor:
        x = x if pivot is None else x + pivot.unsqueeze(ctx.dim)
        return plain(kernels.channels_second(x, turned), ctx.rule, ctx.over_channels, *given)[0]

    needed = (ctx.needs_input_grad[0], *ctx.needs_input_grad[7:])
    dx, *others = gradient_of(formula, (x, weight, bias, *tensors), needed, kernels.channels_second(dy, turned))
    return dx, *[None] * 6, *others
