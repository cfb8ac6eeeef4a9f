"""A formula that treats samples one by one, evaluated a few samples at a time.

Written plainly, a chain of elementwise operations reads and writes the whole input once per operation, and autograd
keeps every intermediate value. Here a block of samples goes through the whole chain while it lies in the processor's
cache; only the input is kept, and the backward pass takes each block through the chain once more.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from normzoo.norms import _kernels as kernels
from normzoo.norms._base import at_least_float32

# (x, *tensors) -> y like x, of any number of samples.
Formula = Callable[..., Tensor]


def in_blocks(formula: Formula, x: Tensor, *tensors: Tensor | None) -> Tensor:
    """`formula(x, *tensors)`.

    Args:
        formula: from x (N, C, *) to y of the same shape, each sample on its own, without effects.
        x: of any floating dtype; the formula sees float32 at least.
        tensors: what else the formula depends on and gradients flow to; the same for every sample.

    Returns:
        y like x.
    """
    wide = at_least_float32(x)
    given = tuple(None if t is None else at_least_float32(t) for t in tensors)
    if (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or x.numel() <= kernels.SMALL
        or x.device.type != "cpu"
    ):
        return formula(wide, *given).to(x.dtype)
    return InBlocks.apply(dense(wide), formula, *given).to(x.dtype)


class InBlocks(torch.autograd.Function):
    """The formula and its gradient, block by block."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, formula: Formula, *tensors: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, *tensors)
        ctx.formula = formula
        y = torch.empty_like(x)
        n = kernels.samples_per_block(x)
        for y_, x_ in zip(y.split(n), x.split(n), strict=True):
            y_.copy_(formula(x_, *tensors))
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grad_outputs
        x, *tensors = ctx.saved_tensors
        needed = (ctx.needs_input_grad[0], *ctx.needs_input_grad[2:])
        if torch.is_grad_enabled():  # this gradient is to be differentiated again
            wanted = [t for t, one in zip((x, *tensors), needed, strict=True) if one]
            y = ctx.formula(x, *tensors)
            found = iter(torch.autograd.grad(y, wanted, dy, create_graph=True, allow_unused=True))
            dx, *d_tensors = [next(found) if one else None for one in needed]
            return dx, None, *d_tensors
        leaves = [
            None if t is None else t.detach().requires_grad_(one) for t, one in zip(tensors, needed[1:], strict=True)
        ]
        wanted = [t for t in leaves if t is not None and t.requires_grad]
        sums = [torch.zeros_like(t) for t in wanted]
        dx = torch.empty_like(x) if needed[0] else None
        n = kernels.samples_per_block(x)
        for start in range(0, len(x), n):
            block = slice(start, start + n)
            x_ = x[block].detach().requires_grad_(needed[0])
            with torch.enable_grad():
                y_ = ctx.formula(x_, *leaves)
            inputs = [x_, *wanted] if dx is not None else wanted
            of_block = list(torch.autograd.grad(y_, inputs, dy[block], allow_unused=True, materialize_grads=True))
            if dx is not None:
                dx[block] = of_block.pop(0)
            for total, one in zip(sums, of_block, strict=True):
                total += one
        of_leaf = iter(sums)
        return dx, None, *(next(of_leaf) if t is not None and t.requires_grad else None for t in leaves)


def dense(x: Tensor) -> Tensor:
    """x without gaps in memory: as it is where a permutation of its axes is contiguous."""
    return x if x.is_contiguous() or x.movedim(1, -1).is_contiguous() else x.contiguous()
