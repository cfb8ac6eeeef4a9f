"""Measures of spread other than the variance: a pass over the input in addition to that of `by_plane`.

Each returns the input, and tables (N, C) that a layer's rule takes as further tensors. In the backward pass it adds its
share to the gradient of the returned input, in place: no other code uses that gradient, and adding two tensors of this
size would cost as much as all the rest.

Both measures are piecewise linear in x. Their value is computed without autograd; the gradient is the slope of the
piece, so it is differentiable to every order.
"""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from normzoo.norms._ops import cpu as kernels
from normzoo.norms._ops.ranks import Group, all_reduce
from normzoo.norms._ops.second_derivatives import needs_autograd
from normzoo.norms._ops.tensors import per_channel


def stays_plain(x: Tensor) -> bool:
    """Whether `by_plane` computes by autograd, from the plain formula."""
    return x.dim() == 2 or kernels.stays_plain(x)


def deviations(x: Tensor, count: int, group: Group) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The absolute deviation of x from the mean of the batch.

    Args:
        x: (N, C, *), float32 at least.
        count: values per channel, on all ranks of the group.
        group: the ranks that share the batch.

    Returns:
        x, to use from here on; `mean(|x - centre|)` and, without gradient, `mean(sign(x - centre))` over positions,
        tables (N, C); and the centre (C,), the mean of every channel as a constant.
    """
    if stays_plain(x):
        sums = x.detach().sum([axis for axis in range(x.dim()) if axis != 1])
        centre = mean_of(sums, count, group)
        apart = (x - per_channel(centre, x)).reshape(x.shape[0], x.shape[1], math.prod(x.shape[2:]))
        return x, apart.abs().mean(2), apart.detach().sign().mean(2), centre
    volume, last = kernels.as_volume(x)
    dim = 1 if last else 2
    with torch.no_grad():
        sums = kernels.joined([block.sum(dim) for (block,) in kernels.blocks(volume)], volume, dim)
        centre = mean_of(sums.double().sum(0), count, group).to(x.dtype)
    volume, deviation, sign = Deviations.apply(volume, centre, dim)
    return kernels.restore(volume, x, last), deviation, sign, centre


def mean_of(sums: Tensor, count: int, group: Group) -> Tensor:
    """The mean from the sums (C,) of this rank; the ranks add them in float64."""
    return sums / count if group is None else (all_reduce(sums.double(), group) / count).to(sums.dtype)


class Deviations(torch.autograd.Function):
    """x and the two tables of `deviations`; backward, `dx += ddeviation sign(x - centre) / L`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, centre: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(x, centre)
        ctx.dim = dim
        absolute, signs = [], []
        for block, centre_ in kernels.blocks(x, tables=(centre,), dim=dim):
            apart = torch.sub(block, centre_, out=kernels.scratch.take("apart", block.shape, x))
            absolute.append(torch.abs(apart, out=kernels.scratch.take("absolute", block.shape, x)).mean(dim))
            signs.append(apart.sign_().mean(dim))
        deviation, sign = kernels.joined(absolute, x, dim), kernels.joined(signs, x, dim)
        ctx.mark_non_differentiable(sign)
        return x, deviation, sign

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        dx, d_deviation, _ = grad_outputs
        (x, centre), dim = ctx.saved_tensors, ctx.dim
        step = d_deviation / x.shape[dim]
        if needs_autograd(dx, d_deviation):
            return dx + (x - kernels.along(centre, dim)).sign() * step.unsqueeze(dim), None, None
        dx = dx.contiguous()
        for dx_, block, centre_, step_ in kernels.blocks(dx, x, tables=(centre, step), dim=dim):
            apart = torch.sub(block, centre_, out=kernels.scratch.take("apart", block.shape, x))
            dx_ += apart.sign_().mul_(step_)
        return dx, None, None


def extents(x: Tensor, group: Group) -> tuple[Tensor, Tensor, Tensor]:
    """The range of every channel, `max - min`.

    Args:
        x: (N, C, *), float32 at least.
        group: the ranks that share the batch.

    Returns:
        x, to use from here on; the range over samples, positions and ranks (C,), as a constant; and a table (N, C) of
        zeros whose sum over samples and ranks has the gradient of the range.
    """
    if stays_plain(x):
        planes = x.reshape(x.shape[0], x.shape[1], math.prod(x.shape[2:]))
        constant = planes.detach()
        top, bottom = ends(constant.amax(2), constant.amin(2), group)
        slope = torch.zeros_like(constant[:, :, 0])
        for end, sign in ((top, 1), (bottom, -1)):
            # 1 where a value is the end, else 0: compiled, a mask would be ten times as slow.
            held = 1 - (constant - end.unsqueeze(1)).sign().abs()
            holders = all_reduce(held.sum(2).sum(0), group).clamp_min(1)
            slope = slope + (held * (planes - end.unsqueeze(1))).sum(2) * (sign / holders)
        return x, top - bottom, slope
    volume, last = kernels.as_volume(x)
    dim = 1 if last else 2
    with torch.no_grad():
        tops, bottoms = zip(*((b.amax(dim), b.amin(dim)) for (b,) in kernels.blocks(volume)), strict=True)
        of_planes = torch.cat(tops), torch.cat(bottoms)
        top, bottom = ends(*of_planes, group)
        planes = volume.movedim(dim, 2)
        # Only planes that reach the end of their channel are read again: mostly one per channel, but nearly all planes
        # for the minimum after a ReLU, which is 0 in each of them.
        places: list[Tensor] = []
        for end, of_plane, sign in ((top, of_planes[0], 1), (bottom, of_planes[1], -1)):
            n, c = (of_plane == end).nonzero(as_tuple=True)
            held = planes[n, c] == end[c].unsqueeze(1)
            holders = torch.zeros_like(end).index_add_(0, c, held.sum(1).to(end.dtype))
            places += [n, c, held, sign / all_reduce(holders, group).clamp_min(1)[c]]
    volume, slope = Extents.apply(volume, dim, *places)
    return kernels.restore(volume, x, last), top - bottom, slope


def ends(top: Tensor, bottom: Tensor, group: Group) -> tuple[Tensor, Tensor]:
    """The largest and smallest value of every channel, (C,), from those of its planes, (N, C)."""
    if group is None:
        return top.amax(0), bottom.amin(0)
    both = torch.stack([top, -bottom])
    both = torch.cat([both, both.new_full((2, 1, top.shape[1]), -math.inf)], 1).amax(1)  # a rank may be empty
    dist.all_reduce(both, dist.ReduceOp.MAX, group=group)
    return both[0], -both[1]


class Extents(torch.autograd.Function):
    """x and the table of `extents`; backward, `dx += dslope ([x = max] / k(max) - [x = min] / k(min))`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, *places: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(*places)
        ctx.dim = dim
        return x, x.new_zeros(x.shape[0], x.shape[3 - dim])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        dx, d_slope = grad_outputs
        places = ctx.saved_tensors
        again = needs_autograd(dx, d_slope)
        planes = dx.movedim(ctx.dim, 2) if again else dx.contiguous().movedim(ctx.dim, 2)
        put = Tensor.index_put if again else Tensor.index_put_
        for n, c, held, share in (places[:4], places[4:]):
            planes = put(planes, (n, c), held * (d_slope[n, c] * share).unsqueeze(1), accumulate=True)
        return planes.movedim(2, ctx.dim), *[None] * (1 + len(places))
