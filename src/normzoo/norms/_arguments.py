"""The arguments of layers: those that all layers take, and a layer's own."""

import inspect
from abc import ABCMeta
from contextlib import nullcontext
from functools import cache
from inspect import Parameter, Signature
from typing import Any

import torch

from normzoo.errors import InputError


class NormType(ABCMeta):
    """Gives every layer the arguments that all layers take: `device`, `dtype`, and `channel_dim` (on a weight `dim`).

    A layer's `__init__` does not name them, so neither does the command line. Where a layer has positional arguments
    after `num_features`, `device` and `dtype` are the next, as in torch.
    """

    facts: Any

    @property
    def __signature__(cls) -> Signature:
        return signature_of(cls)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature_of(cls).bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{cls.__name__}(): {error}") from None
        given = {p.name: bound.arguments.pop(p.name) for p in common_of(cls) if p.name in bound.arguments}
        device, dtype = given.pop("device", None), given.pop("dtype", None)
        with nullcontext() if device is None else torch.device(device):
            layer = super().__call__(*bound.args, **bound.kwargs)
        layer.built_with = cls, bound.args, bound.kwargs
        for name, axis in given.items():  # channel_dim or dim
            setattr(layer, name, checked_axis(layer, name, axis))
        return layer if dtype is None else layer.to(dtype)


@cache
def common_of(layer: NormType) -> list[Parameter]:
    """The arguments that all layers take, but those that this layer's `__init__` takes itself."""
    own = own_of(layer)
    positional = [p for p in own if p.kind is p.POSITIONAL_OR_KEYWORD]
    variadic = any(p.kind is p.VAR_POSITIONAL for p in own)
    kind = Parameter.POSITIONAL_OR_KEYWORD if len(positional) > 1 and not variadic else Parameter.KEYWORD_ONLY
    axis, default = ("channel_dim", 1) if layer.facts.acts_on == "activation" else ("dim", 0)
    every = [Parameter(name, kind, default=None) for name in ("device", "dtype")]
    every.append(Parameter(axis, Parameter.KEYWORD_ONLY, default=default))
    return [p for p in every if p.name not in {p.name for p in own}]


@cache
def signature_of(layer: NormType) -> Signature:
    """The signature of a layer, with the arguments that all layers take."""
    return Signature(sorted([*own_of(layer), *common_of(layer)], key=lambda parameter: parameter.kind))


def own_of(layer: type) -> list[Parameter]:
    """The parameters of a layer's `__init__`."""
    return list(inspect.signature(layer.__init__).parameters.values())[1:]  # type: ignore[misc] # the class is given


def checked_axis(layer: object, name: str, axis: object) -> int:
    """Returns `channel_dim` or `dim` if it can be the axis of the channels.

    Raises:
        InputError: no integer; or 0, the axis of the samples, for `channel_dim`.
    """
    if isinstance(axis, bool) or not isinstance(axis, int) or (axis, name) == (0, "channel_dim"):
        call = f"{type(layer).__name__}({name}={axis!r})"
        if name == "dim":
            raise InputError(f"{call}: dim must be an axis of the weight; the default is 0, its output channels.")
        raise InputError(
            f"{call}: channel_dim must be an axis of the input other than 0, its samples; the default is 1, and for "
            f"channels last it is -1."
        )
    return axis


def is_count(value: object, least: int = 1) -> bool:
    """Returns whether an argument is an integer of at least `least`; a bool is not."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def keyword_defaults(layer: type) -> dict[str, Any]:
    """Returns a layer's own arguments, without `num_features` and those of every layer, and their defaults."""
    return {p.name: p.default for p in own_of(layer)[1:] if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
