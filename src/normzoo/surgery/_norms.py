"""What is known of a normalization layer of any library: its channels, where they are, what it is fed with."""

import re
from collections import OrderedDict
from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from normzoo.monitoring.layers import WRAPPED, Layers, is_weighted, matches, named_layers
from normzoo.norms._base import Norm


def places(root: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """All modules with their paths, and their names: paths without wrappers. A shared module comes several times."""
    for path, module in root.named_modules(remove_duplicate=False):
        yield path, ".".join(part for part in path.split(".") if part != WRAPPED), module


def inside(root: nn.Module, where: Layers) -> dict[str, nn.Module]:
    """The modules that patterns name, and all inside them, by all their names; without those that compute a weight.

    Raises:
        InputError: a pattern matches no module.
    """
    named = {name: module for _, name, module in places(root) if name and "parametrizations" not in name.split(".")}
    wanted = [where] if isinstance(where, str | type) else where
    found = {name for one in wanted for name in matches(one, named, "where")}
    return {name: module for name, module in named.items() if not found.isdisjoint([name, *above(name)])}


def above(name: str) -> list[str]:
    """The names of the modules that a module is in."""
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def channels_of(layer: nn.Module) -> int | None:
    """The number of channels that a layer normalizes; None if it does not say, or normalizes several axes at once."""
    sizes = getattr(layer, "normalized_shape", None)
    if sizes is not None:
        return int(sizes[0]) if len(sizes) == 1 else None
    for name in ("num_features", "num_channels"):
        if isinstance(size := getattr(layer, name, None), int) and size > 0:
            return size
    weight = getattr(layer, "weight", None)
    return len(weight) if isinstance(weight, Tensor) and not is_lazy(weight) and weight.dim() == 1 else None


def positions_of(layer: nn.Module) -> int | None:
    """The number of axes of positions that a class is made for, as its name says: 2 for BatchNorm2d."""
    bases = type(layer).__mro__[: type(layer).__mro__.index(nn.Module)]
    found = [match for base in bases if (match := re.search("([123])d", base.__name__))]
    return int(found[0][1]) if found and not isinstance(layer, Norm) else None


def channel_axis(layer: nn.Module, shape: tuple[int, ...] | None = None) -> int:
    """The axis of the channels in a layer's input: 1 as in (N, C, *), or -1 as in (N, *, C).

    By what the class says, and, where an input contradicts it, by the size of its axes.
    """
    if isinstance(layer, Norm):
        return -1 if getattr(layer, "over_axes", False) else layer.channel_dim
    name = type(layer).__name__.lower()
    last = isinstance(layer, nn.LayerNorm | nn.RMSNorm) or "layernorm" in name or "rmsnorm" in name
    axis = -1 if last and positions_of(layer) is None else 1
    contradicted = shape is not None and shape[axis] != channels_of(layer) == shape[1 if axis == -1 else -1]
    return (1 if axis == -1 else -1) if contradicted else axis


def behind_linear(model: nn.Module) -> set[nn.Module]:
    """The layers whose nearest weighted layer before them, in the order of registration, is linear and fits them."""
    found, before = set(), None
    for _, layer in named_layers(model):
        if isinstance(before, nn.Linear) and channels_of(layer) == before.out_features:
            found.add(layer)
        if is_weighted(layer):
            before = layer
    return found


def usual_shape(layer: nn.Module, channels: int, linear: bool) -> tuple[int, ...] | None:
    """The shape of an input that a layer takes where it is; None if that is not known without data."""
    positions = positions_of(layer)
    size = 17 if channels == 16 else 16  # not that of the channels
    if channel_axis(layer) == -1:
        return (2, size, channels)
    if linear and positions in (1, None):
        return (8, channels)
    return None if positions is None else (2, channels, *[size] * positions)


def parts_after(layer: nn.Module) -> "OrderedDict[str, nn.Module]":
    """The dropout and the activation that a layer of timm applies to its output, by their names."""
    children = dict(layer.named_children())
    return OrderedDict(
        (name, children[name])
        for name in ("drop", "act")
        if not isinstance(children.get(name, nn.Identity()), nn.Identity)
    )
