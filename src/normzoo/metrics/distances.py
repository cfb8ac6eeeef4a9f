"""How far apart two Gaussians are, channel by channel: a layer's covariate shift is an average over its channels."""

import math

import torch
from torch import Tensor

from normzoo.metrics.moments import Moments


@torch.no_grad()
def w1(p: Moments, q: Moments) -> Tensor:
    """Wasserstein-1 distance of two Gaussians, per channel, in the units of x.

    `W1 = E|dmu + dsigma Z| = |dsigma| sqrt(2 / pi) exp(-dmu^2 / (2 dsigma^2)) + dmu erf(dmu / (|dsigma| sqrt(2)))`

    The best transport between Gaussians of one dimension moves x along a line, so that what it costs is the mean of a
    folded normal variable.

    Args:
        p: moments of one, mean and var (C,).
        q: moments of the other.

    Returns:
        (C,), at least 0.
    """
    shift, spread = p.mean - q.mean, (p.std - q.std).abs()
    ratio = (shift / (spread * math.sqrt(2))).nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
    folded = spread * math.sqrt(2 / math.pi) * torch.exp(-ratio.square()) + shift * torch.erf(ratio)
    return torch.where(spread.isnan() | shift.isnan(), torch.nan, folded)


@torch.no_grad()
def w2(p: Moments, q: Moments) -> Tensor:
    """Wasserstein-2 distance of two Gaussians, per channel, in the units of x.

    `W2^2 = dmu^2 + dsigma^2`

    Args:
        p: moments of one, mean and var (C,).
        q: moments of the other.

    Returns:
        (C,), at least 0. That of the diagonal Gaussians over all channels is the root of the sum of the squares.

    Reference: D. C. Dowson, B. V. Landau. The Fréchet distance between multivariate normal distributions. 1982.
    """
    return ((p.mean - q.mean).square() + (p.std - q.std).square()).sqrt()


@torch.no_grad()
def kl(p: Moments, q: Moments) -> Tensor:
    """Kullback-Leibler divergence of p from q, two Gaussians, per channel, in nats.

    `KL(p || q) = (ln(var_q / var_p) + (var_p + dmu^2) / var_q - 1) / 2`

    Args:
        p: moments of what is seen, mean and var (C,).
        q: moments of what is expected.

    Returns:
        (C,), at least 0; infinite where only one of the two is constant, NaN where both are.
    """
    shift = p.mean - q.mean
    nats = 0.5 * ((q.var / p.var).log() + (p.var + shift.square()) / q.var - 1)
    infinite = (q.var == 0) & (p.var > 0) & ~shift.isnan()  # the formula has infinity minus infinity there
    return torch.where(infinite, torch.inf, nats).clamp_min(0)  # of two nearly equal ones it rounds to -1e-17


@torch.no_grad()
def gap(p: Moments, q: Moments) -> Tensor:
    """How far the mean of p lies from that of q, per channel, in standard deviations of q.

    `gap = |mu_p - mu_q| / sigma_q`

    Args:
        p: moments of what is seen, as a batch's, mean and var (C,).
        q: moments of what is expected, as the running ones.

    Returns:
        (C,), at least 0; where q is constant infinite, and NaN if the means are equal there.
    """
    return (p.mean - q.mean).abs() / q.std
