"""Evaluates a formula that treats samples independently, a block of samples at a time.

A chain of elementwise operations reads and writes the whole input once per operation, and autograd saves every
intermediate value. Here a block of samples passes through the whole chain while it is in the processor's cache. Only
the input is saved, and the backward pass recomputes each block, by autograd or with an explicit gradient.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from normzoo.norms._ops import cpu as kernels
from normzoo.norms._ops.second_derivatives import gradient_of, needs_autograd
from normzoo.norms._ops.tensors import at_least_float32, without_autocast

# (x, *tables, *tensors) -> y like x, of any number of samples.
Formula = Callable[..., Tensor]
# (dy, x, *tables, *tensors) -> the gradients of x, the tables and the tensors.
Gradient = Callable[..., tuple[Tensor | None, ...]]


def in_blocks(
    formula: Formula,
    x: Tensor,
    *tensors: Tensor | None,
    tables: tuple[Tensor, ...] = (),
    gradient: Gradient | None = None,
) -> Tensor:
    """`formula(x, *tables, *tensors)`.

    Args:
        formula: from x (N, C, *) to y of the same shape, each sample independently, without side effects.
        x: of any floating dtype; the formula receives float32 at least, without autocast.
        tensors: the other differentiable inputs of the formula; the same for every sample.
        tables: the same, but with one row per sample, (N, ...).
        gradient: the explicit gradient of the formula, faster than autograd; None for inputs without a gradient. Second
            derivatives use autograd through the formula.

    Returns:
        y like x.
    """
    wide = at_least_float32(x)
    given = tuple(None if t is None else t.to(wide.dtype) for t in (*tables, *tensors))
    if kernels.stays_plain(x):
        with without_autocast(x):
            return formula(wide, *given).to(x.dtype)
    return InBlocks.apply(dense(wide), formula, gradient, len(tables), *given).to(x.dtype)


class InBlocks(torch.autograd.Function):
    """The formula and its gradient, block by block."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, formula: Formula, gradient: Gradient | None, tables: int, *given: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x, *given)
        ctx.formula, ctx.gradient, ctx.tables = formula, gradient, tables
        y = torch.empty_like(x)
        with torch.autocast("cpu", enabled=False):
            for block in blocks(x):
                y[block] = formula(x[block], *rows(given, tables, block))
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grad_outputs
        x, *given = ctx.saved_tensors
        needed = (ctx.needs_input_grad[0], *ctx.needs_input_grad[4:])
        with torch.autocast("cpu", enabled=False):
            if needs_autograd(dy):
                dx, *others = gradient_of(ctx.formula, (x, *given), needed, dy)
                return dx, None, None, None, *others
            dx = torch.empty_like(x) if needed[0] else None
            sums = [
                torch.zeros_like(t) if t is not None and one else None for t, one in zip(given, needed[1:], strict=True)
            ]
            for block in blocks(x):
                inputs = dy[block], x[block], rows(given, ctx.tables, block)
                if ctx.gradient is None:
                    of_x, *of_given = of_formula(ctx.formula, *inputs, needed)
                else:
                    of_x, *of_given = ctx.gradient(*inputs[:2], *inputs[2])
                if dx is not None and of_x is not None:
                    dx[block] = of_x
                for total, one in zip(rows(sums, ctx.tables, block), of_given, strict=True):
                    if total is not None and one is not None:
                        total += one
        return dx, None, None, None, *sums


def blocks(x: Tensor) -> Iterator[slice]:
    """Slices of the samples of x, one per block."""
    n = kernels.samples_per_block(x)
    return (slice(start, start + n) for start in range(0, len(x), n))


def rows(given: Sequence[Tensor | None], tables: int, block: slice) -> list[Tensor | None]:
    """The inputs of a block: its rows of the first `tables` inputs, and the others whole."""
    return [t[block] if t is not None and i < tables else t for i, t in enumerate(given)]


def of_formula(
    formula: Formula, dy: Tensor, x: Tensor, given: Sequence[Tensor | None], needed: tuple[bool, ...]
) -> list[Tensor | None]:
    """The gradients of x and the other inputs by autograd; None where `needed` is False."""
    inputs = zip((x, *given), needed, strict=True)
    leaves = [None if t is None else t.detach().requires_grad_(one) for t, one in inputs]
    with torch.enable_grad():
        y = formula(*leaves)
    wanted = [t for t in leaves if t is not None and t.requires_grad]
    found = iter(torch.autograd.grad(y, wanted, dy, allow_unused=True, materialize_grads=True))
    return [next(found) if t is not None and t.requires_grad else None for t in leaves]


def dense(x: Tensor) -> Tensor:
    """x without gaps in memory: x itself if it is contiguous or channels-last, else a contiguous copy."""
    return x if x.is_contiguous() or x.movedim(1, -1).is_contiguous() else x.contiguous()
