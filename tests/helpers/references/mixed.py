"""Statistics of several kinds, mixed."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from references._base import (
    Oracle,
    Reference,
    State,
    biased_variance,
    by_channel,
    by_sample,
    learned,
    mean_of,
    mean_square,
    standardized,
)
from references.batch import BATCH_SETTINGS, batch_norm, move_average
from references.sample import group_norm


def statistics_of_batch(x: Tensor, state: State, training: bool, momentum: float | None) -> list[tuple[Tensor, Tensor]]:
    """Mean and variance of every channel: the batch's, which move the running ones; or those, in evaluation."""
    tracks = "running_mean" in state
    if tracks and not training:
        return list(zip(state["running_mean"].clone(), state["running_var"].clone(), strict=True))
    if tracks:
        state["num_batches_tracked"] += 1
    found = []
    for c, values in enumerate(x.unbind(1)):
        n, mean, var = values.numel(), mean_of(values), biased_variance(values)
        if tracks:
            move_average(state, c, mean, var * n / (n - 1), momentum)
        found.append((mean, var))
    return found


def switchable_norm(
    x: Tensor, state: State, training: bool, *, eps: float, momentum: float | None, **unused: object
) -> Tensor:
    of_batch = statistics_of_batch(x, state, training, momentum)
    kinds = slice(1, 3) if x.dim() == 2 else slice(0, 3)

    def mixture(logits: Tensor, values: list[Tensor]) -> Tensor:
        shares = [logit.exp() for logit in logits[kinds]]
        return sum(share * value for share, value in zip(shares, values[kinds], strict=True)) / sum(shares)

    def one(sample: Tensor) -> Tensor:
        # E[x^2] - E[x]^2 of the sample from the moments of its planes, as the paper writes it.
        layer_mean = mean_of(sample)
        layer_var = mean_square(sample) - layer_mean**2
        out = []
        for plane, (batch_mean, batch_var) in zip(sample, of_batch, strict=True):
            mean = mixture(state["mean_weight"], [mean_of(plane), layer_mean, batch_mean])
            var = mixture(state["var_weight"], [biased_variance(plane), layer_var, batch_var])
            out.append((plane - mean) / (var + eps).sqrt())
        return torch.stack(out)

    return learned(by_sample(one, x), state)


def projected(gate: Tensor) -> Tensor:
    """The gate clipped to [0, 1]; descent may not leave the interval, and may return to it from outside."""

    def allowed(d: Tensor) -> Tensor:
        kept = [0 * g if (v >= 1 and g < 0) or (v <= 0 and g > 0) else g for v, g in zip(gate, d, strict=True)]
        return torch.stack(kept)

    moving = 1 * gate
    if moving.requires_grad:
        moving.register_hook(allowed)
    return torch.tensor([min(max(v, 0.0), 1.0) for v in gate.tolist()], dtype=gate.dtype) + moving - moving.detach()


def batch_instance_norm(
    x: Tensor, state: State, training: bool, *, eps: float, momentum: float | None, **unused: object
) -> Tensor:
    of_batch, gates = statistics_of_batch(x, state, training, momentum), projected(state["gate"])

    def one(values: Tensor, c: int) -> Tensor:
        mean, var = of_batch[c]
        by_instance = by_sample(lambda plane: standardized(plane, eps), values)
        return gates[c] * (values - mean) / (var + eps).sqrt() + (1 - gates[c]) * by_instance

    return learned(by_channel(one, x), state)


def instance_layer_norm(x: Tensor, state: State, training: bool, *, eps: float, **unused: object) -> Tensor:
    gates = projected(state["gate"])
    by_layer = by_sample(lambda sample: standardized(sample, eps), x)
    by_instance = by_sample(lambda sample: by_sample(lambda plane: standardized(plane, eps), sample), x)
    mixed = [gates[c] * by_instance[:, c] + (1 - gates[c]) * by_layer[:, c] for c in range(x.shape[1])]
    return learned(torch.stack(mixed, dim=1), state)


def instance_batch_norm(x: Tensor, state: State, training: bool, *, eps: float, **settings: Any) -> Tensor:
    first = math.floor(x.shape[1] / 2)
    by_instance = by_sample(lambda sample: by_sample(lambda plane: standardized(plane, eps), sample), x[:, :first])
    running = ("running_mean", "running_var", "num_batches_tracked")
    of_batch = {name: state[name] for name in running if name in state}
    by_batch = batch_norm(x[:, first:], of_batch, training, eps=eps, **settings)
    return learned(torch.cat([by_instance, by_batch], dim=1), state)


def batch_channel_norm(
    x: Tensor, state: State, training: bool, *, num_groups: int | None, eps: float, affine: bool, **settings: Any
) -> Tensor:
    z = batch_norm(x, state, training, eps=eps, **settings)
    y = group_norm(z, {}, training, num_groups=num_groups, eps=eps)
    if not affine:
        return y
    size = x.shape[1] // len(state["group_weight"])
    return by_channel(lambda values, c: values * state["group_weight"][c // size] + state["group_bias"][c // size], y)


def pytorchcv_instance_batch_norm(layer: Any, x: Tensor) -> nn.Module:
    from pytorchcv.models.common.norm import IBN

    module = IBN(layer.num_features).to(layer.weight.dtype)
    first = layer.num_features // 2
    state = layer.state_dict()
    module.inst_norm.load_state_dict({name: state[name][:first] for name in ("weight", "bias")})
    affine = {name: state[name][first:] for name in ("weight", "bias")}
    module.batch_norm.load_state_dict({**state, **affine}, strict=True)
    return module


def torch_batch_channel_norm(layer: Any, x: Tensor) -> nn.Module:
    batch = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[x.dim()](layer.num_features, eps=layer.eps)
    batch.to(layer.weight.dtype).load_state_dict({name: layer.state_dict()[name] for name in batch.state_dict()})
    groups = nn.GroupNorm(layer.num_groups, layer.num_features, eps=layer.eps).to(layer.weight.dtype)
    each = layer.num_features // layer.num_groups
    affine = {"weight": layer.group_weight, "bias": layer.group_bias}
    groups.load_state_dict({name: values.repeat_interleave(each) for name, values in affine.items()})
    return nn.Sequential(batch, groups)


REFERENCES: dict[str, Reference] = {
    "SwitchableNorm": Reference(switchable_norm, BATCH_SETTINGS),
    "BatchInstanceNorm": Reference(batch_instance_norm, BATCH_SETTINGS),
    "InstanceBatchNorm": Reference(
        instance_batch_norm,
        BATCH_SETTINGS,
        {"pytorchcv": Oracle(pytorchcv_instance_batch_norm, package="pytorchcv", layouts=("NCHW",))},
    ),
    "InstanceLayerNorm": Reference(instance_layer_norm, ({"affine": False}, {"eps": 0.1})),
    "BatchChannelNorm": Reference(
        batch_channel_norm,
        (*BATCH_SETTINGS, {"num_groups": 4}, {"num_groups": 1, "affine": False}),
        {"torch": Oracle(torch_batch_channel_norm)},
    ),
}
