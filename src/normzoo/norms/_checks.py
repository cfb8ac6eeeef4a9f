"""Checks of the arguments and inputs of layers; each raises an `InputError` that names the value and the remedy."""

import math

import torch.distributed as dist
from torch import Tensor

from normzoo.errors import InputError
from normzoo.norms._arguments import is_count, keyword_defaults
from normzoo.norms._base import Norm
from normzoo.norms._ops.tensors import is_traced


def is_number(value: object) -> bool:
    """Returns whether an argument is a number; a bool is not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def require_positive(layer: Norm, **values: float) -> None:
    """Raises `InputError` unless every named argument is a finite number above 0."""
    for name, value in values.items():
        if not is_number(value) or not 0 < value < math.inf:
            raise InputError(
                f"{type(layer).__name__}({name}={value!r}): {name} must be a number above 0; the default is "
                f"{keyword_defaults(type(layer))[name]}."
            )


def require_eps(layer: Norm, eps: float) -> None:
    """Raises `InputError` unless eps is a finite number of at least 0."""
    if not is_number(eps) or not 0 <= eps < math.inf:
        default = keyword_defaults(type(layer))["eps"]
        raise InputError(
            f"{type(layer).__name__}(eps={eps!r}): eps must be a number, 0 or above; the default is {default}."
        )


def require_number(layer: Norm, least: float, /, *, below: float = math.inf, **values: float) -> None:
    """Raises `InputError` unless every named argument is a finite number in [`least`, `below`)."""
    for name, value in values.items():
        if not is_number(value) or not least <= value < below:
            bounds = f"at least {least}" if below == math.inf else f"in [{least}, {below})"
            default = f"the default is {keyword_defaults(type(layer))[name]}"
            remedy = "for no bound give a large number" if value == below == math.inf else default
            raise InputError(
                f"{type(layer).__name__}({name}={value!r}): {name} must be a finite number, {bounds}; {remedy}."
            )


def require_count(layer: Norm, least: int, /, **values: int) -> None:
    """Raises `InputError` unless every named argument is an integer of at least `least`; a bool is not."""
    for name, value in values.items():
        if not is_count(value, least):
            raise InputError(
                f"{type(layer).__name__}({name}={value!r}): {name} must be an integer of at least {least}; the default "
                f"is {keyword_defaults(type(layer))[name]}."
            )


def divisors(channels: int) -> list[int]:
    """Returns the divisors of a number of channels, in order."""
    return [d for d in range(1, channels + 1) if channels % d == 0]


def require_divisor(layer: Norm, **values: int) -> None:
    """Raises `InputError` unless every named argument is an integer that divides the layer's `num_features`."""
    channels, found = layer.num_features, divisors(layer.num_features)
    for name, value in values.items():
        if not is_count(value) or value not in found:
            raise InputError(
                f"{type(layer).__name__}({channels}, {name}={value!r}): {name} must divide the number of channels; of "
                f"{channels} the divisors are {', '.join(map(str, found))}."
            )


def require_group(layer: Norm, process_group: object) -> None:
    """Raises `InputError` unless process_group is None or a group of ranks."""
    if process_group is not None and not (dist.is_available() and isinstance(process_group, dist.ProcessGroup)):
        raise InputError(
            f"{type(layer).__name__}(process_group={process_group!r}): process_group must be a group of ranks, from "
            f"torch.distributed.new_group; the default is None, all ranks."
        )


def require_variance(layer: Norm, x: Tensor, values: int, *, per: str, remedy: str) -> None:
    """Raises `InputError` if a variance would be taken over a single value, where it is always 0."""
    if not is_traced() and values == 1:
        raise InputError(
            f"{type(layer).__name__} got an input of shape {tuple(x.shape)}: one value per {per} has no variance, and "
            f"the output would always be 0; {remedy}."
        )
