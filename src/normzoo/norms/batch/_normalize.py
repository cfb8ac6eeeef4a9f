"""Batch normalization as pure functions: algorithm 1 of Ioffe & Szegedy 2015, and its gradient.

Inside, an input is a volume, (N, C, L) or (N, L, C), as `normzoo.norms._ops.cpu` describes it.
"""

import math
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from normzoo.norms._ops import cpu as kernels
from normzoo.norms._ops.ranks import Group, all_reduce, total
from normzoo.norms._ops.running import over_samples
from normzoo.norms._ops.scale_shift import by_plane, standardize
from normzoo.norms._ops.second_derivatives import gradient_of, needs_autograd
from normzoo.norms._ops.tensors import affine, at_least_float32, inverse_root, is_transformed, per_channel

# Below this many values, computing x - mean costs less than checking whether it is needed.
ALWAYS_CENTRE_BELOW = 1 << 16
# E[x^2] - E[x]^2 loses log2(1 + mean^2 / var) bits; summing loses 4 of float32's 24 anyway.
LARGEST_MEAN_SQUARE_OVER_VAR = 16.0


def batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: Group = None
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Normalizes every channel by its mean and biased variance over samples and positions.

    `y = weight (x - mean) / sqrt(var + eps) + bias`

    Args:
        x: (N, C, *) of any floating dtype; the statistics are float32 at least.
        weight: (C,) or None.
        bias: (C,) or None.
        eps: added to the variance.
        group: the ranks that share their statistics; None for this rank alone.

    Returns:
        y like x; the mean (C,) and the biased variance (C,), without gradient; the count of values per channel.
    """
    wide = at_least_float32(x)
    if torch.compiler.is_compiling() and x.dim() > 2:
        # Compiled, sums along contiguous memory first are the fastest.
        of_planes = partial(rule, eps=eps, positions=math.prod(x.shape[2:]), group=group)
        y, mean, var = by_plane(x, of_planes, weight=weight, bias=bias)
        return y, mean, var, total(x.numel() // x.shape[1], group, x.device)
    if is_transformed():
        # A compiler fuses the plain formula better than we do, and torch.func differentiates it by itself.
        y, mean, var, count = formula(wide, weight, bias, eps, group)
        return y.to(x.dtype), mean, var, count
    if x.dim() == 2 and x.numel() <= ALWAYS_CENTRE_BELOW and group is None:
        y, mean, var = NormalizeSmall.apply(wide, weight, bias, eps)
        return y if y.dtype == x.dtype else y.to(x.dtype), mean, var, x.shape[0]
    volume, last = kernels.as_volume(wide)
    dim = 1 if last else 2
    volume, mean, var, pivot = measure(kernels.regrouped(volume) if last else volume, dim)
    count = x.numel() // x.shape[1]
    if group is not None:
        mean, var, count = merge_over_ranks(mean, var, count, group)
    offset = mean if pivot is None else None if group is None else mean - pivot
    inv_std = inverse_root(var + eps)
    y = Normalize.apply(volume, weight, bias, offset, inv_std, dim, count, eps, group)
    return kernels.restore(y, x, last).to(x.dtype), mean, var, count


def rule(mean: Tensor, var: Tensor, eps: float, positions: int, group: Group) -> tuple[Tensor, ...]:
    """`batch_norm` as scale and shift of planes, from their means and variances; see `_ops/scale_shift.py`."""
    mean, var = over_samples(mean, var, positions, group)
    return *standardize(mean, var, eps), mean, var


def formula(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: Group = None
) -> tuple[Tensor, Tensor, Tensor, int]:
    """`batch_norm` by autograd, for any shape (N, C, *), differentiable to every order."""
    over = [axis for axis in range(x.dim()) if axis != 1]
    count = total(x.numel() // x.shape[1], group, x.device)
    values = max(count, 1)  # 0 instead of NaN if all ranks are empty
    mean = all_reduce(x.sum(over), group) / values
    centred = x - per_channel(mean, x)
    var = all_reduce(centred.square().sum(over), group) / values
    y = centred * per_channel(inverse_root(var + eps) if weight is None else weight * inverse_root(var + eps), x)
    return y if bias is None else y + per_channel(bias, x), mean.detach(), var.detach(), count


def masked_batch_norm(
    x: Tensor, padded: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: Group = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`batch_norm` of the values that are not padding; the output for padding is 0.

    Args:
        x: (N, C, *).
        padded: (N, 1, *), True for padding.
        weight, bias, eps, group: as in `batch_norm`.

    Returns:
        y like x; mean (C,), biased variance (C,) and the count of values per channel, a scalar, without gradient.
    """
    wide = at_least_float32(x).masked_fill(padded, 0)
    over = [axis for axis in range(x.dim()) if axis != 1]
    count = all_reduce(padded.logical_not().sum().to(wide.dtype), group)
    values = count.clamp_min(1)
    mean = all_reduce(wide.sum(over), group) / values
    centred = (wide - per_channel(mean, x)).masked_fill(padded, 0)
    var = all_reduce(centred.square().sum(over), group) / values
    y = affine(centred * per_channel(inverse_root(var + eps), x), weight, bias).masked_fill(padded, 0)
    return y.to(x.dtype), mean.detach(), var.detach(), count


class Normalize(torch.autograd.Function):
    """`y = weight z + bias` with `z = (x - offset) / std`, and the gradient through the batch's own mean and variance.

    With `n` values per channel and sums over them, writing dy for the gradient of y::

        dbias   = sum dy
        dweight = sum dy z
        dx      = weight / std (dy - sum(dy) / n - z sum(dy z) / n)

    The two means that dx subtracts are the share of the gradient that flows through the mean and through the variance:
    dx is dy without its components along the constant and along z, the two directions that normalizing removes.

    x may be shifted by a constant per channel, which changes neither y nor any derivative.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        offset: Tensor | None,
        inv_std: Tensor,
        dim: int,
        count: int,
        eps: float,
        group: Group,
    ) -> Tensor:
        scale = inv_std if weight is None else weight * inv_std
        shift = bias if offset is None else -offset * scale if bias is None else torch.addcmul(bias, offset, -scale)
        ctx.save_for_backward(x, weight, bias, offset, inv_std)
        ctx.dim, ctx.count, ctx.eps, ctx.group = dim, max(count, 1), eps, group
        return kernels.scale_and_shift_channels(x, scale, torch.zeros_like(scale) if shift is None else shift, dim)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grad_outputs
        x, weight, bias, offset, inv_std = ctx.saved_tensors
        if needs_autograd(dy):
            return (*gradient_of_formula(ctx, dy, offset), *[None] * 6)
        dy = dy.contiguous()
        sum_dy, sum_dy_x = (table.sum(0) for table in kernels.sums_and_dots(dy, x, ctx.dim))
        if offset is not None:
            sum_dy_x = torch.addcmul(sum_dy_x, offset, sum_dy, value=-1)
        d_weight = sum_dy_x * inv_std if ctx.needs_input_grad[1] else None
        d_bias = sum_dy if ctx.needs_input_grad[2] else None
        if not ctx.needs_input_grad[0]:
            return None, d_weight, d_bias, *[None] * 6
        if ctx.group is not None:
            both = torch.stack([sum_dy, sum_dy_x])
            dist.all_reduce(both, group=ctx.group)
            sum_dy, sum_dy_x = both
        scale = inv_std if weight is None else weight * inv_std
        # In this order, no product is much smaller than its factors: inv_std^3 underflows for x of the order of 1e13.
        along_x = sum_dy_x * inv_std * (-1 / ctx.count) * inv_std * scale
        constant = scale * sum_dy * (-1 / ctx.count)
        if offset is not None:
            constant = torch.addcmul(constant, offset, along_x, value=-1)
        return kernels.combine_channels(dy, x, scale, along_x, constant, ctx.dim), d_weight, d_bias, *[None] * 6


class NormalizeSmall(torch.autograd.Function):
    """`Normalize` with its statistics for a few rows (N, C), where the number of calls matters, not memory.

    The gradient computes z again, and then takes six calls::

        dx = weight / std (dy - (dbias + z dweight) / n)
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean = x.mean(0)
        z = x - mean
        var = z.square().mean(0)
        inv_std = (var + eps).rsqrt_()
        z *= inv_std
        if weight is None:
            y = z if bias is None else z + bias
        else:
            y = torch.addcmul(bias, z, weight) if bias is not None else z * weight
        ctx.save_for_backward(x, weight, bias, mean, inv_std)
        ctx.mark_non_differentiable(mean, var)
        ctx.eps, ctx.group, ctx.dim = eps, None, 2
        return y, mean, var

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        dy = grad_outputs[0]
        x, weight, _, mean, inv_std = ctx.saved_tensors
        if needs_autograd(dy):
            return (*gradient_of_formula(ctx, dy, None), None)
        z = (x - mean).mul_(inv_std)
        d_bias = dy.sum(0)
        d_weight = (dy * z).sum(0)
        scale = inv_std if weight is None else weight * inv_std
        dx = torch.sub(dy, torch.addcmul(d_bias, z, d_weight), alpha=1 / x.shape[0]).mul_(scale)
        return dx, d_weight if ctx.needs_input_grad[1] else None, d_bias if ctx.needs_input_grad[2] else None, None


def gradient_of_formula(ctx: Any, dy: Tensor, offset: Tensor | None) -> list[Tensor | None]:
    """The gradient of `formula` by autograd, itself differentiable: for second derivatives."""

    def again(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        x = kernels.channels_second(x, ctx.dim)
        # Each rank may have shifted its x by its own mean: subtracting the offset shifts all by the common mean.
        centred = x if offset is None else x - per_channel(offset, x)
        return formula(centred, weight, bias, ctx.eps, ctx.group)[0]

    return gradient_of(again, ctx.saved_tensors[:3], ctx.needs_input_grad[:3], kernels.channels_second(dy, ctx.dim))


def measure(x: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The mean and the biased variance of each channel of a volume.

    Returns:
        x, or x - mean if the square of the mean is much larger than the variance; mean (C,); var (C,); and the mean
        again if x was shifted by it, else None.
    """
    count = max(x.shape[0] * x.shape[dim], 1)
    with torch.no_grad():
        sums, squares = kernels.sums_and_squares(x, dim)
        mean = sums.sum(0) / count
        square = mean.square()
        var = squares.sum(0) / count - square
        # On other devices than a CPU, reading the values would wait for the device.
        if x.device.type == "cpu" and not (square > LARGEST_MEAN_SQUARE_OVER_VAR * var).any():
            return x, mean, var, None
    x = x - kernels.along(mean, dim)
    with torch.no_grad():
        return x, mean, kernels.sums_and_squares(x, dim)[1].sum(0) / count, mean


def merge_over_ranks(mean: Tensor, var: Tensor, count: int, group: Group) -> tuple[Tensor, Tensor, int]:
    """Statistics of all ranks together from each one's own, by Chan's formula in float64; a rank may be empty."""
    own_mean, own_count = mean.double(), torch.full_like(mean[:1], count, dtype=torch.float64)
    totals = torch.cat([own_mean * own_count, own_count])
    dist.all_reduce(totals, group=group)
    values = totals[-1].clamp_min(1)  # 0 instead of NaN if all ranks are empty
    merged_mean = totals[:-1] / values
    squares = own_count * (var.double() + (own_mean - merged_mean).square())
    dist.all_reduce(squares, group=group)
    return merged_mean.to(mean.dtype), (squares / values).to(var.dtype), int(totals[-1])
