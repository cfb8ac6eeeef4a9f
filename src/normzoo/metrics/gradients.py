"""Norms of gradients, weights and updates."""

from collections.abc import Sequence

import torch
from torch import Tensor


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of each of many tensors.

    `norm = sqrt(sum x^2)`

    Args:
        tensors: P tensors of any shapes, on one device.

    Returns:
        (P,), in float32 at least.
    """
    found = [torch.linalg.vector_norm(t.detach(), dtype=torch.promote_types(t.dtype, torch.float32)) for t in tensors]
    wide = any(one.dtype == torch.float64 for one in found)
    return torch.stack([one.double() for one in found] if wide else found) if found else torch.zeros(0)


@torch.no_grad()
def ratio(numerators: Tensor, denominators: Tensor) -> Tensor:
    """`||a|| / ||b||`, of gradients to weights or of updates to weights: how much of a weight a step would move.

    Args:
        numerators: (L,), norms.
        denominators: (L,), norms.

    Returns:
        (L,), dimensionless; NaN where the denominator is 0, as for a bias that has not moved yet.
    """
    return torch.where(denominators > 0, numerators / denominators, torch.nan)
