"""Second derivatives: where a gradient by hand is to be differentiated again, autograd takes its place."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def gradient_of(
    formula: Callable[..., Tensor], inputs: Sequence[Tensor | None], needed: Sequence[bool], dy: Tensor
) -> list[Tensor | None]:
    """The gradients of `formula(*inputs)` by autograd, themselves differentiable.

    Args:
        formula: the same as what was computed, written down plainly.
        inputs: what it was computed from, saved.
        needed: for each input, whether its gradient is asked for.
        dy: the gradient of the output.

    Returns:
        for each input its gradient, or None.
    """
    # Views, so that no input is reached by way of another that was computed from it: autograd goes that way by itself.
    apart = [None if t is None else t.view_as(t) for t in inputs]
    wanted = [t for t, one in zip(apart, needed, strict=True) if one and t is not None]
    found = iter(torch.autograd.grad(formula(*apart), wanted, dy, create_graph=True, allow_unused=True))
    return [next(found) if one and t is not None else None for t, one in zip(apart, needed, strict=True)]
