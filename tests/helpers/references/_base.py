"""What a reference is, and what the formulas share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

State = dict[str, Tensor]
Formula = Callable[..., Tensor]


@dataclass(frozen=True)
class Oracle:
    """An implementation by others.

    Args:
        build: from a layer and its input to a module with the layer's state, in training.
        package: what has to be installed.
        layouts: where it is comparable.
        settings: the arguments of the layer it is compared with, where the defaults would not show what is special.
        same_state: its state_dict and the layer's load into each other.
        trains: it is comparable in training too, not in evaluation only.
        tolerance: how close it is; 1e-6 for one that computes in float32 inside.
        timed: its time is that of the layer; False where a detour lets it be compared.
    """

    build: Callable[[Any, Tensor], nn.Module]
    package: str = "torch"
    layouts: tuple[str, ...] = ("NC", "NCL", "NCHW")
    settings: Mapping[str, Any] = field(default_factory=dict)
    same_state: bool = False
    trains: bool = True
    tolerance: float = 1e-9
    timed: bool = True


@dataclass(frozen=True)
class Reference:
    """The formula of a layer; arguments besides the defaults that the laws should try; implementations by others."""

    formula: Formula
    settings: tuple[Mapping[str, Any], ...] = ()
    oracles: Mapping[str, Oracle] = field(default_factory=dict)


# What the formulas share.


def mean_of(values: Tensor) -> Tensor:
    return values.sum() / values.numel()


def biased_variance(values: Tensor) -> Tensor:
    return ((values - mean_of(values)) ** 2).sum() / values.numel()


def mean_square(values: Tensor) -> Tensor:
    return (values**2).sum() / values.numel()


def standardized(values: Tensor, eps: float) -> Tensor:
    return (values - mean_of(values)) / (biased_variance(values) + eps).sqrt()


def by_sample(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.stack([f(sample) for sample in x])


def by_channel(f: Callable[[Tensor, int], Tensor], x: Tensor) -> Tensor:
    return torch.stack([f(values, c) for c, values in enumerate(x.unbind(1))], dim=1)


def by_position(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    flat = x.reshape(x.shape[0], x.shape[1], -1)
    sample = [torch.stack([f(flat[n, :, p]) for p in range(flat.shape[2])], dim=1) for n in range(len(flat))]
    return torch.stack(sample).reshape(x.shape)


def learned(y: Tensor, state: State) -> Tensor:
    """A scale and a shift per channel, where the layer has them."""

    def one(values: Tensor, c: int) -> Tensor:
        values = values * state["weight"][c] if "weight" in state else values
        return values + state["bias"][c] if "bias" in state else values

    return by_channel(one, y)


def move_average(state: State, c: int, mean: Tensor, var: Tensor, momentum: float | None) -> None:
    m = 1 / int(state["num_batches_tracked"]) if momentum is None else momentum
    state["running_mean"][c] = (1 - m) * state["running_mean"][c] + m * mean.detach()
    state["running_var"][c] = (1 - m) * state["running_var"][c] + m * var.detach()


def by_running(x: Tensor, state: State, eps: float) -> Tensor:
    def one(values: Tensor, c: int) -> Tensor:
        return (values - state["running_mean"][c]) / (state["running_var"][c] + eps).sqrt()

    return learned(by_channel(one, x), state)


# By others.


class Moved(nn.Module):
    """A module that takes its channels last."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x.movedim(1, -1)).movedim(-1, 1)


class Weighted(nn.Module):
    """What a module of others makes of a weight."""

    def __init__(self, normalized: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.normalized = normalized

    def forward(self, v: Tensor) -> Tensor:
        return self.normalized(v)


def loaded(module: nn.Module, layer: nn.Module) -> nn.Module:
    module = module.to(next(layer.parameters()).dtype)
    module.load_state_dict(layer.state_dict(), strict=True)
    return module


BARE = {"affine": False}
NO_BIAS = {"bias": False}
