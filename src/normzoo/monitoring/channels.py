"""Count, mean and variance of the channels of several layers."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from normzoo.metrics import Moments, merge, moments
from normzoo.monitoring.layers import feature_axis

Channels = Mapping[str, Moments]
"""Layer, in the order of execution -> the moments of its channels, in float64 on the CPU."""


def feature_moments(module: nn.Module, x: Tensor) -> Moments | None:
    """Reads count, mean and variance of each feature of an input or output; None of indices."""
    return moments(x, feature_axis(module, x)) if x.is_floating_point() else None


def merge_passes(passes: Iterable[tuple[str, Moments | None]]) -> Channels:
    """The moments of each layer over all of its passes, from those of each pass."""
    known = [(name, one) for name, one in passes if one is not None]
    if not known:
        return {}
    flat = torch.cat([part.reshape(-1) for _, one in known for part in one]).cpu()  # one transfer for all layers
    parts = iter(flat.split([part.numel() for _, one in known for part in one]))
    return merge_channels([{name: Moments(next(parts)[0], next(parts), next(parts))} for name, _ in known])


def merge_channels(parts: Sequence[Channels]) -> Channels:
    """The moments of each layer over several passes, batches or ranks, by Chan's formula.

    A layer may be missing in a part. One whose number of channels changes counts with the first number of them.
    """
    by_layer: dict[str, list[Moments]] = {}
    for name, one in (item for part in parts for item in part.items()):
        found = by_layer.setdefault(name, [])
        if not found or found[0].mean.shape == one.mean.shape:
            found.append(one)
    return {
        name: many[0] if len(many) == 1 else merge(*(torch.stack(list(column)) for column in zip(*many, strict=True)))
        for name, many in by_layer.items()
    }


def shared_layers(p: Channels, q: Channels) -> list[str]:
    """The layers that both have, with the same number of channels and at least one value of each."""
    return [
        name
        for name, one in p.items()
        if (other := q.get(name)) is not None
        and one.mean.shape == other.mean.shape
        and one.n.item() > 0
        and other.n.item() > 0
    ]


def joined(layers: Sequence[Moments]) -> Moments:
    """The channels of several layers, one layer after the other: (sum C_l,) each."""
    counts = np.repeat([one.n.item() for one in layers], [len(one.mean) for one in layers])
    return Moments(
        torch.from_numpy(counts), torch.cat([one.mean for one in layers]), torch.cat([one.var for one in layers])
    )


def starts(sizes: Sequence[int]) -> list[int]:
    """Where each layer's channels begin among those of all."""
    return [0, *accumulate(sizes[:-1])]


def averages(sizes: Sequence[int], values: Tensor, known: Tensor) -> list[list[float | None]]:
    """The averages of several quantities over the channels of each layer; None where none counts.

    Args:
        sizes: C_l of each of L layers, at least 1.
        values: (M, sum C_l), in float64.
        known: (M, sum C_l), bool: the channels that count.
    """
    counts = np.add.reduceat(known.numpy(), starts(sizes), axis=1, dtype=np.int64)
    sums = np.add.reduceat(np.where(known.numpy(), values.numpy(), 0.0), starts(sizes), axis=1)
    rows = zip(sums.tolist(), counts.tolist(), strict=True)
    return [[total / count if count else None for total, count in zip(*row, strict=True)] for row in rows]


def pooled(channels: Channels) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of all values of each layer together; each channel counts the same.

    `mean = mean_c mu_c`,  `var = mean_c (var_c + (mu_c - mean)^2)`
    """
    if not channels:
        return {}
    flat, sizes = joined(list(channels.values())), [len(one.mean) for one in channels.values()]
    mu, var = flat.mean.numpy(), flat.var.numpy()
    with np.errstate(all="ignore"):
        mean = np.add.reduceat(mu, starts(sizes)) / sizes
        square = np.add.reduceat(var + (mu - mean.repeat(sizes)) ** 2, starts(sizes)) / sizes
    return dict(zip(channels, zip(mean.tolist(), np.sqrt(square).tolist(), strict=True), strict=True))


def to_state(channels: Channels) -> dict[str, Any]:
    """As tensors and plain data, for a checkpoint."""
    return {name: list(one) for name, one in channels.items()}


def from_state(state: Mapping[str, Any]) -> Channels:
    """The inverse of `to_state`."""
    return {name: Moments(*columns) for name, columns in state.items()}
