"""Layers that act on a weight (C, I, *), here called v."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from references._base import Oracle, Reference, State, Weighted, by_sample, mean_of, standardized


def weight_norm(v: Tensor, state: State, training: bool, **unused: object) -> Tensor:
    return torch.stack([state["weight"][c] * v[c] / (v[c] ** 2).sum().sqrt() for c in range(len(v))])


def weight_standardization(v: Tensor, state: State, training: bool, *, eps: float, **unused: object) -> Tensor:
    return by_sample(lambda row: standardized(row, eps), v)


def centered_weight_norm(v: Tensor, state: State, training: bool, **unused: object) -> Tensor:
    centred = by_sample(lambda row: row - mean_of(row), v)
    return weight_norm(centred, state, training)


def spectral_norm(v: Tensor, state: State, training: bool, *, n_power_iterations: int, **unused: object) -> Tensor:
    matrix = v.reshape(len(v), -1)
    constant = matrix.detach()
    for _ in range(n_power_iterations if training else 0):
        right = constant.T @ state["u"]
        left = constant @ (right / right.norm())
        state["u"] = left / left.norm()
    right = constant.T @ state["u"]
    sigma = state["u"] @ matrix @ (right / right.norm())
    return v / sigma


def scaled_weight_standardization(
    v: Tensor, state: State, training: bool, *, gamma: float, eps: float, **unused: object
) -> Tensor:
    rows = []
    for c, row in enumerate(v):
        centred = row - mean_of(row)
        fan_in_var = row.numel() * mean_of(centred**2)
        rows.append(state["weight"][c] * gamma * centred / (fan_in_var + eps).sqrt())
    return torch.stack(rows)


def cosine_norm(v: Tensor, state: State, training: bool, **unused: object) -> Tensor:
    return by_sample(lambda row: row / (row**2).sum().sqrt(), v)


def torch_weight_norm(layer: Any, x: Tensor) -> nn.Module:
    host = nn.utils.parametrizations.weight_norm(nn.Linear(1, 1), dim=0)
    lengths = layer.weight.detach().view(-1, *[1] * (x.dim() - 1))
    return Weighted(lambda v: host.parametrizations.weight[0](lengths, v))


def torch_centered_weight_norm(layer: Any, x: Tensor) -> nn.Module:
    lengths = layer.weight.detach()[:, None]

    def normalized(v: Tensor) -> Tensor:
        rows = v.flatten(1)
        return (lengths * F.layer_norm(rows, rows.shape[1:], eps=0) / rows.shape[1] ** 0.5).view(v.shape)

    return Weighted(normalized)


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


def timm_scaled_weight_standardization(layer: Any, x: Tensor) -> nn.Module:
    from timm.layers import ScaledStdConv2d

    def normalized(v: Tensor) -> Tensor:
        eps = layer.eps / v[0].numel()  # timm adds it to the variance
        conv = ScaledStdConv2d(
            v.shape[1], v.shape[0], tuple(v.shape[2:]), padding=0, bias=False, gamma=layer.gamma, eps=eps
        ).to(v.dtype)
        conv.gain.data.copy_(layer.weight.detach().view(conv.gain.shape))
        del conv.weight
        conv.weight = v
        entries = v[0].numel()
        impulses = torch.eye(entries, dtype=v.dtype).view(entries, *v.shape[1:])
        return conv(impulses).view(entries, -1).T.view(v.shape)

    return Weighted(normalized)


class TorchSpectralNorm(nn.Module):
    """torch's parametrization, which keeps v from one weight to the next, with the v of the weight at hand."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.u, self.n_power_iterations = layer.u.clone(), layer.n_power_iterations

    def forward(self, w: Tensor) -> Tensor:
        host = nn.Linear(w[0].numel(), len(w), dtype=w.dtype)
        nn.utils.parametrizations.spectral_norm(host, n_power_iterations=self.n_power_iterations)
        own = host.parametrizations.weight[0].train(self.training)
        own._u, own._v = self.u, F.normalize(w.detach().flatten(1).T @ self.u, dim=0)
        y = own(w.flatten(1)).view(w.shape)
        self.u = own._u.clone()
        return y


REFERENCES: dict[str, Reference] = {
    "WeightNorm": Reference(weight_norm, (), {"torch": Oracle(torch_weight_norm)}),
    "WeightStandardization": Reference(
        weight_standardization,
        ({"eps": 0.1},),
        {"timm": Oracle(timm_weight_standardization, package="timm", layouts=("NCHW",), timed=False)},
    ),
    "CenteredWeightNorm": Reference(
        centered_weight_norm, (), {"torch": Oracle(torch_centered_weight_norm, timed=False)}
    ),
    "SpectralNorm": Reference(
        spectral_norm,
        ({"n_power_iterations": 3},),
        {"torch": Oracle(lambda layer, x: TorchSpectralNorm(layer), timed=False)},
    ),
    "ScaledWeightStandardization": Reference(
        scaled_weight_standardization,
        ({"eps": 0.1}, {"gamma": 1.0}),
        {"timm": Oracle(timm_scaled_weight_standardization, package="timm", layouts=("NCHW",), timed=False)},
    ),
    "CosineNorm": Reference(
        cosine_norm, (), {"torch": Oracle(lambda layer, x: Weighted(lambda v: F.normalize(v.flatten(1)).view(v.shape)))}
    ),
}
