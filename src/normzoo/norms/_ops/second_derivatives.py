"""Autograd in place of an explicit gradient, where that must itself be differentiable or is of a batch of gradients."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from normzoo.norms._ops.tensors import in_torch_func


def needs_autograd(*grad_outputs: Tensor) -> bool:
    """Whether a backward pass computes its gradient by autograd, from the plain formula.

    It does so if the gradient is to be differentiated again, under `torch.func`, and for a batch of gradients, as
    `torch.autograd.grad(is_grads_batched=True)` and `jacobian(vectorize=True)` pass it: a batch cannot be written to
    memory for one gradient.
    """
    return torch.is_grad_enabled() or in_torch_func() or any(map(is_batched, grad_outputs))


def is_batched(gradient: Tensor) -> bool:
    """Whether a tensor holds a batch of gradients, as autograd's own vmap passes it."""
    return torch._C._functorch.is_legacy_batchedtensor(gradient)  # torch has no public name for it


def gradient_of(
    formula: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: Sequence[Tensor | None],
    needed: Sequence[bool],
    dy: Tensor | tuple[Tensor, ...],
) -> list[Tensor | None]:
    """The gradients of `formula(*inputs)` by autograd, themselves differentiable if grad mode is enabled.

    Args:
        formula: the plain formula of the output.
        inputs: the saved inputs of the forward pass.
        needed: for each input, whether its gradient is needed.
        dy: the gradient of the output.

    Returns:
        the gradient of each input, or None.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views separate the inputs: if one was computed from another, autograd itself adds that path later.
        apart = [None if t is None else t.view_as(t) for t in inputs]
        y = formula(*apart)
    wanted = [t for t, one in zip(apart, needed, strict=True) if one and t is not None]
    found = iter(torch.autograd.grad(y, wanted, dy, create_graph=again, allow_unused=True))
    return [next(found) if one and t is not None else None for t, one in zip(apart, needed, strict=True)]
