"""The channels of many layers in one vector: what is computed per channel is computed for all layers at once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from normzoo.metrics.moments import Moments, merge


class Channels:
    """Vectors (C_l,) of L layers, one behind the other.

    Args:
        sizes: C_l of every layer; 0 for one that has none.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = list(sizes)
        counts = torch.tensor(self.sizes)
        self.owner = torch.repeat_interleave(torch.arange(len(self.sizes)), counts)
        self.size = counts.double()

    def mean(self, values: Tensor, known: Tensor | None = None) -> Tensor:
        """The average over the channels of each layer.

        Args:
            values: (..., sum C_l), in float64.
            known: bool, like values or (sum C_l,): which channels count; None for all.

        Returns:
            (..., L); NaN for a layer without channels that count.
        """
        sums = values.new_zeros(*values.shape[:-1], len(self.sizes))
        if known is None:
            return sums.index_add_(-1, self.owner, values) / self.size
        known = known.expand_as(values)
        counts = torch.zeros_like(sums).index_add_(-1, self.owner, known.double())
        return sums.index_add_(-1, self.owner, torch.where(known, values, 0.0)) / counts

    def split(self, values: Tensor) -> list[Tensor]:
        """The vector of each layer."""
        return list(values.split(self.sizes))


def joined(parts: Sequence[Moments]) -> Moments:
    """Moments of many layers as one: count, mean and variance (sum C_l,) each, in float64 on the CPU."""
    if not parts:
        nothing = torch.zeros(0, dtype=torch.float64)
        return Moments(nothing, nothing.clone(), nothing.clone())
    count = torch.cat([p.n.expand_as(p.mean) for p in parts])
    return Moments(*(t.cpu() for t in (count, torch.cat([p.mean for p in parts]), torch.cat([p.var for p in parts]))))


def merged(parts: Sequence[Moments]) -> Moments:
    """The moments of all parts together."""
    if len(parts) == 1:
        return parts[0]
    return merge(*(torch.stack(list(column)) for column in zip(*parts, strict=True)))
