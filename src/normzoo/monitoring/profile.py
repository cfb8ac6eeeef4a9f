"""The moments of all layers in one vector: what is computed per channel is computed for all of them at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from normzoo.metrics import Moments, merge, moments
from normzoo.monitoring.probe import feature_axis


@dataclass(frozen=True)
class Profile:
    """Count, mean and variance of the channels of many layers, one layer behind the other, in float64 on the CPU.

    Args:
        names: of the layers, in the order in which they ran.
        sizes: C_l, channels of each layer.
        moments: n, mean and var, (sum C_l,) each.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    moments: Moments

    def only(self, names: Sequence[str]) -> "Profile":
        """The layers of these names, in their order."""
        if tuple(names) == self.names:
            return self
        place = [self.names.index(name) for name in names]
        parts = [column.split(self.sizes) for column in self.moments]
        chosen = (torch.cat([part[i] for i in place]) if place else part[0][:0] for part in parts)
        return Profile(tuple(names), tuple(self.sizes[i] for i in place), Moments(*chosen))

    def on(self, names: tuple[str, ...], sizes: tuple[int, ...]) -> "Profile":
        """Laid out as another: a layer that is missing here, or has other channels, has n = 0 and is NaN."""
        if names == self.names and sizes == self.sizes:
            return self
        columns = [column.split(self.sizes) for column in self.moments]
        own = {name: Moments(*parts) for name, *parts in zip(self.names, *columns, strict=True)}
        layers = []
        for name, size in zip(names, sizes, strict=True):
            missing = torch.full((size,), torch.nan, dtype=torch.float64)
            found = own.get(name, NOTHING.moments)
            layers.append(found if len(found.mean) == size else Moments(torch.zeros_like(missing), missing, missing))
        return Profile(names, sizes, joined(layers))

    def state_dict(self) -> dict[str, Any]:
        """As tensors and plain data."""
        return {"names": list(self.names), "sizes": list(self.sizes), "moments": list(self.moments)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Profile":
        """What `state_dict` was taken of."""
        return cls(tuple(state["names"]), tuple(state["sizes"]), Moments(*state["moments"]))


NOTHING = Profile((), (), Moments(*(torch.zeros(0, dtype=torch.float64) for _ in range(3))))


def feature_moments(module: nn.Module, x: Tensor) -> Moments | None:
    """What a probe reads of an input or output: count, mean and variance of each feature; None of indices."""
    return None if not x.is_floating_point() else moments(x, feature_axis(module, x))


def profile(heard: Sequence[tuple[str, Moments | None]]) -> Profile:
    """The moments of each layer over all of its passes, from those of each pass."""
    by_layer: dict[str, list[Moments]] = {}
    for name, one in heard:
        if one is not None:
            by_layer.setdefault(name, []).append(one)
    if not by_layer:
        return NOTHING
    # A layer that is passed twice with other numbers of channels has no channels to speak of but the first's.
    merged = [
        many[0] if len(many) == 1 else together([m for m in many if m.mean.shape == many[0].mean.shape])
        for many in by_layer.values()
    ]
    sizes = tuple(len(m.mean) for m in merged)
    means, variances = torch.cat([m.mean for m in merged]), torch.cat([m.var for m in merged])
    counts = torch.stack([m.n for m in merged])[owner_of(sizes).to(means.device)]
    return Profile(tuple(by_layer), sizes, Moments(*(t.cpu() for t in (counts, means, variances))))


def joined(parts: Sequence[Moments]) -> Moments:
    """One behind the other."""
    return Moments(*(torch.cat(list(column)) for column in zip(*parts, strict=True)))


def together(parts: Sequence[Moments]) -> Moments:
    """The moments of all parts as one."""
    return merge(*(torch.stack(list(column)) for column in zip(*parts, strict=True)))


def merge_profiles(parts: Sequence[Profile]) -> Profile:
    """The moments of each layer over several batches, as of all ranks; a layer may be missing in some."""
    if len(parts) == 1:
        return parts[0]
    names = list(dict.fromkeys(name for part in parts for name in part.names))
    if not names:
        return NOTHING
    if all(part.names == tuple(names) and part.sizes == parts[0].sizes for part in parts):
        return Profile(tuple(names), parts[0].sizes, together([part.moments for part in parts]))
    layers = []
    for name in names:
        found = [part.only([name]).moments for part in parts if name in part.names]
        layers.append(together([one for one in found if one.mean.shape == found[0].mean.shape]))
    sizes = tuple(len(layer.mean) for layer in layers)
    return Profile(tuple(names), sizes, joined(layers))


def aligned(p: Profile, q: Profile) -> tuple[Profile, Profile]:
    """The layers that two profiles share, with the same channels."""
    if p.names == q.names and p.sizes == q.sizes:
        return p, q
    of_q = dict(zip(q.names, q.sizes, strict=True))
    shared = [name for name, size in zip(p.names, p.sizes, strict=True) if of_q.get(name) == size]
    return p.only(shared), q.only(shared)


@lru_cache(maxsize=64)
def sizes_of(sizes: tuple[int, ...]) -> Tensor:
    """(L,), int64."""
    return torch.tensor(sizes, dtype=torch.long)


@lru_cache(maxsize=64)
def owner_of(sizes: tuple[int, ...]) -> Tensor:
    """(sum C_l,), the layer of each channel."""
    return torch.repeat_interleave(torch.arange(len(sizes)), sizes_of(sizes))


def layer_means(sizes: tuple[int, ...], values: Tensor, known: Tensor | None = None) -> Tensor:
    """The average of a quantity over the channels of each layer.

    Args:
        sizes: C_l of each layer.
        values: (..., sum C_l), in float64.
        known: bool, with the last axes of the values: which channels count; None for all.

    Returns:
        (..., L); NaN for a layer without channels that count.
    """
    owner = owner_of(sizes)
    sums = values.new_zeros(*values.shape[:-1], len(sizes))
    if known is None:
        return sums.index_add_(-1, owner, values) / sizes_of(sizes)
    counts = torch.zeros(*known.shape[:-1], len(sizes), dtype=torch.float64).index_add_(-1, owner, known.double())
    return sums.index_add_(-1, owner, torch.where(known, values, 0.0)) / counts
