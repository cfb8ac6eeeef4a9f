"""Normalization layers as people write them: mistakes with the law that has to find each, and layers that are right."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normzoo.norms import Facts, Norm

MISTAKES: dict[str, tuple[Callable[..., nn.Module], str]] = {}
RIGHT: dict[str, Callable[..., nn.Module]] = {}


def found_by(law: str) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Names the law that has to find the mistake of a class."""

    def register(layer: type[nn.Module]) -> type[nn.Module]:
        MISTAKES[layer.__name__] = (layer, law)
        return layer

    return register


def right(layer: type[nn.Module]) -> type[nn.Module]:
    """Registers a class in which nothing is to be found."""
    RIGHT[layer.__name__] = layer
    return layer


def over(x: Tensor) -> list[int]:
    return [0, *range(2, x.dim())]


def view(v: Tensor, x: Tensor) -> Tensor:
    return v.view(1, -1, *[1] * (x.dim() - 2))


class Batch(nn.Module):
    """A batch norm by hand, without mistakes."""

    def __init__(self, num_features: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.mean(over(x)), x.var(over(x), correction=0)

    def update(self, mean: Tensor, var: Tensor) -> None:
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_var.lerp_(var.to(self.running_var), self.momentum)

    def normalized(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return (x - view(mean, x)) / (view(var, x) + self.eps).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            mean, var = self.statistics(x)
            self.update(mean, var)
        else:
            mean, var = self.running_mean, self.running_var
        return self.normalized(x, mean, var) * view(self.weight, x) + view(self.bias, x)


# Mistakes


@found_by("buffers-move-in-training-only")
class UpdatesInEvaluation(Batch):
    def forward(self, x: Tensor) -> Tensor:
        self.update(*self.statistics(x))
        training, self.training = self.training, False
        y = super().forward(x) if not training else self.normalized(x, *self.statistics(x))
        self.training = training
        return y


@found_by("gradcheck")
class DetachesTheStatistics(Batch):
    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().statistics(x.detach())


@found_by("gradcheck")
class UsesData(Batch):
    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, var = super().statistics(x)
        return mean, var.data


@found_by("forward-pass")
class KeepsTheGraph(Batch):
    def update(self, mean: Tensor, var: Tensor) -> None:
        self.running_mean = (1 - self.momentum) * self.running_mean + self.momentum * mean
        self.running_var = (1 - self.momentum) * self.running_var + self.momentum * var


@found_by("forward-pass")
class WritesIntoItsInput(Batch):
    def normalized(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        x -= view(mean, x)
        return x / (view(var, x) + self.eps).sqrt()


@found_by("one-sample")
class UnbiasedOverOneValue(Batch):
    """Which are `NaN` for one sample without positions."""

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.mean(over(x)), x.var(over(x))


@found_by("large-mean")
class SquareMinusSquare(Batch):
    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x.mean(over(x))
        return mean, x.square().mean(over(x)) - mean.square()


@found_by("constant-input")
class ForgetsEps(Batch):
    def normalized(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return (x - view(mean, x)) / view(var, x).sqrt()


@found_by("shape-and-dtype")
class ReturnsFloat64(Batch):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.double())


@found_by("buffers-move-in-training-only")
class StatisticsAsParameters(Batch):
    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        del self.running_mean
        self.running_mean = nn.Parameter(torch.zeros(num_features), requires_grad=False)


@found_by("registered")
class ForgetsToRegister(Batch):
    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        del self.running_mean
        self.running_mean = torch.zeros(num_features)


@found_by("registered")
class ListOfParameters(Batch):
    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.gains = [nn.Parameter(torch.ones(num_features))]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * view(self.gains[0], x)


@found_by("state")
class KeepsTheFirstBatch(Batch):
    first: Tensor | None = None

    def normalized(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        self.first = var.detach() if self.first is None else self.first
        return super().normalized(x, mean, var + 0.1 * self.first)


@found_by("state")
class WarmsUpInPython(Batch):
    """Which evaluation does not show."""

    steps = 0

    def update(self, mean: Tensor, var: Tensor) -> None:
        self.steps += 1
        self.momentum = max(0.1, 1 / self.steps)
        super().update(mean, var)


@found_by("parameters-learn")
class ForgetsTheBias(Batch):
    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, None, self.training)


@found_by("parameters-learn")
class WeightIsData(Batch):
    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight.data, self.bias, self.training)


@found_by("evaluation-uses-statistics")
class NeverUpdates(Batch):
    def update(self, mean: Tensor, var: Tensor) -> None:
        running_mean = self.running_mean
        running_mean = 0.9 * running_mean + 0.1 * mean.detach()


@found_by("evaluation-uses-statistics")
class ForgetsEvaluation(Batch):
    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.statistics(x)
        if self.training:
            self.update(mean, var)
        return self.normalized(x, mean, var) * view(self.weight, x) + view(self.bias, x)


@found_by("evaluation-settles")
class KeepsTheDeviation(Batch):
    def update(self, mean: Tensor, var: Tensor) -> None:
        super().update(mean, var.sqrt())


@found_by("flipped")
class ReshapesForPermutes(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(len(x), -1, *self.normalized_shape)).reshape(x.shape)


@found_by("one-sample")
class Squeezes(Batch):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.squeeze())


@found_by("forward-pass")
class DrawsByNumpy(Batch):
    def normalized(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return super().normalized(x, mean, var) * np.random.default_rng().uniform(0.9, 1.1)


@found_by("forward-pass")
class ForgetsToReturn(Norm):
    def normalize(self, x: Tensor) -> Tensor:
        x / x.std(1, keepdim=True)


@found_by("state")
class CountsInPython(Batch):
    steps = 0

    def forward(self, x: Tensor) -> Tensor:
        self.steps += self.training
        y = super().forward(x)
        return y * (1 - 0.9**self.steps)


@found_by("forward-pass")
class ThroughNumpy(Batch):
    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values = x.numpy()
        axes = tuple(over(x))
        return torch.from_numpy(values.mean(axes)), torch.from_numpy(values.var(axes))


@found_by("gradcheck")
class ThroughDetachedNumpy(Batch):
    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values, axes = x.detach().numpy(), tuple(over(x))
        return torch.from_numpy(np.asarray(values.mean(axes))), torch.from_numpy(np.asarray(values.var(axes)))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)


@found_by("no-values")
class ReadsAValue(Batch):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.abs().max() == 0 else super().forward(x)


@found_by("no-values")
class OnTheCpu(Batch):
    def normalized(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        eps = torch.full((x.shape[1],), self.eps, dtype=x.dtype, device="cpu")
        return (x - view(mean, x)) / view(var + eps, x).sqrt()


@found_by("forward-pass")
class WeightForImages(Norm):
    """Which broadcasts (6, 8) to (1, 8, 6, 8)."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.weight = nn.Parameter(torch.ones(1, num_features, 1, 1))

    def normalize(self, x: Tensor) -> Tensor:
        return x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt() * self.weight


@found_by("strides")
class ReadsTheStorage(nn.Module):
    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.as_strided((x.shape[0], x.numel() // x.shape[0]), (x.numel() // x.shape[0], 1))
        return x / (rows.square().mean(1).view(-1, *[1] * (x.dim() - 1)) + 1e-6).sqrt() * view(self.weight, x)


@found_by("evaluation-keeps-nothing")
class NoiseInEvaluation(Batch):
    def normalized(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return super().normalized(x, mean, var) + 0.1 * torch.randn_like(x)


@found_by("forward-pass")
class ChannelsLastOnly(Norm):
    def normalize(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (self.num_features,))


class Rms(Norm):
    """RMSNorm by hand, derived from `Norm`."""

    def __init__(self, num_features: int, *, eps: float = 1e-6) -> None:
        super().__init__(num_features)
        self.eps = eps
        self.add_affine(bias=False)

    def normalize(self, x: Tensor) -> Tensor:
        wide = x.float() if x.dtype != torch.float64 else x
        scale = (wide.square().mean(1, keepdim=True) + self.eps).rsqrt()
        return (wide * scale * view(self.weight, x)).to(x.dtype)


@found_by("centres")
class SaysItCentres(Rms):
    facts = Facts(axes=("C",), scales=True, centres=True, zero_mean=False)


@found_by("scales")
class SaysNothingOfScale(Rms):
    facts = Facts(axes=("C",), unit_square=True)


@found_by("independence")
class OverWrongAxes(Rms):
    facts = Facts(axes=("C", "s"), scales=True)


@found_by("moments")
class TwiceTheScale(Rms):
    facts = Facts(axes=("C",), scales=True)

    def normalize(self, x: Tensor) -> Tensor:
        return 2 * super().normalize(x)


@found_by("shape-and-dtype")
class Promotes(Norm):
    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.add_affine()

    def normalize(self, x: Tensor) -> Tensor:
        return x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt() * view(self.weight, x)


@found_by("wrong-inputs")
class OverridesForward(Rms):
    def forward(self, x: Tensor) -> Tensor:
        return self.normalize(x)


@found_by("builds-for-any-width")
class NeedsGroups(Rms):
    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.groups = torch.arange(num_features).view(4, -1)


@found_by("shape-and-dtype")
class LosesChannelsLast(Rms):
    def normalize(self, x: Tensor) -> Tensor:
        return super().normalize(x).contiguous()


# Right


right(Batch)
right(Rms)


@right
class Llama(nn.Module):
    """RMSNorm of transformers: of (N, C) here, computed in float32."""

    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        input_dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        return self.weight * hidden_states.to(input_dtype)


@right
class LayerNorm2d(nn.LayerNorm):
    """As in ConvNeXt: of images, which come back with other strides."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@right
class Frozen(nn.Module):
    """Four buffers and no parameter, as in torchvision's detection."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.1), ("running_var", 2.0)):
            self.register_buffer(name, torch.full((num_features,), value))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return x * view(scale, x) + view(self.bias - self.running_mean * scale, x)


@right
class StochasticNorm(Batch):
    """Draws between statistics of the batch and running ones, in training."""

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, var = super().statistics(x)
        take = (torch.rand(x.shape[1]) < 0.5).to(x)
        return mean * take + self.running_mean * (1 - take), var * take + self.running_var * (1 - take)


@right
class Renormalized(Batch):
    """Stops gradients as its paper says, and says so."""

    facts = Facts(exceptions={"gradcheck": "r and d are constants in the paper", "gradgradcheck": "the same"})

    def normalized(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        y = super().normalized(x, mean, var)
        return y * view((var.detach() + self.eps).sqrt().clamp(0.5, 2), x)


@right
class LocalResponse(nn.Module):
    """Without parameters, over a window of channels."""

    def __init__(self, num_features: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return F.local_response_norm(x, 3) if x.dim() > 2 else F.local_response_norm(x.unsqueeze(2), 3).squeeze(2)


@right
class Wrapped(nn.Module):
    """A module of torch inside, and an activation after it."""

    def __init__(self, channels: int, act: Any = nn.GELU) -> None:
        super().__init__()
        self.norm, self.act = nn.GroupNorm(2, channels), act()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(x))


@right
class Unbiased(Batch):
    """Of the sample variance, and refuses one value as torch does."""

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.numel() // x.shape[1] <= 1:
            raise ValueError("Expected more than 1 value per channel when training")
        return x.mean(over(x)), x.var(over(x))


@right
class Capped(nn.Module):
    """A bounded elementwise map, with one learned scalar."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.alpha * x)


@right
class FromLayers(nn.Sequential):
    """Two norms, one after the other."""

    def __init__(self, num_features: int) -> None:
        super().__init__(nn.InstanceNorm2d(num_features, affine=True), nn.BatchNorm2d(num_features))


@right
class ForImages(nn.Module):
    """For images alone, as timm's: its weight broadcasts (6, 8) to (1, 8, 6, 8)."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, num_features, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt() * self.weight


@right
class PartlyInFloat32(Batch):
    """The variance alone, as in timm's EvoNorm."""

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, var = super().statistics(x.float())
        return mean.to(x.dtype), var.to(x.dtype)


@right
class FrozenWeight(Batch):
    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.weight.requires_grad_(False)


@right
class WithDropout(nn.Sequential):
    """Whose numbers lie elsewhere in another memory format."""

    def __init__(self, num_features: int) -> None:
        super().__init__(nn.GroupNorm(1, num_features), nn.Dropout(0.2))


@right
class WithoutAutocast(nn.Module):
    """Which torch lacks on the meta device."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, num_features)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            y: Tensor = self.norm(x)
            return y


@right
class OfGroups(Norm):
    """torch's group norm, which keeps the number of groups under a name of its own."""

    def __init__(self, num_features: int, *, num_groups: int = 4) -> None:
        super().__init__(num_features)
        self.count = math.gcd(num_groups, num_features)
        self.add_affine()

    def normalize(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.count, self.weight.to(x.dtype), self.bias.to(x.dtype))


RIGHT |= {
    "InstanceNorm2d": lambda channels: nn.InstanceNorm2d(channels, affine=True, track_running_stats=True),
    "BatchNorm1d": nn.BatchNorm1d,
    "BatchNorm2d": nn.BatchNorm2d,
    "LayerNorm": nn.LayerNorm,
    "GroupNorm": lambda channels: nn.GroupNorm(4, channels),
    "RMSNorm": nn.RMSNorm,
    "SyncBatchNorm": nn.SyncBatchNorm,
}
