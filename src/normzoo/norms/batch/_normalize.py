"""Batch normalization as pure functions: algorithm 1 of Ioffe & Szegedy 2015, and its gradient by hand.

Inside, an input is one of two shapes, both views of it: `planes` (N, C, L), where the positions of a channel lie next
to each other in memory, and `rows` (M, C), where the channels of a position do. (N, C) is rows with M = N, and a
channels-last image is rows with M = N x positions.
"""

from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from normzoo.norms._base import at_least_float32, per_channel

Group = Any  # torch.distributed.ProcessGroup, which builds of torch without distributed do not have

# Below this many values, writing x - mean costs less than asking whether it is needed.
ALWAYS_CENTRE_BELOW = 1 << 16
# E[x^2] - E[x]^2 loses log2(1 + mean^2 / var) bits; 4 of float32's 24 are what summing loses anyway.
LARGEST_MEAN_SQUARE_OVER_VAR = 16.0
# The longest dot product that torch.bmm sums in its own loop; a longer one goes to a matrix library, 4 times slower.
LONGEST_DOT = 256
# Values multiplied at a time when a product is only wanted for its sum: 4 MB, used again from block to block.
BLOCK = 1 << 20
# Rows at least this wide are summed at full speed; several narrower ones are taken as one.
WIDE = 256


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
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        # A compiler fuses the plain formula better than we do, and torch.func differentiates it by itself.
        y, mean, var, count = formula(at_least_float32(x), weight, bias, eps, group)
        return y.to(x.dtype), mean, var, count
    view = as_rows_or_planes(at_least_float32(x))
    if view.dim() == 2 and view.numel() <= ALWAYS_CENTRE_BELOW and group is None:
        y, mean, var = NormalizeSmall.apply(view, weight, bias, eps)
        return y if y.shape == x.shape and y.dtype == x.dtype else restore(y, x).to(x.dtype), mean, var, len(view)
    view, mean, var, pivot = measure(view)
    count = view.numel() // view.shape[1]
    if group is not None:
        mean, var, count = merge_over_ranks(mean, var, count, group)
    offset = mean if pivot is None else None if group is None else mean - pivot
    inv_std = (var + eps).rsqrt()
    y = Normalize.apply(view, weight, bias, offset, inv_std, count, eps, group)
    return restore(y, x).to(x.dtype), mean, var, count


def formula(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: Group = None
) -> tuple[Tensor, Tensor, Tensor, int]:
    """`batch_norm` written down plainly, for any shape (N, C, *), differentiable to every order."""
    over = [axis for axis in range(x.dim()) if axis != 1]
    count = x.numel() // x.shape[1]
    total = x.sum(over)
    if group is not None:
        counts = torch.tensor([count], device=x.device)
        dist.all_reduce(counts, group=group)
        count, total = int(counts), all_reduce(total, group)
    values = max(count, 1)  # where all ranks are empty, zeros and not NaN
    mean = total / values
    centred = x - per_channel(mean, x)
    squares = centred.square().sum(over)
    var = (squares if group is None else all_reduce(squares, group)) / values
    y = centred * per_channel((var + eps).rsqrt() if weight is None else weight * (var + eps).rsqrt(), x)
    return y if bias is None else y + per_channel(bias, x), mean.detach(), var.detach(), count


class Normalize(torch.autograd.Function):
    """`y = weight z + bias` with `z = (x - offset) / std`, and the gradient through the batch's own mean and variance.

    With `n` values per channel and sums over them, writing dy for the gradient of y::

        dbias   = sum dy
        dweight = sum dy z
        dx      = weight / std (dy - sum(dy) / n - z sum(dy z) / n)

    The two means that dx subtracts are the share of the gradient that flows through the mean and through the variance:
    dx is dy without its components along the constant and along z, the two directions that normalizing removes.

    x may stand shifted by a constant per channel, as y does not change when x does so, nor does any derivative.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        offset: Tensor | None,
        inv_std: Tensor,
        count: int,
        eps: float,
        group: Group,
    ) -> Tensor:
        scale = inv_std if weight is None else weight * inv_std
        shift = bias if offset is None else -offset * scale if bias is None else torch.addcmul(bias, offset, -scale)
        ctx.save_for_backward(x, weight, bias, offset, inv_std)
        ctx.count, ctx.eps, ctx.group = max(count, 1), eps, group
        return scale_and_shift(x, scale, shift)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grad_outputs
        x, weight, bias, offset, inv_std = ctx.saved_tensors
        if torch.is_grad_enabled():  # this gradient is to be differentiated again
            return (*gradient_of_formula(ctx, dy, offset), None, None, None, None, None)
        dy = dy.contiguous()
        sum_dy = channel_sum(dy)
        sum_dy_x = channel_dot(dy, x)
        if offset is not None:
            sum_dy_x = torch.addcmul(sum_dy_x, offset, sum_dy, value=-1)
        d_weight = sum_dy_x * inv_std if ctx.needs_input_grad[1] else None
        d_bias = sum_dy if ctx.needs_input_grad[2] else None
        if not ctx.needs_input_grad[0]:
            return None, d_weight, d_bias, None, None, None, None, None
        if ctx.group is not None:
            both = torch.stack([sum_dy, sum_dy_x])
            dist.all_reduce(both, group=ctx.group)
            sum_dy, sum_dy_x = both
        scale = inv_std if weight is None else weight * inv_std
        along_x = scale * inv_std.square() * sum_dy_x * (-1 / ctx.count)
        constant = scale * sum_dy * (-1 / ctx.count)
        if offset is not None:
            constant = torch.addcmul(constant, offset, along_x, value=-1)
        dx = scale_and_shift(x, along_x, constant).addcmul_(dy, across(scale, dy))
        return dx, d_weight, d_bias, None, None, None, None, None


class NormalizeSmall(torch.autograd.Function):
    """`Normalize` for a few rows, statistics included: the number of calls counts here, not the passes over memory.

    It keeps z itself, from which the gradient takes six calls::

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
        scale = inv_std if weight is None else weight * inv_std
        y = scale_and_shift(z, weight, bias)
        ctx.save_for_backward(x, weight, bias, z, scale)
        ctx.mark_non_differentiable(mean, var)
        ctx.eps, ctx.group = eps, None
        return y, mean, var

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        dy = grad_outputs[0]
        x, _, _, z, scale = ctx.saved_tensors
        if torch.is_grad_enabled():  # this gradient is to be differentiated again
            return (*gradient_of_formula(ctx, dy, None), None)
        d_bias = dy.sum(0)
        d_weight = (dy * z).sum(0)
        dx = torch.sub(dy, torch.addcmul(d_bias, z, d_weight), alpha=1 / len(x)).mul_(scale)
        return dx, d_weight if ctx.needs_input_grad[1] else None, d_bias if ctx.needs_input_grad[2] else None, None


def gradient_of_formula(ctx: Any, dy: Tensor, offset: Tensor | None) -> list[Tensor | None]:
    """The gradient of `formula` by autograd, itself differentiable: for second derivatives."""
    x, weight, bias, *_ = ctx.saved_tensors
    # Every rank may have shifted its x by a mean of its own; without the offset all stand on the mean they share.
    centred = x if offset is None else x - across(offset, x)
    y = formula(centred, weight, bias, ctx.eps, ctx.group)[0]
    wanted = [t for t, needed in zip((x, weight, bias), ctx.needs_input_grad, strict=False) if needed]
    found = iter(torch.autograd.grad(y, wanted, dy, create_graph=True))
    return [next(found) if needed else None for needed in ctx.needs_input_grad[:3]]


def measure(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The mean and the biased variance per channel of rows or planes.

    Returns:
        x, or x - mean where the variance would drown in the square of the mean; mean (C,); var (C,); and the mean
        once more if x was shifted by it, else None.
    """
    count = max(x.numel() // x.shape[1], 1)
    with torch.no_grad():
        mean = channel_sum(x) / count
        if x.numel() > ALWAYS_CENTRE_BELOW and x.device.type == "cpu":
            square = mean.square()
            var = channel_square_sum(x) / count - square
            if not (square > LARGEST_MEAN_SQUARE_OVER_VAR * var).any():
                return x, mean, var, None
    x = x - across(mean, x)
    with torch.no_grad():
        return x, mean, channel_square_sum(x) / count, mean


def merge_over_ranks(mean: Tensor, var: Tensor, count: int, group: Group) -> tuple[Tensor, Tensor, int]:
    """Statistics of all ranks together from each one's own, by Chan's formula in float64; a rank may be empty."""
    own_mean, own_count = mean.double(), torch.full_like(mean[:1], count, dtype=torch.float64)
    totals = torch.cat([own_mean * own_count, own_count])
    dist.all_reduce(totals, group=group)
    total = totals[-1].clamp_min(1)  # where all ranks are empty, zeros and not NaN
    merged_mean = totals[:-1] / total
    squares = own_count * (var.double() + (own_mean - merged_mean).square())
    dist.all_reduce(squares, group=group)
    return merged_mean.to(mean.dtype), (squares / total).to(var.dtype), int(totals[-1])


def all_reduce(x: Tensor, group: Group) -> Tensor:
    """The sum over ranks, differentiable to every order."""
    return SumOverRanks.apply(x, group)


class SumOverRanks(torch.autograd.Function):
    """Every rank's loss sees the sum, so the gradient of a rank's share is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        total = x.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return all_reduce(grad_outputs[0], ctx.group), None


def as_rows_or_planes(x: Tensor) -> Tensor:
    """Views (N, C, *) as rows (M, C) or planes (N, C, L); copies only what is neither."""
    if x.dim() == 2:
        return x.contiguous()
    if x.is_contiguous() and x.shape[2:].numel() > 1:
        return x.flatten(2)
    rows = x.movedim(1, -1)
    return rows.reshape(-1, x.shape[1]) if rows.is_contiguous() else x.contiguous().flatten(2)


def restore(view: Tensor, like: Tensor) -> Tensor:
    """The inverse of `as_rows_or_planes`, in the shape of `like`."""
    if like.dim() == 2:
        return view
    if view.dim() == 3:
        return view.view(like.shape)
    return view.view(like.shape[0], *like.shape[2:], like.shape[1]).movedim(-1, 1)


def across(v: Tensor, x: Tensor) -> Tensor:
    """A vector (C,) such that it broadcasts against rows or planes."""
    return v if x.dim() == 2 else v.unsqueeze(1)


def scale_and_shift(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """`scale x + shift` per channel, in fresh memory."""
    if scale is None:
        return x.clone() if shift is None else x + across(shift, x)
    if shift is None:
        return x * across(scale, x)
    if x.dim() == 2:
        return torch.addcmul(shift, x, scale)
    # Two steps: addcmul does not vectorize over two broadcast operands, and this is a third faster.
    return (x * across(scale, x)).add_(across(shift, x))


def channel_sum(x: Tensor) -> Tensor:
    if x.dim() == 2:
        return widened(x).sum(0).view(-1, x.shape[1]).sum(0)
    return x.sum(2).sum(0)


def channel_square_sum(x: Tensor) -> Tensor:
    if x.dim() == 2:
        return channel_dot(x, x)
    return torch.linalg.vector_norm(x, dim=2).square().sum(0)


def channel_dot(a: Tensor, b: Tensor) -> Tensor:
    """`sum a b` per channel; where it can, without a product of the size of a."""
    if a.dim() == 2:
        p, q = widened(a), widened(b)
        rows = max(BLOCK // p.shape[1], 1)
        products = (u * v for u, v in zip(p.split(rows), q.split(rows), strict=True))
        return torch.stack([block.sum(0) for block in products]).view(-1, a.shape[1]).sum(0)
    length = dot_length(a.shape[2])
    if length == 0 or a.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return (a * b).sum(2).sum(0)
    pieces = a.numel() // length
    dots = torch.bmm(a.view(pieces, 1, length), b.view(pieces, length, 1))
    return dots.view(a.shape[0], a.shape[1], a.shape[2] // length).sum((0, 2))


def widened(x: Tensor) -> Tensor:
    """Rows (M, C) as (M / k, k C), with k as large as needed for full speed and as M divides."""
    k = 1
    while k * x.shape[1] < WIDE and len(x) % (2 * k) == 0 and len(x) > 2 * WIDE * k:
        k *= 2
    return x.view(-1, k * x.shape[1])


@cache
def dot_length(length: int) -> int:
    """The largest divisor of `length` that torch.bmm sums by itself; 0 when only tiny ones divide it."""
    best = max((d for d in range(1, min(length, LONGEST_DOT) + 1) if length % d == 0), default=0)
    return best if best >= min(length, 32) else 0
