"""Norms of gradients, weights and updates."""

from collections.abc import Sequence

import torch
from torch import Tensor


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of each of many tensors.

    `norm = sqrt(sum x^2)`

    Args:
        tensors: P tensors of any shapes, on one device; of sharded ones (DTensor), on all ranks.

    Returns:
        (P,), in float32 at least.
    """
    wide = [t.detach() if t.dtype in (torch.float32, torch.float64) else t.detach().float() for t in tensors]
    found = [torch.linalg.vector_norm(t) for t in wide]
    found = [one.full_tensor() if hasattr(one, "full_tensor") else one for one in found]  # of a sharded tensor
    mixed = len({one.dtype for one in found}) > 1
    return torch.stack([one.double() for one in found] if mixed else found) if found else torch.zeros(0)


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
