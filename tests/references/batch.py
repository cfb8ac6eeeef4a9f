"""Statistics over the batch."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from references._base import BARE, Oracle, Reference, State, biased_variance, by_channel, learned, loaded, mean_of


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
}
