"""`scale (x - centre) + shift` per channel, for layers whose statistics do not depend on x."""

from typing import Any

import torch
from torch import Tensor

from normzoo.norms._ops import cpu as kernels
from normzoo.norms._ops.second_derivatives import gradient_of, needs_autograd
from normzoo.norms._ops.tensors import at_least_float32, per_channel


def scale_per_channel(x: Tensor, scale: Tensor, centre: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
    """`scale (x - centre) + shift`.

    Args:
        x: (N, C, *) of any floating dtype; computed in float32 at least.
        scale: (C,), or one value.
        centre: (C,) or None for zeros; receives no gradient.
        shift: (C,) or None for zeros.

    Returns:
        y like x.
    """
    wide, scale = at_least_float32(x), at_least_float32(scale).expand(x.shape[1])
    shift = None if shift is None else at_least_float32(shift)
    if kernels.stays_plain(x):
        return plain(wide, scale, centre, shift).to(x.dtype)
    volume, last = kernels.as_volume(wide)
    return kernels.restore(Scale.apply(volume, scale, centre, shift, 1 if last else 2), x, last).to(x.dtype)


def plain(x: Tensor, scale: Tensor, centre: Tensor | None, shift: Tensor | None) -> Tensor:
    """The plain formula, for any shape (N, C, *), differentiable to every order."""
    if centre is not None:
        x = x - per_channel(centre.detach(), x)
    y = x * per_channel(scale, x)
    return y if shift is None else y + per_channel(shift, x)


class Scale(torch.autograd.Function):
    """Forward and backward pass on a volume: `dx = scale dy`, `d_scale = sum dy (x - centre)`, `d_shift = sum dy`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, centre: Tensor | None, shift: Tensor | None, dim: int) -> Tensor:
        ctx.save_for_backward(x, scale, centre, shift)
        ctx.dim = dim
        return kernels.centre_scale_shift(x, centre, scale, shift, dim)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grad_outputs
        x, scale, centre, shift = ctx.saved_tensors
        needed = ctx.needs_input_grad
        if needs_autograd(dy):
            found = gradient_of(
                lambda x, *given: plain(kernels.channels_second(x, ctx.dim), *given),
                (x, scale, centre, shift),
                needed[:4],
                kernels.channels_second(dy, ctx.dim),
            )
            return *found, None
        dy = dy.contiguous()
        d_scale = d_shift = None
        if needed[1] or needed[3]:
            sums, dots = (table.sum(0) for table in kernels.sums_and_dots(dy, x, ctx.dim))
            d_scale, d_shift = dots if centre is None else dots - centre * sums, sums
        dx = kernels.centre_scale_shift(dy, None, scale, None, ctx.dim) if needed[0] else None
        return dx, d_scale if needed[1] else None, None, d_shift if needed[3] else None, None
