"""The arguments of layers: those that all layers take, and a layer's own."""

import inspect
from contextlib import nullcontext
from inspect import Parameter, Signature
from typing import Any

import torch

from normzoo.errors import InputError


class NormType(type):
    """Gives every layer the arguments that all layers take: `device`, `dtype`, and `channel_dim` (on a weight `dim`).

    A layer's `__init__` does not name them, so neither does the command line. `device` and `dtype` are positional where
    torch has them, after the layer's last positional argument.
    """

    facts: Any

    @property
    def common(cls) -> list[Parameter]:
        """The arguments that `__init__` does not take itself."""
        own = inspect.signature(cls.__init__).parameters  # type: ignore[misc] # of this class, not of an instance
        by_name = any(parameter.kind is parameter.VAR_POSITIONAL for parameter in own.values())
        kind = Parameter.KEYWORD_ONLY if by_name else Parameter.POSITIONAL_OR_KEYWORD
        axis = ("channel_dim", 1) if cls.facts.acts_on == "activation" else ("dim", 0)
        every = [Parameter(name, kind, default=None) for name in ("device", "dtype")]
        every.append(Parameter(axis[0], Parameter.KEYWORD_ONLY, default=axis[1]))
        return [parameter for parameter in every if parameter.name not in own]

    @property
    def __signature__(cls) -> Signature:
        own = list(inspect.signature(cls.__init__).parameters.values())[1:]  # type: ignore[misc]
        return Signature(sorted([*own, *cls.common], key=lambda parameter: parameter.kind))

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        try:
            bound = cls.__signature__.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{cls.__name__}(): {error}") from None
        given = {p.name: bound.arguments.pop(p.name) for p in cls.common if p.name in bound.arguments}
        device, dtype = given.pop("device", None), given.pop("dtype", None)
        with nullcontext() if device is None else torch.device(device):
            layer = super().__call__(*bound.args, **bound.kwargs)
        layer.built_with = cls, bound.args, bound.kwargs
        for name, axis in given.items():  # channel_dim or dim
            setattr(layer, name, checked_axis(layer, name, axis))
        return layer if dtype is None else layer.to(dtype)


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
    parameters = list(inspect.signature(layer.__init__).parameters.values())[2:]  # type: ignore[misc] # of this class
    return {p.name: p.default for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
