"""Linear layers and convolutions with a scale and a shift folded in, computed in float64."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from normzoo.norms._base import Norm

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LINEAR = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)

Function = Callable[[Tensor], Tensor]


def linear_axis(layer: Any, x: Tensor) -> int:
    """The axis of the channels in the input and output of a layer: the last, of a convolution that before positions."""
    return x.dim() - 1 if isinstance(layer, nn.Linear) else x.dim() - 1 - len(layer.kernel_size)


def pads(layer: Any) -> bool:
    """Whether a convolution pads its input with zeros."""
    if isinstance(layer, nn.Linear) or layer.padding_mode != "zeros" or layer.padding == "valid":
        return False
    return layer.padding == "same" or any(layer.padding)


def bakes(layer: nn.Module) -> bool:
    """Whether the weight of a layer is its own, or a parametrization that can be replaced by its value."""
    made: Any = getattr(layer, "parametrizations", {})
    return not any(isinstance(one, Norm) and one.facts.reads_input for each in made.values() for one in each)


def baked(layer: nn.Module) -> Any:
    """A copy of a layer whose parametrized weights are plain parameters."""
    new = copy.deepcopy(layer)
    if parametrize.is_parametrized(new):
        made: Any = new.parametrizations
        values = {name: getattr(new, name).detach().clone() for name in made}
        # Not remove_parametrizations, which changes the class, and the layer itself has it, too.
        del new.parametrizations
        new.__class__ = parametrize.type_before_parametrizations(layer)
        for name, value in values.items():
            new.register_parameter(name, nn.Parameter(value))
    return new


def with_output(layer: Any, scale: Tensor, shift: Tensor) -> nn.Module:
    """A copy of a layer that returns `scale y + shift` of its output y.

    Args:
        layer: any of `LINEAR`.
        scale: (C,), float64.
        shift: (C,), float64.
    """
    new = baked(layer)
    weight, bias = new.weight.double(), 0 if new.bias is None else new.bias.double()
    if isinstance(layer, TRANSPOSED):  # (inputs, outputs / groups, *)
        by_group = weight.unflatten(0, (layer.groups, -1))
        shape = (layer.groups, 1, -1, *[1] * (weight.dim() - 2))
        weight = (by_group * scale.view(shape)).flatten(0, 1)
    else:
        weight = weight * scale.view(-1, *[1] * (weight.dim() - 1))
    return set_parameters(new, weight, bias * scale + shift)


def with_input(layer: Any, scale: Tensor, shift: Tensor) -> nn.Module:
    """A copy of a layer that returns for x what the layer returns for `scale x + shift`.

    Args:
        layer: a linear layer, or a convolution without padding if the shift is not 0.
        scale: (C,), float64.
        shift: (C,), float64.
    """
    new = baked(layer)
    weight = new.weight.double()
    groups = getattr(layer, "groups", 1)

    def along_inputs(values: Tensor) -> Tensor:  # (outputs, inputs / groups, 1 ...)
        table = values.view(groups, -1).repeat_interleave(len(weight) // groups, 0)
        return table.view(*table.shape, *[1] * (weight.dim() - 2))

    added = (weight * along_inputs(shift)).flatten(1).sum(1)
    bias = None if new.bias is None and not shift.any() else added + (0 if new.bias is None else new.bias.double())
    return set_parameters(new, weight * along_inputs(scale), bias)


def set_parameters(layer: Any, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Gives a layer another weight and bias, in the dtype and memory format of its weight."""
    with torch.no_grad():
        old = layer.weight
        layer.weight = nn.Parameter(torch.empty_like(old).copy_(weight), old.requires_grad)
        if bias is not None:
            layer.bias = nn.Parameter(bias.to(old.dtype), old.requires_grad)
    folded: nn.Module = layer
    return folded


def double(*modules: nn.Module) -> nn.Sequential:
    """Copies of modules, one after the other, in float64 and evaluation mode."""
    return copy.deepcopy(nn.Sequential(*modules)).double().eval()


def same(f: Function, g: Function, like: Tensor, tolerance: float = 1e-8) -> bool:
    """Whether two functions agree, in float64, on random numbers of the shape of a tensor.

    Args:
        f: a function.
        g: another.
        like: the tensor.
        tolerance: the largest difference, relative to the largest value.
    """
    x = torch.randn(like.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(like.device)
    with torch.no_grad():
        y, other = f(x), g(x)
    return y.shape == other.shape and bool((y - other).abs().max() <= tolerance * y.abs().max())


def rounding(layer: Any) -> float:
    """By how much rounding the weight of a layer may change its output, relative to the largest value."""
    return 64 * torch.finfo(layer.weight.dtype).eps


def affine_of(norm: nn.Module, x: Tensor, axis: int) -> tuple[Tensor, Tensor] | None:
    """Scale and shift, (C,) each in float64, if a norm in evaluation is `scale x + shift` along an axis; else None.

    Args:
        norm: the norm.
        x: an input, for its shape.
        axis: of the channels.
    """
    f = double(norm)
    with torch.no_grad():
        shift, both = (f(torch.full_like(x, value, dtype=torch.float64)) for value in (0.0, 1.0))
    if shift.shape != x.shape:
        return None
    scale, shift = (table.movedim(axis, 0).flatten(1)[:, 0] for table in (both - shift, shift))
    return (scale, shift) if same(f, times(scale, shift, x.dim(), axis), x) else None


def times(scale: Tensor, shift: Tensor, dim: int, axis: int) -> Function:
    """The function `scale x + shift` along an axis of tensors of so many axes."""
    shape = [-1 if i == axis else 1 for i in range(dim)]
    return lambda x: x * scale.view(shape) + shift.view(shape)
