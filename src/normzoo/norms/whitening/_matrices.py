"""Normalization as one matrix per group of channels.

Given its statistics, whitening is linear, `y = A (x - centre) + bias` with a matrix A (d, d) for each of G groups of d
channels. Layers differ in how they compute A from the mean and the covariance of the batch: their *rule*, in matrix
algebra on tables (G, d, d) in float64, is differentiated by autograd and small beside the input. This module does the
passes over the input, with an explicit gradient.

With M values per channel and sums over them, autograd through the rule turns `dA = sum dy (x - centre)^T` and `sum dy`
into the gradients of the moments, d_mean and d_cov; and then::

    dx = A^T dy + slope (x - mean) + d_mean / M,   slope = (d_cov + d_cov^T) / M

as `d mean / dx = 1 / M`, and the covariance is quadratic in x - mean.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from normzoo.norms._ops import cpu as kernels
from normzoo.norms._ops.ranks import Group, all_reduce
from normzoo.norms._ops.scale_shift import gradients
from normzoo.norms._ops.second_derivatives import gradient_of, needs_autograd
from normzoo.norms._ops.tensors import at_least_float32, channels_second, positions_first, without_autocast

# (mean (C,), biased covariance (G, d, d)) -> (matrix (G, d, d), centre (C,), *aside), all in float64.
Rule = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


def by_group(
    x: Tensor, rule: Rule, groups: int, weight: Tensor | None, bias: Tensor | None, about: Tensor | None = None
) -> tuple[Tensor, ...]:
    """`y = weight A (x - centre) + bias`, matrix and centre from the mean and covariance of the batch.

    Args:
        x: (N, C, *) of any floating dtype; the products with x are of float32 at least.
        rule: `rule(mean, cov)` -> matrix, centre and further tensors to return. Without side effects but collectives.
        groups: the number G of groups of neighbouring channels.
        weight: (C,) or None.
        bias: (C,) or None.
        about: (C,), the mean for a rule that needs no statistics of x; it gets a covariance of zeros.

    Returns:
        y like x; and, without gradient, the further tensors of the rule.
    """
    wide = at_least_float32(x)
    given = tuple(None if t is None else at_least_float32(t) for t in (weight, bias))
    with without_autocast(x):
        if kernels.stays_plain(x):
            y, *aside = plain(wide, rule, groups, about, *given)
            return y.to(x.dtype), *(a.detach() for a in aside)
        volume, last = kernels.as_volume(wide)
        dim = 1 if last else 2
        measured = measure(volume, groups, dim) if about is None else given_mean(about, groups)
        y, *aside = Linear.apply(volume, *measured, rule, groups, dim, about, *given)
        return kernels.restore(y, x, last).to(x.dtype), *aside


def over_ranks(mean: Tensor, cov: Tensor, share: float, group: Group) -> tuple[Tensor, Tensor]:
    """The mean and covariance of the whole batch from those of the ranks, each of which has a share of it."""
    if group is None:
        return mean, cov
    merged = all_reduce(mean * share, group)
    off = (mean - merged).view(len(cov), -1, 1)
    return merged, all_reduce((cov + off * off.mT) * share, group)


def plain(
    x: Tensor, rule: Rule, groups: int, about: Tensor | None, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, ...]:
    """`by_group` by autograd, for any shape (N, C, *), differentiable to every order."""
    rows = positions_first(x).reshape(-1, groups, x.shape[1] // groups).transpose(0, 1)  # (G, M, d)
    if about is None:
        values = max(rows.shape[1], 1)
        pivot = rows.detach().sum(1, keepdim=True) / values
        shifted = rows - pivot
        rest = shifted.sum(1, keepdim=True) / values  # the rounding error of the pivot
        centred = shifted - rest
        mean = (wider(pivot) + wider(rest)).flatten()
        # With few values, the covariance may be nearly singular, and float32 too coarse.
        factor = wider(centred) if x.numel() <= kernels.SMALL else centred
        cov = wider(factor.mT @ factor) / values
    else:
        pivot, mean, cov = given_mean(about, groups)
        pivot = pivot.view(groups, 1, -1).to(x.dtype)
        shifted = rows - pivot
    matrix, shift, *aside = tables(rule, pivot, mean, cov, weight, bias)
    y = shifted @ matrix.mT.to(x.dtype) + shift.unsqueeze(1).to(x.dtype)
    return channels_second(y.transpose(0, 1).reshape(positions_first(x).shape).contiguous(), like=x), *aside


def tables(
    rule: Rule, pivot: Tensor, mean: Tensor, cov: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, ...]:
    """The matrix (G, d, d) and the shift (G, d) of `y = matrix (x - pivot) + shift`; the further tensors."""
    matrix, centre, *aside = rule(mean, cov)
    groups = matrix.shape[0]
    if weight is not None:
        matrix = matrix * weight.view(groups, -1, 1)
    shift = (matrix @ (pivot.flatten() - centre).view(groups, -1, 1)).squeeze(2)
    return matrix, shift if bias is None else shift + bias.view(groups, -1), *aside


class Linear(torch.autograd.Function):
    """The rule of a layer on a volume, forward and backward; see the top of this file.

    All products are with `u = x - pivot`, where the pivot is the rounded mean. Its rounding error `rest` enters by
    `slope (x - mean) = slope u - slope rest`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        pivot: Tensor,
        mean: Tensor,
        cov: Tensor,
        rule: Rule,
        groups: int,
        dim: int,
        about: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
    ) -> tuple[Tensor, ...]:
        needed = ctx.needs_input_grad
        with torch.enable_grad():
            moments = [t.detach().requires_grad_(needed[0] and about is None) for t in (mean, cov)]
            learned = [None if t is None else t.detach().requires_grad_(t.requires_grad) for t in (weight, bias)]
            matrix, shift, *aside = tables(rule, pivot, *moments, *learned)
        ctx.save_for_backward(x, pivot, about, weight, bias)
        ctx.inputs, ctx.tables = (*moments, *learned), (matrix, shift)
        ctx.rule, ctx.groups, ctx.dim = rule, groups, dim
        y = torch.empty_like(x)
        for_blocks, constant = spread(matrix.detach(), x, dim), along(shift.detach(), x, dim)
        for y_, u in shifted_blocks(y, x=x, pivot=pivot, dim=dim):
            multiply(for_blocks, u, dim, out=y_)
            y_ += constant
        handed_on = [a.detach() for a in aside]
        ctx.mark_non_differentiable(*handed_on)
        return y, *handed_on

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        dy, dim = grad_outputs[0], ctx.dim
        x, pivot, about, weight, bias = ctx.saved_tensors
        with without_autocast(x):
            if needs_autograd(dy):
                return gradient_of_plain(ctx, dy, x, about, weight, bias)
            dy, (matrix, shift) = dy.contiguous(), ctx.tables
            d_matrix, d_shift = torch.zeros_like(matrix), torch.zeros_like(shift)
            for dy_, u in shifted_blocks(dy, x=x, pivot=pivot, dim=dim):
                d_matrix += products(dy_, u, ctx.groups, dim)
                d_shift += dy_.sum((0, dim)).view_as(shift)
            d_mean, d_cov, d_weight, d_bias = gradients((matrix, shift), (d_matrix, d_shift), ctx.inputs)
            dx = None
            if ctx.needs_input_grad[0]:
                dx, turned = torch.empty_like(x), spread(matrix.detach().mT, x, dim)
                if d_cov is None or d_mean is None:  # the moments do not depend on x
                    for dx_, dy_ in kernels.blocks(dx, dy):
                        multiply(turned, dy_, dim, out=dx_)
                else:
                    values = x.shape[0] * x.shape[dim]
                    slope = (d_cov + d_cov.mT) / values
                    rest = (ctx.inputs[0].detach() - pivot).view(ctx.groups, -1, 1)
                    constant = along(d_mean / values - (slope @ rest).flatten(), x, dim)
                    slope = spread(slope, x, dim)
                    for dx_, dy_, u in shifted_blocks(dx, dy, x=x, pivot=pivot, dim=dim):
                        multiply(turned, dy_, dim, out=dx_)
                        multiply(slope, u, dim, out=dx_, add=True)
                        dx_ += constant
            return dx, *[None] * 7, d_weight, d_bias


def gradient_of_plain(
    ctx: Any, dy: Tensor, x: Tensor, about: Tensor | None, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The gradient of `plain` by autograd, itself differentiable: for second derivatives."""

    def formula(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return plain(kernels.channels_second(x, ctx.dim), ctx.rule, ctx.groups, about, weight, bias)[0]

    needed = (ctx.needs_input_grad[0], *ctx.needs_input_grad[8:])
    dx, *others = gradient_of(formula, (x, weight, bias), needed, kernels.channels_second(dy, ctx.dim))
    return dx, *[None] * 7, *others


# The large passes: blocks are (n, C, L) for dim 2, (n, L, C) for dim 1.


def measure(x: Tensor, groups: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """The pivot, which is the rounded mean of each channel; the mean; and the biased covariance of each group."""
    with torch.no_grad():
        values = max(x.shape[0] * x.shape[dim], 1)
        pivot = kernels.joined([block.sum(dim) for (block,) in kernels.blocks(x)], x, dim).sum(0) / values
        rest = x.new_zeros(x.shape[3 - dim], dtype=wider(pivot).dtype)
        cov = rest.new_zeros(groups, x.shape[3 - dim] // groups, x.shape[3 - dim] // groups)
        for (u,) in shifted_blocks(x=x, pivot=pivot, dim=dim):
            rest += u.sum((0, dim))
            cov += products(u, u, groups, dim)
        rest /= values
        column = rest.view(groups, -1, 1)
        return pivot, pivot + rest, cov / values - column * column.mT


def given_mean(mean: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Replaces `measure` if the mean is known; the covariance is 0."""
    size = mean.shape[0] // groups
    return mean, wider(mean), wider(mean).new_zeros(groups, size, size)


def shifted_blocks(*others: Tensor, x: Tensor, pivot: Tensor, dim: int) -> Iterator[tuple[Tensor, ...]]:
    """Matching blocks of volumes, and of x - pivot."""
    pivot = along(pivot, x, dim)
    for *blocks, x_ in kernels.blocks(*others, x):
        yield *blocks, torch.sub(x_, pivot, out=kernels.scratch.take("shifted", x_.shape, x_))


def products(a: Tensor, b: Tensor, groups: int, dim: int) -> Tensor:
    """`sum a b^T` over samples and positions, of every group: (G, d, d)."""
    if dim == 1:
        rows_a, rows_b = (t.reshape(-1, groups, t.shape[2] // groups).transpose(0, 1) for t in (a, b))
        return rows_a.mT @ rows_b
    planes_a, planes_b = (t.view(-1, t.shape[1] // groups, t.shape[2]) for t in (a, b))
    return (planes_a @ planes_b.mT).view(len(a), groups, *[planes_a.shape[1]] * 2).sum(0)


def spread(matrix: Tensor, x: Tensor, dim: int) -> Tensor:
    """Matrices in the dtype of x; for dim 2, one for each sample of a block."""
    samples = min(kernels.samples_per_block(x), x.shape[0]) if dim == 2 else 1
    return matrix.to(x.dtype).repeat(samples, 1, 1)


def multiply(matrix: Tensor, b: Tensor, dim: int, out: Tensor, add: bool = False) -> None:
    """Writes or adds `matrix b` at every position to `out`; the matrix is a result of `spread`."""
    groups, size, _ = matrix.shape
    if dim == 1:
        rows, into = (t.view(-1, groups, size).transpose(0, 1) for t in (b, out))
        product = rows @ matrix.mT
        into.add_(product) if add else into.copy_(product)
        return
    planes, into = (t.view(-1, size, t.shape[2]) for t in (b, out))
    torch.baddbmm(into, matrix[: len(planes)], planes, beta=1 if add else 0, out=into)


def along(v: Tensor, x: Tensor, dim: int) -> Tensor:
    """A vector over channels in the dtype of a volume and a shape that broadcasts against it."""
    return kernels.along(v.flatten().to(x.dtype), dim)


def wider(x: Tensor) -> Tensor:
    """x in float64, or float32 on a device without float64."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)
