"""Percentiles of many values: exactly, or of a sample of them with a bounded error."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

BUCKETS = 1024


def percentiles(x: Tensor, q: Sequence[float] = (15, 50, 85), dim: int | None = None) -> Tensor:
    """Percentiles by linear interpolation between the two values nearest in rank.

    `p(q) = x_(i) + (r - i) (x_(i+1) - x_(i))` of the ordered values x_(0) ... x_(n-1), with `r = (n - 1) q / 100` and
    `i = floor(r)`

    Args:
        x: any shape.
        q: percentages in [0, 100].
        dim: the axis that the values lie along; None for all values.

    Returns:
        (Q,) in float64 for all values, else (Q, ...) with the shape of x without the axis. NaN where a value is NaN,
        of nothing, and between two opposite infinities.
    """
    x = x.detach()
    wide = torch.promote_types(x.dtype, torch.float) if x.is_floating_point() else torch.double
    values = (x.reshape(-1) if dim is None else x.movedim(dim, -1)).to("cpu", wide)
    n = values.shape[-1]
    if n == 0:
        return torch.full((len(q), *values.shape[:-1]), torch.nan, dtype=torch.float64, device=x.device)
    ranks = [(n - 1) * share / 100 for share in q]
    below = [math.floor(r) for r in ranks]
    above = [min(i + 1, n - 1) for i in below]
    picked = of_ranks(values.numpy(), [*below, *above, n - 1]).astype(np.float64)
    low, high, largest = picked[..., : len(q)], picked[..., len(q) : -1], picked[..., -1:]
    share = np.array([r - i for r, i in zip(ranks, below, strict=True)])
    with np.errstate(all="ignore"):
        # Infinity minus itself is nothing, and so is 0 times infinity: a rank that is met needs no second value.
        between = np.where(np.isfinite(low), low + share * (high - low), low * (1 - share) + high * share)
    found = np.where(share == 0, low, between)
    found = np.where(np.isnan(largest), np.nan, found)  # NaN is ordered last
    return torch.from_numpy(np.moveaxis(found, -1, 0).copy()).to(x.device)


def of_ranks(values: np.ndarray[Any, Any], ranks: Sequence[int]) -> np.ndarray[Any, Any]:
    """The values of some ranks in the ascending order of the last axis, (..., R).

    Of one row it looks into buckets: their counts tell which of them a rank falls into, and only those are sorted. On
    values not seen before that takes a fifth of the time of numpy's selection, which branches at each of them.
    """
    wanted = np.array(ranks)
    scale = np.nan
    if values.ndim == 1 and values.size > BUCKETS:
        low, high = values.min(), values.max()
        with np.errstate(all="ignore"):
            scale = (BUCKETS - 1) / (high - low)
    if not (np.isfinite(scale) and scale > 0):  # few values, or equal ones, or some that are not finite
        ordered = values.copy()
        ordered.partition(np.unique(wanted), axis=-1)
        return ordered[..., wanted]
    bucket = ((values - low) * scale).astype(np.int16)
    up_to = np.bincount(bucket, minlength=BUCKETS).cumsum()
    where = np.searchsorted(up_to, wanted, side="right")
    found = np.empty(len(ranks), values.dtype)
    for one in np.unique(where):
        inside, here = np.sort(values[bucket == one]), where == one
        found[here] = inside[wanted[here] - (up_to[one] - len(inside))]
    return found


def sampled(x: Tensor, samples: int = 1 << 14) -> Tensor:
    """Values of x evenly spread over it: all of them if there are few, else about `samples`.

    `x[0], x[s], x[2 s] ...` in the order of memory, with the largest `s <= numel / samples` that shares no factor with
    numel: it meets all rows, columns and channels alike, which a stride of a power of two does not.

    Args:
        x: any shape.
        samples: how many values are wanted.

    Returns:
        (S,), samples <= S unless x has fewer; a view where memory allows.
    """
    x = x.detach()
    flat = x.permute(sorted(range(x.dim()), key=x.stride, reverse=True)).reshape(-1)  # in the order of memory
    return flat[:: sampling_stride(flat.numel(), samples)]


def sampling_stride(numel: int, samples: int) -> int:
    """The largest stride of at most `numel / samples` that shares no factor with numel."""
    stride = max(numel // samples, 1)
    while math.gcd(stride, numel) > 1:
        stride -= 1
    return stride


def rank_error(samples: int, confidence: float = 0.999) -> float:
    """How many percentage points the rank of a sampled percentile is off by, at most, with a probability.

    `100 sqrt(ln(2 / (1 - confidence)) / (2 samples))`

    So the 15th percentile of 16,384 sampled values lies, with a probability of 0.999, between the 13.5th and the
    16.5th of all. It holds for all percentiles at once, whatever the distribution, for values drawn at random; values
    that a stride picks behave so unless x repeats itself with that very stride.

    Args:
        samples: the number of sampled values.
        confidence: probability in [0, 1).

    Returns:
        Percentage points.

    Reference: Pascal Massart. The Tight Constant in the Dvoretzky-Kiefer-Wolfowitz Inequality. 1990.
    """
    return 100 * math.sqrt(math.log(2 / (1 - confidence)) / (2 * samples))
