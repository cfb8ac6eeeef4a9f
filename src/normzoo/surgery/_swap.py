"""One layer and the one that takes its place."""

from collections import OrderedDict
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normzoo.errors import InputError
from normzoo.norms._base import Norm
from normzoo.surgery._norms import channel_axis, channels_of, parts_after
from normzoo.surgery.freeze import fix_statistics

Factory = Callable[[int], nn.Module] | None


@dataclass(eq=False)
class Swap:
    """A layer and the one that takes its place.

    Args:
        names: the names of the layer in the network.
        old: the layer.
        new: the module that takes its place.
        norm: the normalization layer in `new`, which is `new` itself unless an activation of `old` is kept.
        channels: number of channels C.
        axis: their axis in the input.
        kept: what the new layer has of the old one.
        lost: parameters of the old one that the new one does not have.
        unlearned: whether the new layer has running statistics that the old one has not.
    """

    names: list[str]
    old: nn.Module
    new: nn.Module
    norm: Any  # an nn.Module, with attributes that depend on the layer
    channels: int
    axis: int
    kept: list[str]
    lost: list[str]
    unlearned: bool


def planned(
    names: list[str], old: nn.Module, factory: Factory, shape: tuple[int, ...] | None, home: Tensor, *, match: str
) -> Swap:
    """Builds the layer that takes the place of another.

    Args:
        names: the names of the layer.
        old: the layer.
        factory: builds the new one from the number of channels; None to remove the layer.
        shape: of an input, if known.
        home: where the new layer is created, and its dtype, if the old one has no tensors.
        match: what the new layer keeps: "nothing", "affine" or "output".

    Raises:
        InputError: the new layer cannot take the place of the old one.
    """
    kind = type(old).__name__
    channels = channels_of(old)
    if channels is None:
        raise InputError(
            f"{kind} has no number of channels: a lazy layer needs a first batch; one over several axes, or one that "
            f"is no normalization layer, can only be set by hand"
        )
    axis = channel_axis(old, shape)
    after = parts_after(old)
    norm = built(factory, channels, axis, home=next(iter([*old.parameters(), *old.buffers()]), home))
    # Where the old layer includes no activation, the network has it elsewhere, or none.
    if isinstance(norm, Norm) and norm.facts.brings_activation and after.pop("act", None) is None:
        norm.drop_activation()
    if shape is not None and factory is not None:
        try_out(norm, shape, axis, fits=match == "output")
    new = nn.Sequential(OrderedDict(norm=norm, **after)) if after else norm
    kept, lost, unlearned = carry(old, norm, channels, factory, match)
    require_grad_like(old, norm)
    norm.eval()
    return Swap(names, old, new, norm, channels, axis, kept, lost, unlearned)


def built(factory: Factory, channels: int, axis: int, home: Tensor) -> nn.Module:
    """The new layer, on the device of `home` and with its dtype, in the layout of the old one."""
    if factory is None:
        return nn.Identity()
    with torch.device(home.device):
        norm = factory(channels)
    if not isinstance(norm, nn.Module):
        raise InputError(
            f"the rule built a {type(norm).__name__}; it must build an nn.Module from the number of channels"
        )
    if isinstance(norm, Norm):
        if norm.facts.acts_on == "weight":
            raise InputError(
                f"{type(norm).__name__} acts on the weight of a layer, not on activations: remove the norm (None), and "
                f"call torch.nn.utils.parametrize.register_parametrization(layer, 'weight', "
                f"{type(norm).__name__}({channels})) on the layer before it"
            )
        if norm.channel_dim == 1 and axis != 1:
            norm.channel_dim = axis
    return norm.to(home.device, home.dtype if home.is_floating_point() else None)


@torch.no_grad()
def try_out(norm: nn.Module, shape: tuple[int, ...], axis: int, *, fits: bool) -> None:
    """Raises unless a new layer takes inputs of a shape, returns as many values, and lets their differences through.

    Args:
        norm: the layer, with its first parameters.
        shape: of an input.
        axis: of the channels.
        fits: whether its output must be `weight z + bias`, where z does not depend on weight and bias.
    """
    name, norm = type(norm).__name__, deepcopy(norm)
    if any(tensor.is_meta for tensor in [*norm.parameters(), *norm.buffers()]):
        return
    # In float64, as rounding must not look like a difference.
    norm.to("cpu", torch.float64).train(isinstance(norm, Norm) and norm.facts.takes_reference)
    two = torch.Size((2, *shape[1:]))  # samples are enough
    x = torch.linspace(-2, 3, two.numel(), dtype=torch.float64).reshape(two)
    try:
        y = norm(x)
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:  # what layers of other libraries raise
        raise InputError(f"{name} does not take an input of shape {shape}: {error}") from error
    if not isinstance(y, Tensor) or y.shape != x.shape:
        raise InputError(f"{name} does not return an output of its input's shape, {shape}")
    if y.max() - y.min() < 1e-9:
        raise InputError(
            f"{name} returns a constant for an input of shape {shape}, since it normalizes each value alone; use fewer "
            f"groups, or LayerNorm or RMSNorm"
        )
    if fits and not scales_output(norm, x, shape[axis]):
        raise InputError(
            f"{name} has no weight or bias that scale and shift its channels, which match='output' fits; use "
            f"match='affine', or another layer"
        )


def scales_output(norm: nn.Module, x: Tensor, channels: int) -> bool:
    """Whether the output of a layer is `weight z + bias`, where z does not depend on weight and bias."""
    weight, bias = weight_and_bias(norm, channels)
    start(weight, bias)
    z = norm(x)
    start(weight, bias, 2, 3)
    wanted = (z if weight is None else 2 * z) + (0 if bias is None else 3)
    return (weight is not None or bias is not None) and torch.allclose(norm(x), wanted, rtol=1e-3, atol=1e-3)


def weight_and_bias(norm: nn.Module, channels: int) -> tuple[Tensor | None, Tensor | None]:
    """The weight and the bias of a layer, one value per channel; None for each that it does not have."""
    found = (getattr(norm, name, None) for name in ("weight", "bias"))
    weight, bias = (v if isinstance(v, Tensor) and v.numel() == channels else None for v in found)
    return weight, bias


def start(weight: Tensor | None, bias: Tensor | None, scale: float = 1, shift: float = 0) -> None:
    """Sets a layer's weight and bias, where it has them."""
    if weight is not None:
        weight.fill_(scale)
    if bias is not None:
        bias.fill_(shift)


@torch.no_grad()
def carry(
    old: nn.Module, norm: nn.Module, channels: int, factory: Factory, match: str
) -> tuple[list[str], list[str], bool]:
    """Copies to a new layer what both have; returns what was kept and lost, and whether statistics are missing."""
    running = {name for name, _ in norm.named_buffers(recurse=False) if name.startswith("running_")}
    if match == "nothing":
        return [], [], bool(running)
    kept, lost = [], []
    affine = (weight_and_bias(layer, channels) for layer in (old, norm))
    for name, a, b in zip(("weight", "bias"), *affine, strict=True):
        if a is not None and b is not None:
            b.copy_(a.reshape(b.shape))
            kept.append(name)
        elif a is not None:
            lost.append(name)
    before, after = (dict(layer.named_buffers(recurse=False)) for layer in (old, norm))
    both = {name for name in running & before.keys() if before[name].shape == after[name].shape}
    if both:
        for name in (both | {"num_batches_tracked"}) & before.keys() & after.keys():
            after[name].copy_(before[name])
        kept.append("running statistics")
        if getattr(old, "frozen", False):
            fix_statistics(norm)
            kept.append("frozen")
    keep_setting(old, norm, factory, "eps", kept)
    if both:
        keep_setting(old, norm, factory, "momentum", kept)
    return kept, lost, bool(running - both)


def keep_setting(old: nn.Module, norm: nn.Module, factory: Factory, name: str, kept: list[str]) -> None:
    """Gives a new layer the old one's `eps` or `momentum`, unless the rule, a `partial`, names another."""
    given = factory.keywords if isinstance(factory, partial) else {}
    value: Any = getattr(old, name, "none")
    if name in given or not hasattr(norm, name) or value == "none":
        return
    if name == "eps" and value is None:  # torch's RMSNorm
        value = torch.finfo(torch.float32).eps
    setattr(norm, name, value)
    kept.append(name)


def require_grad_like(old: nn.Module, norm: nn.Module) -> None:
    """Lets the parameters of a new layer train where those of the old one do."""
    before = dict(old.named_parameters())
    any_trains = any(p.requires_grad for p in before.values()) or not before
    for name, parameter in norm.named_parameters():
        parameter.requires_grad_(before[name].requires_grad if name in before else any_trains)
