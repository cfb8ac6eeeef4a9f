"""Statistics over the batch."""

import math
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from references._base import (
    BARE,
    NO_BIAS,
    Oracle,
    Reference,
    State,
    biased_variance,
    by_channel,
    by_position,
    by_running,
    learned,
    loaded,
    mean_of,
    mean_square,
    move_average,
)

os.environ.setdefault("KERAS_BACKEND", "torch")


def batch_norm(
    x: Tensor, state: State, training: bool, *, eps: float, momentum: float | None, **unused: object
) -> Tensor:
    tracks = "running_mean" in state
    if tracks and not training:
        return by_running(x, state, eps)
    if tracks:
        state["num_batches_tracked"] += 1

    def one(values: Tensor, c: int) -> Tensor:
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


def frozen_batch_norm(x: Tensor, state: State, training: bool, *, eps: float, **unused: object) -> Tensor:
    def one(values: Tensor, c: int) -> Tensor:
        return (values - state["running_mean"][c]) / (state["running_var"][c] + eps).sqrt()

    return learned(by_channel(one, x), state)


def noisy_batch_norm(
    x: Tensor,
    state: State,
    training: bool,
    *,
    n_mu: float,
    n_sigma: float,
    r_mu: float,
    r_sigma: float,
    **settings: Any,
) -> Tensor:
    y = batch_norm(x, state, training, **settings)
    if not training:
        return y
    n, channels = x.shape[:2]
    torch.manual_seed(0)  # as the laws do before every pass of a layer that draws
    uniform, normal = torch.rand(2 + n, channels).double(), torch.randn(n, channels).double()
    mu, sigma = -n_mu + 2 * n_mu * uniform[0], 1 + (n_sigma - 1) * uniform[1]

    def noisy(sample: Tensor, i: int) -> Tensor:
        def one(c: int) -> Tensor:
            m = mu[c] - r_mu + 2 * r_mu * uniform[2 + i, c]
            s = sigma[c] + r_sigma * normal[i, c]
            return s * sample[c] + m

        return torch.stack([one(c) for c in range(channels)])

    return torch.stack([noisy(sample, i) for i, sample in enumerate(y)])


def virtual_batch_norm(x: Tensor, state: State, training: bool, *, eps: float, **unused: object) -> Tensor:
    n = int(state["reference_samples"])
    if n == 0:  # the reference itself
        state["reference_samples"] += len(x)

        def alone(values: Tensor, c: int) -> Tensor:
            mean, var = mean_of(values), biased_variance(values)
            state["reference_mean"][c], state["reference_var"][c] = mean.detach(), var.detach()
            return (values - mean) / (var + eps).sqrt()

        return learned(by_channel(alone, x), state)

    def one(values: Tensor, c: int) -> Tensor:
        reference, square = state["reference_mean"][c], state["reference_var"][c] + state["reference_mean"][c] ** 2
        mean = (mean_of(values) + n * reference) / (n + 1)
        mean_square = (mean_of(values**2) + n * square) / (n + 1)
        return (values - mean) / (mean_square - mean**2 + eps).sqrt()

    return learned(torch.cat([by_channel(one, sample.unsqueeze(0)) for sample in x]), state)


def split_batch_norm(x: Tensor, state: State, training: bool, *, num_splits: int, **settings: Any) -> Tensor:
    if not training:
        return batch_norm(x, state, training, **settings)
    auxiliary = [
        {name.removeprefix(f"aux_bn.{i}."): v for name, v in state.items() if name.startswith(f"aux_bn.{i}.")}
        for i in range(num_splits - 1)
    ]
    parts = zip([state, *auxiliary], x.chunk(num_splits), strict=True)
    return torch.cat([batch_norm(part, of_part, training, **settings) for of_part, part in parts])


def mean_only_batch_norm(
    x: Tensor, state: State, training: bool, *, momentum: float | None, **unused: object
) -> Tensor:
    tracks = "running_mean" in state
    if training and tracks:
        state["num_batches_tracked"] += 1

    def one(values: Tensor, c: int) -> Tensor:
        if tracks and not training:
            return values - state["running_mean"][c]
        if tracks:
            m = 1 / int(state["num_batches_tracked"]) if momentum is None else momentum
            state["running_mean"][c] = (1 - m) * state["running_mean"][c] + m * mean_of(values).detach()
        return values - mean_of(values)

    return learned(by_channel(one, x), state)


def by_scale(
    scale_of: Callable[[Tensor], Tensor],
    x: Tensor,
    state: State,
    training: bool,
    *,
    eps: float,
    momentum: float | None,
    **unused: object,
) -> Tensor:
    """Batch normalization by another measure of scale than the standard deviation."""
    tracks = "running_mean" in state
    if training and tracks:
        state["num_batches_tracked"] += 1

    def one(values: Tensor, c: int) -> Tensor:
        if tracks and not training:
            return (values - state["running_mean"][c]) / (state["running_scale"][c] + eps)
        mean, scale = mean_of(values), scale_of(values)
        if tracks:
            m = 1 / int(state["num_batches_tracked"]) if momentum is None else momentum
            state["running_mean"][c] = (1 - m) * state["running_mean"][c] + m * mean.detach()
            state["running_scale"][c] = (1 - m) * state["running_scale"][c] + m * scale.detach()
        return (values - mean) / (scale + eps)

    return learned(by_channel(one, x), state)


def l1_batch_norm(x: Tensor, state: State, training: bool, **settings: Any) -> Tensor:
    def scale_of(values: Tensor) -> Tensor:
        return math.sqrt(math.pi / 2) * mean_of((values - mean_of(values)).abs())

    return by_scale(scale_of, x, state, training, **settings)


def range_batch_norm(x: Tensor, state: State, training: bool, **settings: Any) -> Tensor:
    def scale_of(values: Tensor) -> Tensor:
        return (values.max() - values.min()) / math.sqrt(2 * math.log(values.numel()))

    return by_scale(scale_of, x, state, training, **settings)


def batch_group_norm(
    x: Tensor,
    state: State,
    training: bool,
    *,
    num_groups: int | None,
    eps: float,
    momentum: float | None,
    **unused: object,
) -> Tensor:
    channels = x.shape[1]
    # The most groups up to 32 with at least 4 channels in each.
    fitting = [g for g in range(1, 33) if channels % g == 0 and channels / g >= 4]
    groups = num_groups or max(fitting, default=1)
    tracks = "running_mean" in state
    if training and tracks:
        state["num_batches_tracked"] += 1

    def one(values: Tensor, g: int) -> Tensor:
        if tracks and not training:
            return (values - state["running_mean"][g]) / (state["running_var"][g] + eps).sqrt()
        n, mean, var = values.numel(), mean_of(values), biased_variance(values)
        if tracks:
            move_average(state, g, mean, var * n / (n - 1), momentum)
        return (values - mean) / (var + eps).sqrt()

    return learned(torch.cat([one(values, g) for g, values in enumerate(x.chunk(groups, dim=1))], dim=1), state)


class OwnGradient(torch.autograd.Function):
    """y, of which the gradient of x is as told, whatever the derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, gradient: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.gradient = gradient
        return y.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        return ctx.gradient(grad_outputs[0]), None, None


def over_running_square(x: Tensor, state: State, eps: float) -> Tensor:
    return by_channel(lambda values, c: values / (state["running_square"][c] + eps).sqrt(), x)


def group_scaling(x: Tensor, groups: int, eps: float) -> Tensor:
    def one(channels: Tensor) -> Tensor:
        return torch.cat([values / (mean_square(values) + eps).sqrt() for values in channels.chunk(groups)])

    return by_position(one, x)


def power_norm(
    x: Tensor,
    state: State,
    training: bool,
    *,
    scale_groups: int,
    warmup_steps: int,
    eps: float,
    momentum: float | None,
    **unused: object,
) -> Tensor:
    x = group_scaling(x, scale_groups, eps) if scale_groups else x
    if not training:
        return learned(over_running_square(x, state, eps), state)
    state["num_batches_tracked"] += 1
    step = int(state["num_batches_tracked"])
    alpha = 1 - (1 / step if momentum is None else momentum)
    of_batch = torch.stack([mean_square(values) for values in x.detach().unbind(1)])
    psi = ((of_batch if step <= warmup_steps else state["running_square"].clone()) + eps).sqrt()
    z = by_channel(lambda values, c: values / psi[c], x.detach())
    for c in range(x.shape[1]):
        state["running_square"][c] = alpha * state["running_square"][c] + (1 - alpha) * of_batch[c]

    def gradient(g: Tensor) -> Tensor:
        nu = state["nu"].clone()
        for c in range(x.shape[1]):
            state["nu"][c] = nu[c] * (1 - (1 - alpha) * mean_square(z[:, c]))
            state["nu"][c] += (1 - alpha) * mean_of(g[:, c] * z[:, c])
        return by_channel(lambda g_c, c: (g_c - nu[c] * z[:, c]) / psi[c], g)

    return learned(OwnGradient.apply(x, z, gradient), state)


def moving_average_batch_norm(
    x: Tensor,
    state: State,
    training: bool,
    *,
    buffer_size: int,
    r_max: float,
    r_after: int,
    eps: float,
    momentum: float | None,
    **unused: object,
) -> Tensor:
    if not training:
        return learned(over_running_square(x, state, eps), state)
    state["num_batches_tracked"] += 1
    step = int(state["num_batches_tracked"])
    weight_of_newest = 1 / step if momentum is None else momentum

    def over_batches(name: str, c: int, newest: Tensor) -> Tensor:
        state[name][step % buffer_size, c] = newest
        return mean_of(state[name][:, c].clone()) if step > buffer_size else newest

    squares = [over_batches("squares", c, mean_square(x[:, c].detach())) for c in range(x.shape[1])]
    std = (torch.stack(squares) + eps).sqrt()
    bound = r_max if step > r_after else 1.0
    r = (std / (state["running_square"] + eps).sqrt()).clamp(1 / bound, bound)
    for c in range(x.shape[1]):
        state["running_square"][c] += weight_of_newest * (squares[c] - state["running_square"][c])
    z = by_channel(lambda values, c: values / std[c], x.detach())

    def gradient(dy: Tensor) -> Tensor:
        def one(dy_c: Tensor, c: int) -> Tensor:
            g = dy_c * r[c]
            return (g - z[:, c] * over_batches("products", c, mean_of(g * z[:, c]))) / std[c]

        return by_channel(one, dy)

    return learned(OwnGradient.apply(x, by_channel(lambda values, c: r[c] * values, z), gradient), state)


def online_norm(
    x: Tensor,
    state: State,
    training: bool,
    *,
    forward_decay: float,
    backward_decay: float,
    eps: float,
    **unused: object,
) -> Tensor:
    if not training:
        return batch_norm(x, state, training, eps=eps, momentum=None)
    state["num_batches_tracked"] += 1
    a, b = forward_decay, backward_decay
    rows = x.detach().reshape(len(x), x.shape[1], -1)
    z, stds = [], []
    for x_t in rows:
        mean, std = state["running_mean"], (state["running_var"] + eps).sqrt()
        z.append((x_t - mean[:, None]) / std[:, None])
        stds.append(std)
        m, s = x_t.mean(1), x_t.var(1, correction=0)
        state["running_var"] = a * state["running_var"] + (1 - a) * s + a * (1 - a) * (m - mean) ** 2
        state["running_mean"] = a * mean + (1 - a) * m

    def gradient(g: Tensor) -> Tensor:
        dx = []
        for g_t, z_t, std in zip(g.reshape(rows.shape), z, stds, strict=True):
            g_t = g_t - (1 - b) * state["v"][:, None] * z_t
            state["v"] = state["v"] + (g_t * z_t).mean(1)
            dx_t = g_t / std[:, None] - (1 - b) * state["u"][:, None]
            state["u"] = state["u"] + dx_t.mean(1)
            dx.append(dx_t)
        return torch.stack(dx).reshape(x.shape)

    return learned(OwnGradient.apply(x, torch.stack(z).reshape(x.shape), gradient), state)


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


class KerasRenorm(nn.Module):
    """keras's batch renormalization. It averages standard deviations: here it forgets, and variances are averaged."""

    def __init__(self, layer: Any, x: Tensor) -> None:
        super().__init__()
        from keras.layers import BatchNormalization

        self.norm = BatchNormalization(
            axis=1,
            momentum=0.0,
            epsilon=layer.eps,
            renorm=True,
            renorm_momentum=0.0,
            renorm_clipping={"rmin": 1 / layer.r_max, "rmax": layer.r_max, "dmax": layer.d_max},
            dtype=str(x.dtype).removeprefix("torch."),
        )
        self.norm.build(x.shape)
        self.norm.gamma.assign(layer.weight)
        self.norm.beta.assign(layer.bias)
        self.mean, self.var = layer.running_mean.clone(), layer.running_var.clone()
        self.momentum, self.eps = layer.momentum, layer.eps

    def forward(self, x: Tensor) -> Tensor:
        self.norm.renorm_mean.assign(self.mean)
        self.norm.renorm_stddev.assign((self.var + self.eps).sqrt())
        self.norm.moving_mean.assign(self.mean)
        self.norm.moving_variance.assign(self.var)
        y = self.norm(x, training=self.training)
        self.mean = self.mean.lerp(self.norm.moving_mean.value.detach(), self.momentum)
        self.var = self.var.lerp(self.norm.moving_variance.value.detach(), self.momentum)
        return y


def torchvision_frozen(layer: Any, x: Tensor) -> nn.Module:
    from torchvision.ops import FrozenBatchNorm2d

    return loaded_double(FrozenBatchNorm2d(layer.num_features, eps=layer.eps), layer)


def timm_frozen(layer: Any, x: Tensor) -> nn.Module:
    from timm.layers import FrozenBatchNormAct2d

    return loaded_double(FrozenBatchNormAct2d(layer.num_features, eps=layer.eps, apply_act=False), layer)


def loaded_double(module: nn.Module, layer: nn.Module) -> nn.Module:
    """For a layer without parameters, whose dtype is that of its buffers."""
    module = module.to(layer.get_buffer("weight").dtype)
    module.load_state_dict(layer.state_dict(), strict=True)
    return module


def timm_split(layer: Any, x: Tensor) -> nn.Module:
    from timm.layers import SplitBatchNorm2d

    settings = {"eps": layer.eps, "momentum": layer.momentum, "num_splits": layer.num_splits}
    return loaded(SplitBatchNorm2d(layer.num_features, **settings), layer)


class Grouped(nn.Module):
    """nn.BatchNorm1d over groups, a channel to each, then a scale and a shift per channel."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(layer.num_groups, eps=layer.eps, momentum=layer.momentum, affine=False).double()
        self.norm.load_state_dict({n: v for n, v in layer.state_dict().items() if n not in ("weight", "bias")})
        self.own = {"weight": layer.weight.detach(), "bias": layer.bias.detach()}

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(len(x), self.norm.num_features, -1)
        return learned(self.norm(rows).reshape(x.shape), self.own)


UNTRACKED = {"track_running_stats": False}
BATCH_SETTINGS = (BARE, UNTRACKED, {"momentum": None}, {"momentum": 0.7, "eps": 0.1})
TORCH_BATCH_NORMS = {
    "torch": Oracle(torch_batch_norm, same_state=True),
    "torch-3d": Oracle(torch_batch_norm_3d, same_state=True, layouts=("NCHW",)),
    "torchvision": Oracle(torchvision_frozen_batch_norm, package="torchvision", layouts=("NCHW",), trains=False),
}

REFERENCES: dict[str, Reference] = {
    "BatchNorm": Reference(batch_norm, (*BATCH_SETTINGS, NO_BIAS), TORCH_BATCH_NORMS),
    "TorchBatchNorm": Reference(batch_norm, (*BATCH_SETTINGS, NO_BIAS), TORCH_BATCH_NORMS),
    "BatchRenorm": Reference(
        batch_renorm,
        (
            BARE,
            {"momentum": None},
            {"warmup": 0, "r_steps": 0, "d_steps": 0},
            {"warmup": 1, "r_steps": 5, "d_steps": 3, "r_max": 1.2, "d_max": 0.2},
        ),
        {
            "keras": Oracle(
                KerasRenorm,
                package="keras",
                settings={"warmup": 0, "r_steps": 0, "d_steps": 0, "r_max": 1.2, "d_max": 0.2},
                tolerance=1e-6,
                timed=False,
            )
        },
    ),
    "GhostBatchNorm": Reference(
        ghost_batch_norm,
        (*BATCH_SETTINGS, {"ghost_size": 4}, {"ghost_size": 3, "momentum": None}),
        {
            "pytorch_tabnet": Oracle(
                tabnet_ghost_batch_norm, package="pytorch_tabnet", layouts=("NC",), settings={"ghost_size": 3}
            )
        },
    ),
    "FrozenBatchNorm": Reference(
        frozen_batch_norm,
        ({"eps": 0.1},),
        {
            "torchvision": Oracle(torchvision_frozen, package="torchvision", layouts=("NCHW",), same_state=True),
            "timm": Oracle(timm_frozen, package="timm", layouts=("NCHW",), same_state=True),
        },
    ),
    "NoisyBatchNorm": Reference(
        noisy_batch_norm, (*BATCH_SETTINGS, {"n_mu": 2.0, "n_sigma": 3.0, "r_mu": 0.5, "r_sigma": 0.3})
    ),
    "VirtualBatchNorm": Reference(virtual_batch_norm, (BARE, {"eps": 0.1})),
    "SplitBatchNorm": Reference(
        split_batch_norm,
        BATCH_SETTINGS,
        {"timm": Oracle(timm_split, package="timm", layouts=("NCHW",), same_state=True)},
    ),
    "MeanOnlyBatchNorm": Reference(mean_only_batch_norm, (BARE, UNTRACKED, {"momentum": None}, {"momentum": 0.7})),
    "L1BatchNorm": Reference(l1_batch_norm, BATCH_SETTINGS),
    "RangeBatchNorm": Reference(range_batch_norm, BATCH_SETTINGS),
    "BatchGroupNorm": Reference(
        batch_group_norm,
        (*BATCH_SETTINGS, {"num_groups": 1}, {"num_groups": 4, "momentum": None}, {"num_groups": 8}),
        {"torch": Oracle(lambda layer, x: Grouped(layer), timed=False)},
    ),
    "PowerNorm": Reference(
        power_norm,
        (
            BARE,
            {"scale_groups": 0, "warmup_steps": 0},
            {"scale_groups": 4, "warmup_steps": 1, "momentum": None},
            {"warmup_steps": 3, "momentum": 0.7, "eps": 0.1},
        ),
    ),
    "MovingAverageBatchNorm": Reference(
        moving_average_batch_norm,
        (
            BARE,
            {"momentum": None},
            {"buffer_size": 2, "r_after": 1, "momentum": 0.7, "eps": 0.1},
            {"buffer_size": 3, "r_after": 0, "r_max": 1.1},
            {"buffer_size": 1},
        ),
    ),
    "OnlineNorm": Reference(online_norm, (BARE, {"forward_decay": 0.8, "backward_decay": 0.6, "eps": 0.1})),
}
