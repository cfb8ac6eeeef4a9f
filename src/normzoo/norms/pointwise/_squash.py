"""`weight f(alpha x + shift) + bias`: the formula of the dynamic activation functions, and its gradient.

With u = alpha x + shift, z = f(u) and d = dy weight f'(u)::

    dx = alpha d,   d_alpha = sum d x,   d_shift = sum d,   d_weight = sum dy z,   d_bias = sum dy

the last two per channel. Only x is saved for the backward pass, which computes u and z again, block by block.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from normzoo.norms._ops import cpu as kernels
from normzoo.norms._ops.second_derivatives import gradient_of, needs_autograd
from normzoo.norms._ops.tensors import affine, at_least_float32, per_plane


class Curve(NamedTuple):
    """A function of one number.

    Args:
        plain: u -> f(u), differentiable to every order by autograd.
        in_place: u -> f(u), written over u.
        slope: (u, f(u)) -> f'(u), written over u.
    """

    plain: Callable[[Tensor], Tensor]
    in_place: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor, Tensor], Tensor]


def squash(x: Tensor, curve: Curve, alpha: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor) -> Tensor:
    """`weight curve(alpha x + shift) + bias`.

    Args:
        x: (N, C, *) of any floating dtype; computed in float32 at least.
        curve: one of those in this package.
        alpha: (1,).
        shift: (1,) or None for zero.
        weight: (C,).
        bias: (C,).

    Returns:
        y like x.
    """
    wide = at_least_float32(x)
    alpha, weight, bias = at_least_float32(alpha), at_least_float32(weight), at_least_float32(bias)
    shift = torch.zeros_like(alpha) if shift is None else at_least_float32(shift)
    if kernels.stays_plain(x):
        return plain(wide, curve, alpha, shift, weight, bias).to(x.dtype)
    volume, last = kernels.as_volume(wide)
    y: Tensor = Squash.apply(kernels.regrouped(volume) if last else volume, curve, alpha, shift, weight, bias, last)
    return kernels.restore(y.view(volume.shape), x, last).to(x.dtype)


def plain(x: Tensor, curve: Curve, alpha: Tensor, shift: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`squash` by autograd, for any shape (N, C, *).

    alpha and shift become tables (N, C): compiled code sums gradients fastest within planes first, as in `per_channel`.
    """
    alpha, shift = (per_plane(v.expand(x.shape[:2]), x) for v in (alpha, shift))
    return affine(curve.plain(alpha * x + shift), weight, bias)


class Squash(torch.autograd.Function):
    """Forward and backward of a volume; see the top of this file."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, curve: Curve, alpha: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, last: bool
    ) -> Tensor:
        ctx.save_for_backward(x, alpha, shift, weight, bias)
        ctx.curve, ctx.dim = curve, 1 if last else 2
        y, steepness = torch.empty_like(x), alpha.item()
        weight, bias = kernels.along(weight, ctx.dim), kernels.along(bias, ctx.dim)
        for y_, x_ in kernels.blocks(y, x):
            curve.in_place(torch.add(shift, x_, alpha=steepness, out=y_)).mul_(weight).add_(bias)
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grad_outputs
        x, alpha, shift, weight, bias = ctx.saved_tensors
        curve, dim, needed = ctx.curve, ctx.dim, [ctx.needs_input_grad[i] for i in (0, 2, 3, 4, 5)]
        if needs_autograd(dy):
            dx, *others = gradient_of(
                lambda x, *given: plain(kernels.channels_second(x, dim), curve, *given),
                ctx.saved_tensors,
                needed,
                kernels.channels_second(dy, dim),
            )
            return dx, None, *others, None
        dx, d_alpha, d_shift = torch.empty_like(x), torch.zeros_like(alpha), torch.zeros_like(shift)
        d_weight, d_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        gain, steepness = kernels.along(weight, dim), alpha.item()
        for dx_, dy_, x_ in kernels.blocks(dx, dy.contiguous(), x):
            u = torch.add(shift, x_, alpha=steepness, out=kernels.scratch.take("u", x_.shape, x_))
            z = curve.in_place(kernels.scratch.take("z", x_.shape, x_).copy_(u))
            d_weight += kernels.dot(dy_, z, dim).sum(0)
            d_bias += dy_.sum(dim).sum(0)
            d = curve.slope(u, z).mul_(dy_).mul_(gain)
            if needed[2]:
                d_shift += d.sum()
            d_alpha += torch.mul(d, x_, out=z).sum()
            torch.mul(d, steepness, out=dx_)
        return dx, None, d_alpha, d_shift, d_weight, d_bias, None
