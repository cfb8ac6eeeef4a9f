"""Second derivatives: autograd replaces an explicit gradient that must itself be differentiable."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def gradient_of(
    formula: Callable[..., Tensor], inputs: Sequence[Tensor | None], needed: Sequence[bool], dy: Tensor
) -> list[Tensor | None]:
    """The gradients of `formula(*inputs)` by autograd, themselves differentiable.

    Args:
        formula: the plain formula of the output.
        inputs: the saved inputs of the forward pass.
        needed: for each input, whether its gradient is needed.
        dy: the gradient of the output.

    Returns:
        the gradient of each input, or None.
    """
    # Views separate the inputs: if one was computed from another, autograd itself adds that path later.
    apart = [None if t is None else t.view_as(t) for t in inputs]
    wanted = [t for t, one in zip(apart, needed, strict=True) if one and t is not None]
    found = iter(torch.autograd.grad(formula(*apart), wanted, dy, create_graph=True, allow_unused=True))
    return [next(found) if one and t is not None else None for t, one in zip(apart, needed, strict=True)]
