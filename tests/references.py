"""What every layer should compute: slow, obvious formulas written from the papers, and implementations by others.

A formula takes x (N, C, *), or a weight (C, I, *); the state of the layer, parameters and buffers by name, whose
buffers it moves itself; whether the layer trains; and the layer's arguments. It walks over the sets of values that
share their statistics, one by one, in the precision of x, and gradients flow through it as the paper lets them.

A new layer needs one entry in `REFERENCES`, under the name of its class; a new argument, one in `OUT_OF_RANGE`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
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
        same_state: its state_dict and the layer's load into each other.
        trains: it is comparable in training too, not in evaluation only.
        tolerance: how close it is; 1e-6 for one that computes in float32 inside.
    """

    build: Callable[[Any, Tensor], nn.Module]
    package: str = "torch"
    layouts: tuple[str, ...] = ("NC", "NCL", "NCHW")
    same_state: bool = False
    trains: bool = True
    tolerance: float = 1e-9


@dataclass(frozen=True)
class Reference:
    """The formula of a layer; arguments besides the defaults that the laws should try; implementations by others."""

    formula: Formula
    settings: tuple[Mapping[str, Any], ...] = ()
    oracles: Mapping[str, Oracle] = field(default_factory=dict)


def reference(name: str) -> Reference:
    """The reference of the layer class with this name."""
    if name not in REFERENCES:
        pytest.fail(
            f"{name} has no reference: write its formula from the paper, slow and obvious, in tests/references.py, and "
            f"add it to REFERENCES there under {name!r}. Nothing else in the tests needs an edit."
        )
    return REFERENCES[name]


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


# batch


def move_average(state: State, c: int, mean: Tensor, var: Tensor, momentum: float | None) -> None:
    m = 1 / int(state["num_batches_tracked"]) if momentum is None else momentum
    state["running_mean"][c] = (1 - m) * state["running_mean"][c] + m * mean.detach()
    state["running_var"][c] = (1 - m) * state["running_var"][c] + m * var.detach()


def batch_norm(
    x: Tensor, state: State, training: bool, *, eps: float, momentum: float | None, **unused: object
) -> Tensor:
    tracks = "running_mean" in state
    if training and tracks:
        state["num_batches_tracked"] += 1

    def one(values: Tensor, c: int) -> Tensor:
        if tracks and not training:
            return (values - state["running_mean"][c]) / (state["running_var"][c] + eps).sqrt()
        n, mean, var = values.numel(), mean_of(values), biased_variance(values)
        if tracks:
            move_average(state, c, mean, var * n / (n - 1), momentum)
        return (values - mean) / (var + eps).sqrt()

    return learned(by_channel(one, x), state)


def ghost_batch_norm(x: Tensor, state: State, training: bool, *, ghost_size: int, **settings: Any) -> Tensor:
    if not training and "running_mean" in state:
        return batch_norm(x, state, training, **settings)
    parts = math.ceil(len(x) / ghost_size)
    size = math.ceil(len(x) / parts)
    return torch.cat([batch_norm(x[i : i + size], state, training, **settings) for i in range(0, len(x), size)])


def batch_renorm(
    x: Tensor,
    state: State,
    training: bool,
    *,
    r_max: float,
    d_max: float,
    warmup: int,
    r_steps: int,
    d_steps: int,
    eps: float,
    momentum: float | None,
    **unused: object,
) -> Tensor:
    step = int(state["num_batches_tracked"])

    def grown(start: float, end: float, at: int) -> float:
        return start + (end - start) * min(max((step - warmup) / max(at - warmup, 1), 0.0), 1.0)

    r_bound, d_bound = grown(1, r_max, r_steps), grown(0, d_max, d_steps)
    if training:
        state["num_batches_tracked"] += 1

    def one(values: Tensor, c: int) -> Tensor:
        running_mean, running_std = state["running_mean"][c].clone(), (state["running_var"][c] + eps).sqrt()
        if not training:
            return (values - running_mean) / running_std
        mean, var = mean_of(values), biased_variance(values)
        std = (var + eps).sqrt()
        r = (std / running_std).clamp(1 / r_bound, r_bound).detach()
        d = ((mean - running_mean) / running_std).clamp(-d_bound, d_bound).detach()
        move_average(state, c, mean, var, momentum)
        return (values - mean) / std * r + d

    return learned(by_channel(one, x), state)


# sample


def layer_norm(x: Tensor, state: State, training: bool, *, eps: float, **unused: object) -> Tensor:
    return learned(by_sample(lambda sample: standardized(sample, eps), x), state)


def channel_layer_norm(x: Tensor, state: State, training: bool, *, eps: float, **unused: object) -> Tensor:
    return learned(by_position(lambda channels: standardized(channels, eps), x), state)


def rms_norm(x: Tensor, state: State, training: bool, *, eps: float, **unused: object) -> Tensor:
    return learned(by_position(lambda channels: channels / (mean_square(channels) + eps).sqrt(), x), state)


def instance_norm(x: Tensor, state: State, training: bool, *, eps: float, **unused: object) -> Tensor:
    return learned(by_sample(lambda sample: by_sample(lambda plane: standardized(plane, eps), sample), x), state)


def group_norm(
    x: Tensor, state: State, training: bool, *, num_groups: int | None, eps: float, **unused: object
) -> Tensor:
    channels = x.shape[1]
    # The most groups up to 32 with at least 4 channels in each.
    fitting = [g for g in range(1, 33) if channels % g == 0 and channels / g >= 4]
    size = channels // (num_groups or max(fitting, default=1))

    def grouped(sample: Tensor) -> Tensor:
        return torch.cat([standardized(sample[c : c + size], eps) for c in range(0, channels, size)])

    return learned(by_sample(grouped, x), state)


def filter_response_norm(x: Tensor, state: State, training: bool, *, eps: float, **unused: object) -> Tensor:
    y = by_sample(lambda sample: by_sample(lambda plane: plane / (mean_square(plane) + eps).sqrt(), sample), x)
    y = learned(y, state)
    return by_channel(lambda values, c: torch.where(values > state["tau"][c], values, state["tau"][c]), y)


# pointwise


def no_norm(x: Tensor, state: State, training: bool, **unused: object) -> Tensor:
    return x


def dynamic_tanh(x: Tensor, state: State, training: bool, **unused: object) -> Tensor:
    return learned(2 / (1 + (-2 * state["alpha"] * x).exp()) - 1, state)


# weight


def weight_norm(v: Tensor, state: State, training: bool, **unused: object) -> Tensor:
    return torch.stack([state["weight"][c] * v[c] / (v[c] ** 2).sum().sqrt() for c in range(len(v))])


def weight_standardization(v: Tensor, state: State, training: bool, *, eps: float, **unused: object) -> Tensor:
    return by_sample(lambda row: standardized(row, eps), v)


# By others. Each builder hands over a module that holds the layer's state.


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


def torch_batch_norm(layer: Any, x: Tensor) -> nn.Module:
    build = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[x.dim()]
    return loaded(build(layer.num_features, eps=layer.eps, momentum=layer.momentum), layer)


class DeepBatchNorm(nn.BatchNorm3d):
    """nn.BatchNorm3d on images, to which it gives the depth that they lack."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.unsqueeze(2)).squeeze(2)


def torch_batch_norm_3d(layer: Any, x: Tensor) -> nn.Module:
    return loaded(DeepBatchNorm(layer.num_features, eps=layer.eps, momentum=layer.momentum), layer)


def torchvision_frozen_batch_norm(layer: Any, x: Tensor) -> nn.Module:
    from torchvision.ops import FrozenBatchNorm2d

    module = FrozenBatchNorm2d(layer.num_features, eps=layer.eps).to(layer.weight.dtype)
    module.load_state_dict({name: v for name, v in layer.state_dict().items() if name != "num_batches_tracked"})
    return module


def tabnet_ghost_batch_norm(layer: Any, x: Tensor) -> nn.Module:
    from pytorch_tabnet.tab_network import GBN

    module = GBN(layer.num_features, virtual_batch_size=layer.ghost_size, momentum=layer.momentum)
    module.bn.eps = layer.eps
    loaded(module.bn, layer)
    return module


def torch_layer_norm(layer: Any, x: Tensor) -> nn.Module:
    return loaded(nn.LayerNorm(layer.num_features, eps=layer.eps), layer)


def torch_channel_layer_norm(layer: Any, x: Tensor) -> nn.Module:
    return Moved(torch_layer_norm(layer, x))


def torchvision_channel_layer_norm(layer: Any, x: Tensor) -> nn.Module:
    from torchvision.models.convnext import LayerNorm2d

    return loaded(LayerNorm2d(layer.num_features, eps=layer.eps), layer)


def timm_channel_layer_norm(layer: Any, x: Tensor) -> nn.Module:
    from timm.layers import LayerNorm2d

    return loaded(LayerNorm2d(layer.num_features, eps=layer.eps), layer)


def torch_one_group(layer: Any, x: Tensor) -> nn.Module:
    return loaded(nn.GroupNorm(1, layer.num_features, eps=layer.eps), layer)


def torch_group_norm(layer: Any, x: Tensor) -> nn.Module:
    return loaded(nn.GroupNorm(layer.num_groups, layer.num_features, eps=layer.eps), layer)


def torch_rms_norm(layer: Any, x: Tensor) -> nn.Module:
    return Moved(loaded(nn.RMSNorm(layer.num_features, eps=layer.eps), layer))


def torch_instance_norm(layer: Any, x: Tensor) -> nn.Module:
    build = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d}[x.dim()]
    return loaded(build(layer.num_features, eps=layer.eps, affine=True), layer)


def timm_filter_response_norm(layer: Any, x: Tensor) -> nn.Module:
    from timm.layers import FilterResponseNormTlu2d

    return loaded(FilterResponseNormTlu2d(layer.num_features, eps=layer.eps), layer)


def torch_weight_norm(layer: Any, x: Tensor) -> nn.Module:
    host = nn.utils.parametrizations.weight_norm(nn.Linear(1, 1), dim=0)
    lengths = layer.weight.detach().view(-1, *[1] * (x.dim() - 1))
    return Weighted(lambda v: host.parametrizations.weight[0](lengths, v))


def timm_weight_standardization(layer: Any, x: Tensor) -> nn.Module:
    from timm.layers import StdConv2d

    def normalized(v: Tensor) -> Tensor:
        # timm standardizes inside its forward pass: to see the weight, it is applied to one impulse per entry.
        conv = StdConv2d(v.shape[1], v.shape[0], tuple(v.shape[2:]), padding=0, eps=layer.eps)
        del conv.weight
        conv.weight = v
        entries = v[0].numel()
        impulses = torch.eye(entries, dtype=v.dtype).view(entries, *v.shape[1:])
        return conv(impulses).view(entries, -1).T.view(v.shape)

    return Weighted(normalized)


BARE = {"affine": False}
UNTRACKED = {"track_running_stats": False}
BATCH_SETTINGS = (BARE, UNTRACKED, {"momentum": None}, {"momentum": 0.7, "eps": 0.1})
TORCH_BATCH_NORMS = {
    "torch": Oracle(torch_batch_norm, same_state=True),
    "torch-3d": Oracle(torch_batch_norm_3d, same_state=True, layouts=("NCHW",)),
    "torchvision": Oracle(torchvision_frozen_batch_norm, package="torchvision", layouts=("NCHW",), trains=False),
}

REFERENCES: dict[str, Reference] = {
    "BatchNorm": Reference(batch_norm, BATCH_SETTINGS, TORCH_BATCH_NORMS),
    "TorchBatchNorm": Reference(batch_norm, BATCH_SETTINGS, TORCH_BATCH_NORMS),
    "BatchRenorm": Reference(
        batch_renorm,
        (
            BARE,
            {"momentum": None},
            {"warmup": 0, "r_steps": 0, "d_steps": 0},
            {"warmup": 1, "r_steps": 5, "d_steps": 3, "r_max": 1.2, "d_max": 0.2},
        ),
    ),
    "GhostBatchNorm": Reference(
        ghost_batch_norm,
        (*BATCH_SETTINGS, {"ghost_size": 4}, {"ghost_size": 3, "momentum": None}),
        {"pytorch_tabnet": Oracle(tabnet_ghost_batch_norm, package="pytorch_tabnet", layouts=("NC",))},
    ),
    "LayerNorm": Reference(
        layer_norm,
        (BARE,),
        {
            "torch": Oracle(torch_layer_norm, same_state=True, layouts=("NC",)),
            "torch-group": Oracle(torch_one_group, same_state=True),
        },
    ),
    "ChannelLayerNorm": Reference(
        channel_layer_norm,
        (BARE,),
        {
            "torch": Oracle(torch_channel_layer_norm),
            "torchvision": Oracle(
                torchvision_channel_layer_norm, package="torchvision", layouts=("NCHW",), same_state=True
            ),
            "timm": Oracle(timm_channel_layer_norm, package="timm", layouts=("NCHW",), same_state=True),
        },
    ),
    "RMSNorm": Reference(rms_norm, (BARE,), {"torch": Oracle(torch_rms_norm)}),
    "InstanceNorm": Reference(
        instance_norm, (BARE,), {"torch": Oracle(torch_instance_norm, layouts=("NCL", "NCHW"), same_state=True)}
    ),
    "GroupNorm": Reference(
        group_norm,
        (BARE, {"num_groups": 4}, {"num_groups": 1}),
        {"torch": Oracle(torch_group_norm, same_state=True)},
    ),
    "FilterResponseNorm": Reference(
        filter_response_norm,
        ({"eps": 0.1},),
        {"timm": Oracle(timm_filter_response_norm, package="timm", layouts=("NCHW",), same_state=True, tolerance=1e-6)},
    ),
    "NoNorm": Reference(no_norm, (), {"torch": Oracle(lambda layer, x: nn.Identity(), same_state=True)}),
    "DynamicTanh": Reference(dynamic_tanh, ({"alpha": 1.5},)),
    "WeightNorm": Reference(weight_norm, (), {"torch": Oracle(torch_weight_norm)}),
    "WeightStandardization": Reference(
        weight_standardization,
        ({"eps": 0.1},),
        {"timm": Oracle(timm_weight_standardization, package="timm", layouts=("NCHW",))},
    ),
}

# Argument -> values out of its range, for a layer of 8 channels.
OUT_OF_RANGE: dict[str, tuple[Any, ...]] = {
    "num_features": (0, -1, True, 2.5, "64"),
    "eps": (0.0, -1e-5, math.nan),
    "momentum": (-0.1, 1.5, math.nan),
    "num_groups": (0, -2, 3, 16),
    "ghost_size": (0, -4),
    "r_max": (0.5,),
    "d_max": (-1.0,),
    "warmup": (-1, 10**9),
    "r_steps": (-1, 10),
    "d_steps": (-1, 10),
    "alpha": (0.0, -1.0),
}
