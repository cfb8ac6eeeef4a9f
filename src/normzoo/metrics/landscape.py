"""The loss along its gradient: how far the gradient can be trusted.

At weights theta with the gradient g, steps of several lengths eta are tried: `theta - eta g`.

Reference: Shibani Santurkar, Dimitris Tsipras, Andrew Ilyas, Aleksander Madry. How Does Batch Normalization Help
Optimization? 2018. arXiv 1805.11604, section 3.1 and figure 4.
"""

import torch
from torch import Tensor


@torch.no_grad()
def loss_range(losses: Tensor) -> Tensor:
    """How much the loss varies over the steps.

    `range = max_eta L(theta - eta g) - min_eta L(theta - eta g)`

    Args:
        losses: (E,), the loss after each step.

    Returns:
        A scalar, in units of the loss.
    """
    return losses.max() - losses.min()


@torch.no_grad()
def gradient_change(gradient: Tensor, gradients: Tensor) -> Tensor:
    """How much the gradient changes over each step: gradient predictiveness, the smaller the better.

    `change_eta = ||grad L(theta - eta g) - g||`

    Args:
        gradient: g, (P,).
        gradients: (E, P), after each step; or (P,), after one.

    Returns:
        (E,), or a scalar, in units of the gradient.
    """
    return (gradients - gradient).norm(dim=-1)


@torch.no_grad()
def effective_smoothness(gradient: Tensor, gradients: Tensor, steps: Tensor) -> Tensor:
    """The largest change of the gradient per distance along the steps: the effective beta of beta-smoothness.

    `beta = max_eta ||grad L(theta - eta g) - g|| / (eta ||g||)`

    Args:
        gradient: g, (P,).
        gradients: (E, P), after each step.
        steps: (E,), each eta, above 0.

    Returns:
        A scalar, in units of the loss per squared unit of the weights; NaN where g is 0.
    """
    return change_per_distance(gradient_change(gradient, gradients), gradient.norm(), steps)


@torch.no_grad()
def change_per_distance(changes: Tensor, size: Tensor, steps: Tensor) -> Tensor:
    """`effective_smoothness` of changes that are known.

    Args:
        changes: (E,), what `gradient_change` finds.
        size: `||g||`, a scalar.
        steps: (E,), each eta, above 0.
    """
    return torch.where(size > 0, (changes / (steps * size)).max(), torch.nan)
