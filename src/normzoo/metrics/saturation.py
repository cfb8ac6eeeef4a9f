"""Where an activation function lets no gradient through."""

import torch
from torch import Tensor


def flat(x: Tensor, low: float, high: float) -> Tensor:
    """Where an activation is flat: below `low` and above `high`; at the bounds too. NaN is not."""
    return (x <= low) | (x >= high)


def saturated(x: Tensor, low: float = -4.0, high: float = 4.0) -> Tensor:
    """The share of an activation's inputs that lie where it is flat.

    `share = mean(x <= low or x >= high)`

    Args:
        x: inputs of the activation, any shape.
        low: where it is flat below: -4 for a sigmoid, whose slope is there 0.018 of 0.25; 0 for ReLU.
        high: where it is flat above: 4 for a sigmoid; infinity for ReLU.

    Returns:
        A scalar in [0, 1] in float64; NaN of nothing.
    """
    return flat(x, low, high).double().mean()


def dead(x: Tensor, low: float = 0.0, high: float = torch.inf, axis: int = 1) -> Tensor:
    """The share of units whose every input lies where the activation is flat: no sample moves them any more.

    `share = mean_c(all_n(x_nc <= low or x_nc >= high))`

    Args:
        x: inputs of the activation, (N, C, *).
        low: where it is flat below: 0 for ReLU, -4 for a sigmoid.
        high: where it is flat above: infinity for ReLU, 4 for a sigmoid.
        axis: the axis of the units C.

    Returns:
        A scalar in [0, 1] in float64; NaN of nothing.
    """
    by_unit = flat(x, low, high).movedim(axis, 0).flatten(1)
    if by_unit.numel() == 0:
        return torch.full((), torch.nan, dtype=torch.float64, device=x.device)
    return by_unit.all(1).double().mean()
