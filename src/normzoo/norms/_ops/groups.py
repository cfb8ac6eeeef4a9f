"""Groups of neighbouring channels: their number, and their normalization."""

from functools import partial

import torch
from torch import Tensor

from normzoo.norms._base import Norm
from normzoo.norms._checks import divisors, require_divisor
from normzoo.norms._ops.scale_shift import by_plane
from normzoo.norms._ops.tensors import in_one_precision, inverse_root


def resolve_groups(layer: Norm, num_groups: int | None) -> int:
    """The number of groups G of C / G neighbouring channels.

    None means as many groups as possible, up to the 32 of Wu and He (2018), with at least 4 channels each, so that
    every C and (N, C) work: 64 -> 16, 100 -> 25, 256 -> 32.

    Raises:
        InputError: num_groups does not divide the layer's `num_features`.
    """
    channels = layer.num_features
    if num_groups is None:
        return max((g for g in divisors(channels) if g <= 32 and channels // g >= 4), default=1)
    require_divisor(layer, num_groups=num_groups)
    return num_groups


def standardize_groups(mean: Tensor, var: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """The tables of `(x - mean) / sqrt(var + eps)` by the mean and variance of each group of each sample.

    Args:
        mean: (N, C), of every channel of every sample.
        var: (N, C), biased.
        groups: G.
        eps: added to the variance of a group.
    """
    means, variances = (table.unflatten(1, (groups, -1)) for table in (mean, var))
    of_group = means.mean(2, keepdim=True)
    var_of_group = (variances + (means - of_group).square()).mean(2, keepdim=True)
    inv_std = inverse_root(var_of_group + eps).expand(means.shape).flatten(1)
    return inv_std, -of_group.expand(means.shape).flatten(1) * inv_std


def group_norm(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Normalizes each group of channels of each sample, with torch's kernel for contiguous inputs.

    For channels-last inputs that kernel computes E[x^2] - E[x]^2: in float32 a mean of 100 costs three digits, and one
    of 1e4 all of them.
    """
    if x.is_contiguous():
        # On a CPU this kernel takes narrow inputs with float32 parameters, without a copy.
        narrow = x.device.type == "cpu" and x.dtype != torch.float64
        mixes = narrow and all(p is None or p.dtype == torch.float32 for p in (weight, bias))
        wide, weight, bias = (x, weight, bias) if mixes else in_one_precision(x, weight, bias)
        return torch.group_norm(wide, groups, weight, bias, eps).to(x.dtype)  # type: ignore[arg-type] # x is no None
    rule = partial(standardize_groups, groups=groups, eps=eps)
    return by_plane(x, rule, weight=weight, bias=bias)[0]
