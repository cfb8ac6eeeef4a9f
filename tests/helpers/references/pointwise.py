"""No statistics."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from references._base import Moved, Oracle, Reference, State, by_channel, learned


def no_norm(x: Tensor, state: State, training: bool, **unused: object) -> Tensor:
    return x


def dynamic_tanh(x: Tensor, state: State, training: bool, **unused: object) -> Tensor:
    return learned(2 / (1 + (-2 * state["alpha"] * x).exp()) - 1, state)


def dynamic_erf(x: Tensor, state: State, training: bool, **unused: object) -> Tensor:
    return learned(torch.special.erf(state["alpha"] * x + state["shift"]), state)


def dynamic_isru(x: Tensor, state: State, training: bool, **unused: object) -> Tensor:
    return learned(x / (state["beta"] + x**2).sqrt(), state)


def layer_scale(x: Tensor, state: State, training: bool, **unused: object) -> Tensor:
    return by_channel(lambda values, c: state["weight"][c] * values, x)


def renamed(module: nn.Module, layer: nn.Module, names: Mapping[str, str]) -> nn.Module:
    """With the layer's parameters, under its own names."""
    module = module.double()
    own = layer.state_dict()
    module.load_state_dict({n: own[names.get(n, n)].reshape(v.shape) for n, v in module.state_dict().items()})
    return module


def x_transformers_dynamic_tanh(layer: Any, x: Tensor) -> nn.Module:
    from x_transformers.x_transformers import DynamicTanh

    names = {"pre_tanh_scale": "alpha", "gamma": "weight", "beta": "bias"}
    return Moved(renamed(DynamicTanh(layer.num_features), layer, names))


def x_transformers_dynamic_erf(layer: Any, x: Tensor) -> nn.Module:
    from x_transformers.x_transformers import Derf

    return Moved(renamed(Derf(layer.num_features), layer, {"s": "shift", "gamma": "weight", "beta": "bias"}))


def timm_layer_scale(layer: Any, x: Tensor) -> nn.Module:
    from timm.layers import LayerScale

    return Moved(renamed(LayerScale(layer.num_features), layer, {"gamma": "weight"}))


def timm_layer_scale_2d(layer: Any, x: Tensor) -> nn.Module:
    from timm.layers import LayerScale2d

    return renamed(LayerScale2d(layer.num_features), layer, {"gamma": "weight"})


REFERENCES: dict[str, Reference] = {
    "NoNorm": Reference(no_norm, (), {"torch": Oracle(lambda layer, x: nn.Identity(), same_state=True)}),
    "DynamicTanh": Reference(
        dynamic_tanh,
        ({"alpha": 1.5},),
        {"x_transformers": Oracle(x_transformers_dynamic_tanh, package="x_transformers")},
    ),
    "DynamicErf": Reference(
        dynamic_erf,
        ({"alpha": 1.5},),
        {"x_transformers": Oracle(x_transformers_dynamic_erf, package="x_transformers")},
    ),
    "DynamicISRU": Reference(dynamic_isru, ({"beta": 0.5}, {"beta": 100.0})),
    "LayerScale": Reference(
        layer_scale,
        ({"init_values": 1e-5},),
        {
            "timm": Oracle(timm_layer_scale, package="timm", timed=False),
            "timm, 2d": Oracle(timm_layer_scale_2d, package="timm", layouts=("NCHW",)),
        },
    ),
}
