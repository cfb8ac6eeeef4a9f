"""Statistics within one sample."""

from typing import Any

import torch
from torch import Tensor, nn

from references._base import (
    BARE,
    Moved,
    Oracle,
    Reference,
    State,
    by_channel,
    by_position,
    by_sample,
    learned,
    loaded,
    mean_square,
    standardized,
)


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


REFERENCES: dict[str, Reference] = {
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
}
