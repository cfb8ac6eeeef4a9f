"""Layers that act on a weight (C, I, *), here called v."""

from typing import Any

import torch
from torch import Tensor, nn

from references._base import Oracle, Reference, State, Weighted, by_sample, standardized


def weight_norm(v: Tensor, state: State, training: bool, **unused: object) -> Tensor:
    return torch.stack([state["weight"][c] * v[c] / (v[c] ** 2).sum().sqrt() for c in range(len(v))])


def weight_standardization(v: Tensor, state: State, training: bool, *, eps: float, **unused: object) -> Tensor:
    return by_sample(lambda row: standardized(row, eps), v)


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


REFERENCES: dict[str, Reference] = {
    "WeightNorm": Reference(weight_norm, (), {"torch": Oracle(torch_weight_norm)}),
    "WeightStandardization": Reference(
        weight_standardization,
        ({"eps": 0.1},),
        {"timm": Oracle(timm_weight_standardization, package="timm", layouts=("NCHW",), timed=False)},
    ),
}
