"""Statistics within one sample."""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from references._base import (
    BARE,
    NO_BIAS,
    Moved,
    Oracle,
    Reference,
    State,
    biased_variance,
    by_channel,
    by_position,
    by_running,
    by_sample,
    learned,
    loaded,
    mean_of,
    mean_square,
    move_average,
    standardized,
)


def layer_norm(x: Tensor, state: State, training: bool, *, eps: float, **unused: object) -> Tensor:
    return learned(by_sample(lambda sample: standardized(sample, eps), x), state)


def channel_layer_norm(x: Tensor, state: State, training: bool, *, eps: float, **unused: object) -> Tensor:
    return learned(by_position(lambda channels: standardized(channels, eps), x), state)


def rms_norm(x: Tensor, state: State, training: bool, *, eps: float | None, **unused: object) -> Tensor:
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return learned(by_position(lambda channels: channels / (mean_square(channels) + eps).sqrt(), x), state)


def instance_norm(
    x: Tensor,
    state: State,
    training: bool,
    *,
    eps: float,
    momentum: float | None,
    track_running_stats: bool,
    **unused: object,
) -> Tensor:
    if track_running_stats and not training:
        return by_running(x, state, eps)
    if track_running_stats:
        state["num_batches_tracked"] += 1
        n = x[0, 0].numel()
        for c, planes in enumerate(x.unbind(1)):
            var = torch.stack([biased_variance(plane) for plane in planes]) * n / (n - 1)
            move_average(state, c, mean_of(planes), mean_of(var), momentum)
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


def local_response_norm(
    x: Tensor, state: State, training: bool, *, size: int, alpha: float, beta: float, k: float
) -> Tensor:
    def one(channels: Tensor) -> Tensor:
        found = []
        for c in range(len(channels)):
            window = channels[max(c - size // 2, 0) : c + (size - 1) // 2 + 1]
            found.append(channels[c] / (k + alpha * (window**2).sum() / size) ** beta)
        return torch.stack(found)

    return by_position(one, x)


def scale_norm(x: Tensor, state: State, training: bool, **unused: object) -> Tensor:
    return by_position(lambda channels: state["weight"] * channels / (channels**2).sum().sqrt().clamp(min=1e-5), x)


def lp_norm(x: Tensor, state: State, training: bool, *, p: float) -> Tensor:
    def one(channels: Tensor) -> Tensor:
        length = channels.abs().max() if math.isinf(p) else (channels.abs() ** p).sum() ** (1 / p)
        return channels / length

    return by_position(one, x)


def positional_norm(x: Tensor, state: State, training: bool, *, eps: float) -> Tensor:
    return by_position(lambda channels: standardized(channels, eps), x)


def global_response_norm(x: Tensor, state: State, training: bool, *, eps: float) -> Tensor:
    def one(sample: Tensor) -> Tensor:
        lengths = torch.stack([(plane**2).sum().sqrt() for plane in sample])
        response = torch.stack([plane * g for plane, g in zip(sample, lengths / (mean_of(lengths) + eps), strict=True)])
        return learned(response[None], state)[0] + sample

    return by_sample(one, x)


def group_size(channels: int, num_groups: int | None) -> int:
    fitting = [g for g in range(1, 33) if channels % g == 0 and channels / g >= 4]
    return channels // (num_groups or max(fitting, default=1))


def evo_norm_s0(
    x: Tensor, state: State, training: bool, *, num_groups: int | None, eps: float, **unused: object
) -> Tensor:
    size = group_size(x.shape[1], num_groups)
    v = state["v"].view(-1, *[1] * (x.dim() - 2))

    def one(sample: Tensor) -> Tensor:
        parts = [(c, biased_variance(sample[c : c + size])) for c in range(0, len(sample), size)]
        return torch.cat(
            [sample[c : c + size] / (1 + (-v * sample)[c : c + size].exp()) / (var + eps).sqrt() for c, var in parts]
        )

    return learned(by_sample(one, x), state)


def evo_norm_b0(
    x: Tensor, state: State, training: bool, *, eps: float, momentum: float | None, **unused: object
) -> Tensor:
    tracks = "running_var" in state
    if training and tracks:
        state["num_batches_tracked"] += 1
        m = 1 / int(state["num_batches_tracked"]) if momentum is None else momentum

    def one(values: Tensor, c: int) -> Tensor:
        var, n = biased_variance(values), values.numel()
        if tracks and not training:
            var = state["running_var"][c]
        elif tracks:
            state["running_var"][c] = (1 - m) * state["running_var"][c] + m * var.detach() * n / (n - 1)
        planes = []
        for plane in values:
            line = state["v"][c] * plane + (biased_variance(plane) + eps).sqrt()
            planes.append(plane / torch.where(line > (var + eps).sqrt(), line, (var + eps).sqrt()))
        return torch.stack(planes)

    return learned(by_channel(one, x), state)


def divisive_norm(x: Tensor, state: State, training: bool, *, eps: float) -> Tensor:
    """The convolution with a kernel of one position that others write."""
    beta, gamma = state["beta_root"] ** 2 + eps, state["gamma_root"] ** 2
    pixels = x.reshape(*x.shape[:2], -1, 1)
    return (pixels / F.conv2d(pixels**2, gamma[:, :, None, None], beta).sqrt()).reshape(x.shape)


def ada_norm(x: Tensor, state: State, training: bool, *, base_gain: float, slope: float, eps: float) -> Tensor:
    def one(channels: Tensor) -> Tensor:
        z = standardized(channels, eps)
        return base_gain * (1 - slope * z).detach() * z

    return by_position(one, x)


def see_d_norm(x: Tensor, state: State, training: bool, *, num_heads: int | None, eps: float) -> Tensor:
    num_heads = num_heads or next(heads for heads in range(16, 0, -1) if x.shape[1] % heads == 0)

    def one(channels: Tensor) -> Tensor:
        gates = []
        for slice_, beta in zip(channels.chunk(num_heads), state["beta"].chunk(num_heads), strict=True):
            gates += [torch.tanh(slice_ @ beta)] * len(slice_)
        gain = torch.stack(gates) * state["alpha"] + state["weight"]
        return gain * channels / (mean_square(channels) + eps).sqrt()

    return by_position(one, x)


def local_context_norm(
    x: Tensor, state: State, training: bool, *, window_size: int, num_groups: int | None, eps: float, **unused: object
) -> Tensor:
    reach, size = window_size // 2, group_size(x.shape[1], num_groups)

    def one(sample: Tensor) -> Tensor:
        y = torch.zeros_like(sample)
        for c in range(0, len(sample), size):
            for at in itertools.product(*map(range, sample.shape[1:])):
                window = tuple(slice(max(p - reach, 0), p + reach + 1) for p in at)
                values = sample[(slice(c, c + size), *window)]
                here = (slice(c, c + size), *at)
                y[here] = (sample[here] - mean_of(values)) / (biased_variance(values) + eps).sqrt()
        return y

    return learned(by_sample(one, x), state)


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
    tracks = layer.track_running_stats
    return loaded(build(layer.num_features, eps=layer.eps, affine=True, track_running_stats=tracks), layer)


def timm_filter_response_norm(layer: Any, x: Tensor) -> nn.Module:
    from timm.layers import FilterResponseNormTlu2d

    return loaded(FilterResponseNormTlu2d(layer.num_features, eps=layer.eps), layer)


class Called(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def torch_local_response_norm(layer: Any, x: Tensor) -> nn.Module:
    return nn.LocalResponseNorm(layer.size, alpha=layer.alpha, beta=layer.beta, k=layer.k)


def torchnorm_scale_norm(layer: Any, x: Tensor) -> nn.Module:
    from torchnorm import ScaleNorm

    module = ScaleNorm(layer.num_features)
    module.load_state_dict({"scale": layer.weight})
    return Moved(module)


def x_transformers_scale_norm(layer: Any, x: Tensor) -> nn.Module:
    from x_transformers.x_transformers import ScaleNorm

    module = ScaleNorm(layer.num_features).double()
    module.load_state_dict({"g": layer.weight.detach().reshape(1) / layer.num_features**0.5})
    return Moved(module)


def torch_normalize(layer: Any, x: Tensor) -> nn.Module:
    return Called(partial(F.normalize, p=layer.p, dim=1))


def torch_plain_layer_norm(layer: Any, x: Tensor) -> nn.Module:
    return Moved(nn.LayerNorm(layer.num_features, eps=layer.eps, elementwise_affine=False))


def timm_global_response_norm(layer: Any, x: Tensor) -> nn.Module:
    from timm.layers.grn import GlobalResponseNorm

    return loaded(GlobalResponseNorm(layer.num_features, eps=layer.eps, channels_last=False), layer)


def timm_evo_norm_s0(layer: Any, x: Tensor) -> nn.Module:
    from timm.layers import EvoNorm2dS0

    return loaded(EvoNorm2dS0(layer.num_features, groups=layer.num_groups, eps=layer.eps), layer)


def timm_evo_norm_b0(layer: Any, x: Tensor) -> nn.Module:
    from timm.layers import EvoNorm2dB0

    module = EvoNorm2dB0(layer.num_features, momentum=layer.momentum, eps=layer.eps).to(layer.weight.dtype)
    module.load_state_dict({name: v for name, v in layer.state_dict().items() if name != "num_batches_tracked"})
    return module


REFERENCES: dict[str, Reference] = {
    "LayerNorm": Reference(
        layer_norm,
        (BARE, NO_BIAS),
        {
            "torch": Oracle(torch_layer_norm, same_state=True, layouts=("NC",)),
            "torch-group": Oracle(torch_one_group, same_state=True),
        },
    ),
    "ChannelLayerNorm": Reference(
        channel_layer_norm,
        (BARE, NO_BIAS),
        {
            "torch": Oracle(torch_channel_layer_norm),
            "torchvision": Oracle(
                torchvision_channel_layer_norm, package="torchvision", layouts=("NCHW",), same_state=True
            ),
            "timm": Oracle(timm_channel_layer_norm, package="timm", layouts=("NCHW",), same_state=True),
        },
    ),
    "RMSNorm": Reference(rms_norm, (BARE, {"eps": None}, {"eps": 0.1}), {"torch": Oracle(torch_rms_norm)}),
    "InstanceNorm": Reference(
        instance_norm,
        (BARE, NO_BIAS, {"track_running_stats": True}, {"track_running_stats": True, "momentum": None}),
        {
            "torch": Oracle(torch_instance_norm, layouts=("NCL", "NCHW"), same_state=True),
            "torch-tracking": Oracle(
                torch_instance_norm, layouts=("NCL", "NCHW"), settings={"track_running_stats": True}
            ),
        },
    ),
    "GroupNorm": Reference(
        group_norm,
        (BARE, NO_BIAS, {"num_groups": 4}, {"num_groups": 1}),
        {"torch": Oracle(torch_group_norm, same_state=True)},
    ),
    "FilterResponseNorm": Reference(
        filter_response_norm,
        ({"eps": 0.1},),
        {"timm": Oracle(timm_filter_response_norm, package="timm", layouts=("NCHW",), same_state=True, tolerance=1e-6)},
    ),
    "LocalResponseNorm": Reference(
        local_response_norm,
        ({"size": 4, "alpha": 0.5}, {"size": 1, "alpha": 1.0}, {"size": 20, "beta": 0.5, "k": 0.1}),
        {"torch": Oracle(torch_local_response_norm, layouts=("NCL", "NCHW"))},
    ),
    "ScaleNorm": Reference(
        scale_norm,
        (),
        {
            "torchnorm": Oracle(torchnorm_scale_norm, package="torchnorm", tolerance=1e-5),
            "x_transformers": Oracle(x_transformers_scale_norm, package="x_transformers"),
        },
    ),
    "LpNorm": Reference(
        lp_norm, ({"p": 1.0}, {"p": 3.0}, {"p": math.inf}), {"torch": Oracle(torch_normalize, same_state=True)}
    ),
    "PositionalNorm": Reference(positional_norm, ({"eps": 0.1},), {"torch": Oracle(torch_plain_layer_norm)}),
    "GlobalResponseNorm": Reference(
        global_response_norm,
        ({"eps": 0.1},),
        {"timm": Oracle(timm_global_response_norm, package="timm", layouts=("NCHW",), same_state=True)},
    ),
    "EvoNormS0": Reference(
        evo_norm_s0,
        (BARE, {"num_groups": 4}, {"num_groups": 1, "eps": 0.1}),
        {"timm": Oracle(timm_evo_norm_s0, package="timm", layouts=("NCHW",), same_state=True, tolerance=1e-6)},
    ),
    "EvoNormB0": Reference(
        evo_norm_b0,
        (BARE, {"track_running_stats": False}, {"momentum": None}, {"momentum": 0.7, "eps": 0.1}),
        {"timm": Oracle(timm_evo_norm_b0, package="timm", layouts=("NCHW",), tolerance=1e-6)},
    ),
    "DivisiveNorm": Reference(divisive_norm, ({"eps": 0.1},)),
    "AdaNorm": Reference(ada_norm, ({"base_gain": 2.0}, {"slope": 0.3, "eps": 0.1})),
    "SeeDNorm": Reference(see_d_norm, ({"num_heads": 1}, {"num_heads": 4}, {"eps": 0.1})),
    "LocalContextNorm": Reference(
        local_context_norm,
        (BARE, {"window_size": 3}, {"window_size": 3, "num_groups": 4}, {"window_size": 1, "eps": 0.1}),
    ),
}
