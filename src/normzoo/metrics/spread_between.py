"""How much the moments of batches differ: what a distance between two samples of one distribution is made of."""

import torch
from torch import Tensor


@torch.no_grad()
def spread_between(count: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """Variance of mean and standard deviation between parts of a sample, times the values of a part, per channel.

    `s^2 = sum_k n_k ((mu_k - mu)^2 + (sigma_k - sigma)^2) / (K - 1)`, with `mu = sum_k n_k mu_k / sum_k n_k` and sigma
    the same of the standard deviations

    Of K parts of n values, `s^2 / n` is the unbiased variance of their means plus that of their standard deviations. So
    the Gaussians of two samples of N_p and N_q values of one distribution have a squared Wasserstein-2 distance of
    about `s^2 (1 / N_p + 1 / N_q)`. Values inside a part may depend on each other, as the positions of an image do.

    Args:
        count: (K,) or (K, C), values in each of K parts; a part may be empty.
        mean: (K, C).
        var: (K, C), biased.

    Returns:
        (C,) in float64, in squared units of the mean; NaN of fewer than two parts that are not empty.
    """
    count, mean, std = count.double(), mean.double(), var.double().sqrt()
    weight = count if count.dim() == mean.dim() else count.unsqueeze(-1)
    values = torch.cat([mean, std], -1).masked_fill((weight == 0).expand_as(mean).repeat(1, 2), 0)
    weights = weight.expand_as(mean).repeat(1, 2)
    centred = values - (weights * values).sum(0) / weights.sum(0)
    square = (weights * centred.square()).sum(0).view(2, -1).sum(0)
    return square / ((weight > 0).sum(0) - 1).clamp_min(0)
