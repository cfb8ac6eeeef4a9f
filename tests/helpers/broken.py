"""Layers with one bug each, and the law that has to catch it: the test of the tests.

Every bug is one that somebody has shipped, or is the next slip of the hand away. A law that lets its bug pass is no
law.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch.autograd.function import once_differentiable
from torch.autograd.gradcheck import GradcheckError

from normzoo.errors import InputError
from normzoo.norms import (
    BatchInstanceNorm,
    BatchNorm,
    BatchRenorm,
    ChannelLayerNorm,
    DecorrelatedBatchNorm,
    DynamicTanh,
    FilterResponseNorm,
    GhostBatchNorm,
    GlobalResponseNorm,
    GroupNorm,
    InstanceLayerNorm,
    InstanceNorm,
    L1BatchNorm,
    LayerNorm,
    LocalResponseNorm,
    NoisyBatchNorm,
    Norm,
    OnlineNorm,
    PowerNorm,
    RangeBatchNorm,
    RMSNorm,
    ScaleNorm,
    SpectralNorm,
    SplitBatchNorm,
    TorchBatchNorm,
    VirtualBatchNorm,
    WeightNorm,
    WeightStandardization,
)
from normzoo.norms._ops import cpu as kernels
from normzoo.norms._ops.ranks import Group, all_reduce, ranks
from normzoo.norms._ops.running import over_samples
from normzoo.norms._ops.scale_shift import by_plane, standardize
from normzoo.norms._ops.tensors import affine, at_least_float32, channels_second, per_channel, positions_first
from normzoo.norms.batch._normalize import batch_norm, merge_over_ranks
from normzoo.norms.mixed._mixed import OfBatch


@dataclass(frozen=True)
class Bug:
    """A broken layer, the honest one it derives from, and the law that tells them apart in this layout.

    `raises` is what the law fails with: a claim that does not hold, or where torch itself refuses, torch's exception.
    """

    layer: type[Norm]
    of: type[Norm]
    law: str
    layout: str
    raises: type[BaseException] | tuple[type[BaseException], ...]


BUGS: list[Bug] = []


def caught_by(
    law: str,
    layout: str = "NCHW",
    raises: type[BaseException] | tuple[type[BaseException], ...] = (AssertionError, GradcheckError),
) -> Callable[[type[Norm]], type[Norm]]:
    """Declares the law that has to fail on the class."""

    def register(layer: type[Norm]) -> type[Norm]:
        of = layer.__mro__[1]
        assert issubclass(of, Norm)
        BUGS.append(Bug(layer, of, law, layout, raises))
        return layer

    return register


def over_batch(x: Tensor) -> list[int]:
    return [axis for axis in range(x.dim()) if axis != 1]


def moments_of_batch(x: Tensor) -> tuple[Tensor, Tensor, int]:
    """Mean, biased variance and count per channel, differentiable."""
    return x.mean(over_batch(x)), x.var(over_batch(x), correction=0), x.numel() // x.shape[1]


def normalized(x: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    return (x - per_channel(mean, x)) * per_channel((var + eps).rsqrt(), x)


# Formulas


@caught_by("equals-reference")
class UnbiasedVarianceInTheOutput(BatchNorm):
    def normalize_by_batch(self, x: Tensor, group: Group) -> Tensor:
        mean, var, n = moments_of_batch(x)
        self.update(mean, var, n)
        return affine(normalized(x, mean, var * n / (n - 1), self.eps), self.weight, self.bias)


@caught_by("equals-reference")
class BiasedRunningVariance(BatchNorm):
    stores_unbiased = False


@caught_by("equals-reference", "NC")
class MomentumReversed(BatchNorm):
    def update(self, mean: Tensor, var: Tensor, count: int) -> None:
        kept, self.momentum = self.momentum, None if self.momentum is None else 1 - self.momentum
        super().update(mean, var, count)
        self.momentum = kept


@caught_by("equals-reference", "NCL")
class EpsOutsideTheRoot(LayerNorm):
    def normalize(self, x: Tensor) -> Tensor:
        over = tuple(range(1, x.dim()))
        std = x.var(over, correction=0, keepdim=True).sqrt() + self.eps
        return affine((x - x.mean(over, keepdim=True)) / std, self.weight, self.bias)


@caught_by("equals-reference")
class PartsIgnored(GhostBatchNorm):
    def normalize_by_batch(self, x: Tensor, group: Group) -> Tensor:
        kept, self.ghost_size = self.ghost_size, len(x)
        try:
            return super().normalize_by_batch(x, group)
        finally:
            self.ghost_size = kept


@caught_by("equals-reference")
class ThresholdIsZero(FilterResponseNorm):
    def normalize(self, x: Tensor) -> Tensor:
        kept, self.tau = self.tau, None
        y = super().normalize(x)
        self.tau = kept
        return y if kept is None else y.relu()


@caught_by("equals-reference", "NC")
class ShiftInsideTheSquash(DynamicTanh):
    def normalize(self, x: Tensor) -> Tensor:
        return affine(torch.tanh(self.alpha * affine(x, None, self.bias)), self.weight, None)


@caught_by("equals-reference", "NCL")
class WindowTheOtherWay(LocalResponseNorm):
    """Of an even window, the larger half on the wrong side."""

    def normalize(self, x: Tensor) -> Tensor:
        return super().normalize(x.flip(1)).flip(1)


@caught_by("equals-reference")
class CorrectsAfterTheUpdate(BatchRenorm):
    """r and d from the statistics that this batch has moved already."""

    def normalize_by_batch(self, x: Tensor, group: Group) -> Tensor:
        self.update(*moments_of_batch(x))
        kept = [b.clone() for b in self.buffers()]
        y = super().normalize_by_batch(x, group)
        for buffer, value in zip(self.buffers(), kept, strict=True):
            buffer.copy_(value)
        return y


# Axes


@caught_by("independence")
class MissesThePositions(BatchNorm):
    def normalize_by_batch(self, x: Tensor, group: Group) -> Tensor:
        mean, var = x.mean(0, keepdim=True), x.var(0, correction=0, keepdim=True)
        self.update(*moments_of_batch(x))
        return affine((x - mean) / (var + self.eps).sqrt(), self.weight, self.bias)


@caught_by("independence", "NC")
class GroupsInterleaved(GroupNorm):
    def normalize(self, x: Tensor) -> Tensor:
        order = torch.arange(self.num_features).view(-1, self.num_groups).T.flatten()
        y = F.group_norm(x[:, order], self.num_groups, None, None, self.eps)
        return affine(y[:, order.argsort()], self.weight, self.bias)


@caught_by("moments", "NCL")
class LengthOverInputs(WeightNorm):
    def normalize(self, x: Tensor) -> Tensor:
        assert self.weight is not None
        return x / x.norm(dim=1, keepdim=True) * self.weight.view(-1, *[1] * (x.dim() - 1))


@caught_by("independence", "NCHW")
class StandardizedOverEverything(WeightStandardization):
    def normalize(self, x: Tensor) -> Tensor:
        return (x - x.mean()) / (x.var(correction=0) + self.eps).sqrt()


@caught_by("five-dimensions")
class ForgetsTheDepth(InstanceNorm):
    def normalize(self, x: Tensor) -> Tensor:
        mean, var = x.mean((-2, -1), keepdim=True), x.var((-2, -1), correction=0, keepdim=True)
        return affine((x - mean) / (var + self.eps).sqrt(), self.weight, self.bias)


@caught_by("independence", "NCL")
class PooledLiveBatch(VirtualBatchNorm):
    """Statistics of the whole batch in place of each sample's, as the authors' code has them."""

    def rule(self, mean: Tensor, var: Tensor, **given: Any) -> tuple[Tensor, ...]:
        return super().rule(*(v.expand_as(mean) for v in over_samples(mean, var, 1)), **given)


# Gradients


@caught_by("gradcheck", "NCL")
class DetachedStatistics(BatchNorm):
    def normalize_by_batch(self, x: Tensor, group: Group) -> Tensor:
        mean, var, n = moments_of_batch(x.detach())
        self.update(mean, var, n)
        return affine(normalized(x, mean, var, self.eps), self.weight, self.bias)


@caught_by("gradcheck", "NC")
class NoGradientThroughTheVariance(BatchNorm):
    def normalize_by_batch(self, x: Tensor, group: Group) -> Tensor:
        mean, var, n = moments_of_batch(x)
        self.update(mean, var, n)
        return affine(normalized(x, mean, var.detach(), self.eps), self.weight, self.bias)


class HandBackward(torch.autograd.Function):
    """(x - mean) / std of rows or planes; `sign` is 1 in a right gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, sign: float) -> Tensor:
        mean, var, _ = moments_of_batch(x)
        z = normalized(x, mean, var, eps)
        ctx.save_for_backward(z, (var + eps).rsqrt())
        ctx.sign = sign
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (dz,) = grad_outputs
        z, inv_std = ctx.saved_tensors
        over = over_batch(z)
        along = z * per_channel((dz * z).mean(over), z)
        return (dz - per_channel(dz.mean(over), z) - ctx.sign * along) * per_channel(inv_std, z), None, None


@caught_by("gradcheck")
class WrongSignInTheBackward(BatchNorm):
    def normalize_by_batch(self, x: Tensor, group: Group) -> Tensor:
        self.update(*moments_of_batch(x.detach()))
        return affine(HandBackward.apply(x, self.eps, -1.0), self.weight, self.bias)


@caught_by("gradgradcheck")
class DifferentiableOnce(BatchNorm):
    def normalize_by_batch(self, x: Tensor, group: Group) -> Tensor:
        self.update(*moments_of_batch(x.detach()))
        return affine(HandBackward.apply(x, self.eps, 1.0), self.weight, self.bias)


@caught_by("gradient-of-reference")
class GradientThroughTheCorrection(BatchRenorm):
    def normalize_by_batch(self, x: Tensor, group: Group) -> Tensor:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        mean, var, n = moments_of_batch(x)
        r_max, d_max = self.bounds(self.num_batches_tracked, mean.dtype)
        std, running_std = (var + self.eps).sqrt(), (self.running_var + self.eps).sqrt()
        r = (std / running_std).clamp(1 / r_max, r_max)
        d = ((mean - self.running_mean.clone()) / running_std).clamp(-d_max, d_max)
        self.update(mean, var, n)
        z = normalized(x, mean, var, self.eps) * per_channel(r, x) + per_channel(d, x)
        return affine(z, self.weight, self.bias)


@caught_by("gradcheck", "NCL")
class NoSlopeAlongTheMean(L1BatchNorm):
    """The deviation from a centre that is taken for a constant."""

    def rule(self, mean: Tensor, var: Tensor, deviation: Tensor, sign: Tensor, **given: Any) -> tuple[Tensor, ...]:
        return super().rule(mean, var, deviation, torch.zeros_like(sign), **given)


@caught_by("ties")
class AllToTheThreshold(FilterResponseNorm):
    """Where the value equals the threshold, the threshold gets the whole gradient: on large inputs only."""

    def normalize(self, x: Tensor) -> Tensor:
        if self.tau is None or x.numel() <= kernels.SMALL:
            return super().normalize(x)
        tau, self.tau = self.tau, None
        z = super().normalize(x)
        self.tau = tau
        return torch.where(z > per_channel(tau, z), z, per_channel(tau, z))


@caught_by("changed-in-place", raises=RuntimeError)
class SavesItsOutput(InstanceNorm):
    """For a gradient that is computed from the output."""

    def normalize(self, x: Tensor) -> Tensor:
        return super().normalize(x).sigmoid()


@caught_by("gates")
class GateThatStaysOutside(BatchInstanceNorm):
    """Clipping has no gradient beyond its bounds: a gate that a step has carried there never returns."""

    def normalize_by(self, x: Tensor, of_batch: OfBatch) -> tuple[Tensor, ...]:
        rule, learned = partial(self.rule, of_batch=of_batch), {"weight": self.weight, "bias": self.bias}
        return by_plane(x, rule, self.gate.clamp(0, 1), **learned)


@caught_by("constant-input")
class GradientOfEigenvectors(DecorrelatedBatchNorm):
    """Which has a pole where eigenvalues are equal."""

    def whitening(self, cov: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(cov)
        return (vectors * (values.clamp_min(0) + self.eps).rsqrt().unsqueeze(-2)) @ vectors.mT


# dtype, memory, precision


@caught_by("no-values", raises=RuntimeError)
class ReadsTheLargest(InstanceNorm):
    def normalize(self, x: Tensor) -> Tensor:
        too_large = float(x.detach().abs().max()) > 1e4
        return super().normalize(x.double() if too_large else x).to(x.dtype)


@caught_by("kernels-of-a-gpu")
class AsTheCpuTakesThem(GroupNorm):
    def normalize(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


@caught_by("shape-and-dtype", "NC")
class DtypeLeak(RMSNorm):
    def normalize(self, x: Tensor) -> Tensor:
        rows = at_least_float32(positions_first(x))
        rows = rows / (rows.square().mean(-1, keepdim=True) + self.eps).sqrt()
        return affine(rows.movedim(-1, 1), self.weight, None)


@caught_by("memory-format")
class ChannelsLastLost(InstanceNorm):
    def normalize(self, x: Tensor) -> Tensor:
        return F.instance_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)


@caught_by("memory-format", "NCHW")
class MovedAxesStayMoved(ChannelLayerNorm):
    def normalize(self, x: Tensor) -> Tensor:
        return F.layer_norm(positions_first(x), (self.num_features,), self.weight, self.bias, self.eps).movedim(-1, 1)


@caught_by("narrow-inputs", "NCHW")
class ThresholdOfRoundedValues(FilterResponseNorm):
    """Rounds before the threshold, so that many values tie with it."""

    def normalize(self, x: Tensor) -> Tensor:
        tau, self.tau = self.tau, None
        z = super().normalize(x)
        self.tau = tau
        return z if tau is None else torch.maximum(z, per_channel(tau.to(z.dtype), z))


@caught_by("low-precision")
class StatisticsInLowPrecision(BatchNorm):
    def normalize_by_batch(self, x: Tensor, group: Group) -> Tensor:
        mean, var, n = moments_of_batch(x)
        self.update(mean, var, n)
        return affine(normalized(x, mean, var, self.eps), self.weight, self.bias).to(x.dtype)


@caught_by("low-precision", "NC")
class RunningStatisticsNarrowed(BatchNorm):
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Norm":
        nn.Module._apply(self, fn, recurse)
        return self


@caught_by("large-mean", "NCL")
class SquareOfTheMeanSubtracted(BatchNorm):
    def normalize_by_batch(self, x: Tensor, group: Group) -> Tensor:
        mean = x.mean(over_batch(x))
        var = x.square().mean(over_batch(x)) - mean.square()
        self.update(mean, var, x.numel() // x.shape[1])
        return affine(normalized(x, mean, var, self.eps), self.weight, self.bias)


@caught_by("gradients-at-a-large-mean", "NCL")
class GateOfLargeNumbers(InstanceLayerNorm):
    """Mixes two shifts, each as large as the mean, and so the gradient of the gate is their difference."""

    def rule(self, mean: Tensor, var: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
        of_layer = mean.mean(1, keepdim=True)
        var_of_layer = (var + (mean - of_layer).square()).mean(1, keepdim=True)
        pairs = zip(standardize(mean, var, self.eps), standardize(of_layer, var_of_layer, self.eps), strict=True)
        scale, shift = (gate * instance + (1 - gate) * layer for instance, layer in pairs)
        return scale, shift


@caught_by("large-batch", "NCL")
class LongPlanesCutShort(BatchNorm):
    """Statistics of whole blocks of values, without what is left over."""

    def normalize_by_batch(self, x: Tensor, group: Group) -> Tensor:
        length = x.shape[-1]
        whole = x[..., : length - length % 256] if length > 256 else x
        mean, var, n = moments_of_batch(at_least_float32(whole))
        self.update(mean, var, n)
        return affine(normalized(at_least_float32(x), mean, var, self.eps), self.weight, self.bias).to(x.dtype)


@caught_by("large-and-small-scales", "NCL")
class CubeOfTheRoot(InstanceNorm):
    """The gradient of `rsqrt` underflows for values whose squares still fit float32."""

    def normalize(self, x: Tensor) -> Tensor:
        apart = x - x.mean(2, keepdim=True)
        return affine(apart * (apart.square().mean(2, keepdim=True) + self.eps).rsqrt(), self.weight, self.bias)


@caught_by("constant-input", "NC")
class NothingUnderTheRoot(RMSNorm):
    def normalize(self, x: Tensor) -> Tensor:
        rows = positions_first(x)
        return affine(channels_second(rows / rows.square().mean(-1, keepdim=True).sqrt(), x), self.weight, None)


@caught_by("constant-input")
class InfiniteSlopeOfTheRoot(GlobalResponseNorm):
    """The length of a plane of zeros has no gradient: NaN."""

    def normalize(self, x: Tensor) -> Tensor:
        length = x.square().sum(tuple(range(2, x.dim())), keepdim=True).sqrt()
        return affine(x * length / (length.mean(1, keepdim=True) + self.eps), self.weight, self.bias) + x


@caught_by("gradient-of-reference")
class MovesBeforeItUses(PowerNorm):
    """Subtracts what this batch has just found, not what the batches before it have."""

    def before(self) -> dict[str, Tensor]:
        return {**super().before(), "nu": self.nu}

    def rule(self, mean: Tensor, var: Tensor, *, momentum: Any, **given: Any) -> tuple[Tensor, ...]:
        tables = super().rule(mean, var, momentum=momentum, **given)
        with torch.no_grad():
            self.nu.mul_(1 - momentum)
        return tables


# State


@caught_by("state", "NC")
class UnregisteredBuffer(BatchNorm):
    def __init__(self, num_features: int, **settings: Any) -> None:
        super().__init__(num_features, **settings)
        self._non_persistent_buffers_set.add("running_mean")


@caught_by("buffers-move-in-training-only", "NC")
class MovesInEvaluation(BatchNorm):
    def normalize_by_running(self, x: Tensor) -> Tensor:
        y = super().normalize_by_running(x)
        self.training = True
        self.update(*moments_of_batch(x.detach()))
        self.training = False
        return y


@caught_by("train-differs")
class AlwaysByTheBatch(BatchNorm):
    """What "freezing" by track_running_stats=False does."""

    def normalize(self, x: Tensor) -> Tensor:
        return self.normalize_by_batch(x, None)


@caught_by("state-outlives-errors", "NC")
class ErrorInTheLastPart(GhostBatchNorm):
    def normalize_by_batch(self, x: Tensor, group: Group) -> Tensor:
        outputs = []
        for part in x.chunk(-(-len(x) // self.ghost_size)):
            self.require_several(part.numel() // part.shape[1], part)
            y, mean, var, count = batch_norm(part, self.weight, self.bias, self.eps)
            self.update(mean, var, count)
            outputs.append(y)
        return torch.cat(outputs)


@caught_by("empty-batch", "NCL")
class EmptyBatchCounts(BatchNorm):
    def normalize_empty(self, x: Tensor) -> Tensor:
        assert self.running_mean is not None
        self.update(torch.zeros_like(self.running_mean), torch.ones_like(self.running_mean), 2)
        return super().normalize_empty(x)


@caught_by("checkpointing")
class CountedTwice(BatchNorm):
    def update(self, mean: Tensor, var: Tensor, count: int) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean.detach(), self.momentum or 0.5)
            self.running_var.lerp_(var.detach(), self.momentum or 0.5)


@caught_by("nan-batch", "NC")
class KeepsNaN(BatchNorm):
    """What torch does: one bad batch, and the running statistics are lost for good."""

    def update(self, mean: Tensor, var: Tensor, count: int) -> None:
        if not self.training or self.frozen:
            return
        assert self.running_mean is not None
        self.running_mean.lerp_(mean.detach(), 0.1)
        super().update(mean, var, count)


@caught_by("freeze", "NCL")
class FrozenUntilTraining(BatchNorm):
    """Freezes as `.eval()` does, and thaws in the next epoch."""

    def train(self, mode: bool = True) -> "FrozenUntilTraining":
        self.frozen = self.frozen and not mode
        return super().train(mode)


@caught_by("freeze")
class FrozenByTheBatch(BatchNorm):
    """Stops the running statistics, and goes on normalizing by those of the batch."""

    @property
    def uses_batch(self) -> bool:
        return self.training or self.num_batches_tracked is None


@caught_by("reference-batch", "NC")
class EveryBatchIsTheReference(VirtualBatchNorm):
    def normalize(self, x: Tensor) -> Tensor:
        y = super().normalize(x)
        if self.training:
            self.reference_samples.zero_()
            super().normalize(x)
        return y


@caught_by("nan-reference", "NC")
class KeepsTheFirstBatch(VirtualBatchNorm):
    """Whatever its values."""

    def take(self, mean: Tensor, var: Tensor, samples: int) -> None:
        for buffer, value in zip(self.reference, (mean, var, samples), strict=True):
            buffer.copy_(value)


@caught_by("state", "NC", raises=InputError)
class ReferenceNotLoaded(VirtualBatchNorm):
    """Knows of its reference by an attribute that no state_dict carries."""

    @property
    def has_reference(self) -> bool:
        return self.had_reference

    def _load_from_state_dict(self, *arguments: Any) -> None:
        Norm._load_from_state_dict(self, *arguments)


@caught_by("folds", "NCL")
class NoisyInEvaluation(NoisyBatchNorm):
    def normalize_by_running(self, x: Tensor) -> Tensor:
        s, m = self.noise(x, None)
        shape = (*s.shape, *[1] * (x.dim() - 2))
        return super().normalize_by_running(x) * s.view(shape) + m.view(shape)


# Large inputs


@caught_by("large-input")
class LastBlockLost(GhostBatchNorm):
    """Right for what fits one block of the cache."""

    def normalize_by_batch(self, x: Tensor, group: Group) -> Tensor:
        y = super().normalize_by_batch(x, group)
        return y if x.numel() <= kernels.SMALL else torch.cat([y[:-1], y[-1:].detach()])


@caught_by("large-input", "NCL")
class SecondGradientLost(BatchRenorm):
    """A gradient by hand that cannot be differentiated again, where the input is large."""

    def normalize_by_batch(self, x: Tensor, group: Group) -> Tensor:
        y = super().normalize_by_batch(x, group)
        return y if x.numel() <= kernels.SMALL else OnceDifferentiable.apply(y)


@caught_by("gradients-again")
class RuleOfWhatMoves(BatchRenorm):
    """Reads the running statistics themselves, which have moved when a second gradient computes the rule again."""

    def before(self) -> dict[str, Tensor]:
        return dict(self.named_buffers())


@caught_by("gradients-again", "NCL")
class OneGraphForAllGradients(PowerNorm):
    """After a gradient that is to be differentiated again, takes every other for its derivative."""

    def rule(self, mean: Tensor, var: Tensor, *, once: Any, **given: Any) -> tuple[Tensor, ...]:
        once.transformed = True
        return super().rule(mean, var, once=once, **given)


class OnceDifferentiable(torch.autograd.Function):
    """The identity, whose gradient does not know where it came from."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return grad_outputs[0].detach().clone()


@caught_by("checkpointing")
class RepeatsFromMovedStatistics(OnlineNorm):
    """The pass that checkpointing repeats starts from the statistics that the first one has moved."""

    @property
    def before_last(self) -> None:  # type: ignore[override]
        return None

    @before_last.setter
    def before_last(self, value: object) -> None:
        pass


@caught_by("buffers-move-in-training-only")
class IteratesInEvaluation(SpectralNorm):
    def normalize(self, x: Tensor) -> Tensor:
        self.iterated(at_least_float32(x).flatten(1))
        return super().normalize(x)


# Compilers and transforms


@caught_by("compile-without-codegen", raises=TorchDynamoException)
class ReadsAValue(BatchNorm):
    def update(self, mean: Tensor, var: Tensor, count: int) -> None:
        if mean.sum().item() == mean.sum().item():  # "only when finite"
            super().update(mean, var, count)


@caught_by("compile-settings")
class RecomputedFromMovedStatistics(BatchRenorm):
    """Compiled, its backward pass computes r and d again, from running statistics that have moved meanwhile."""

    def normalize_by_batch(self, x: Tensor, group: Group) -> Tensor:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        mean, var, n = moments_of_batch(x)
        r_max, d_max = self.bounds(self.num_batches_tracked, mean.dtype)
        with torch.no_grad():
            std, running_std = (var + self.eps).sqrt(), (self.running_var + self.eps).sqrt()
            r = (std / running_std).clamp(1 / r_max, r_max)
            d = ((mean - self.running_mean) / running_std).clamp(-d_max, d_max)
        self.update(mean, var, n)
        z = normalized(x, mean, var, self.eps) * per_channel(r, x) + per_channel(d, x)
        return affine(z, self.weight, self.bias)


@caught_by("compile-without-codegen")
class CountsInPython(BatchNorm):
    steps = 0

    def normalize(self, x: Tensor) -> Tensor:
        self.steps += 1
        return super().normalize(x) * (1 + 0 * self.steps)


@caught_by("func-grad", "NC", raises=RuntimeError)
class OnlyForAutograd(BatchNorm):
    """A hand-written gradient that torch.func cannot use, taken whenever x itself is not being differentiated."""

    def normalize_by_batch(self, x: Tensor, group: Group) -> Tensor:
        if torch._C._functorch.is_functorch_wrapped_tensor(x):
            return super().normalize_by_batch(x, group)
        z, mean, var, count = batch_norm(x, None, None, self.eps)
        self.update(mean, var, count)
        assert self.weight is not None
        return affine(Scale.apply(z, per_channel(self.weight, z)), None, self.bias)


class Scale(torch.autograd.Function):
    """Without setup_context, which torch.func asks for."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x * weight

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        (dy,) = grad_outputs
        x, weight = ctx.saved_tensors
        return dy * weight, (dy * x).sum_to_size(weight.shape)


# Ranks


@caught_by("ranks")
class LocalCounts(BatchNorm):
    """The plain average of what the ranks found, however many samples each has."""

    def normalize_by_batch(self, x: Tensor, group: Group) -> Tensor:
        if group is None:
            return super().normalize_by_batch(x, group)
        mean, _, n = moments_of_batch(x)
        mean = all_reduce(mean, group) / 2
        var = all_reduce((x - per_channel(mean, x)).square().mean(over_batch(x)), group) / 2
        self.update(mean, var, 2 * n)
        return affine(normalized(x, mean, var, self.eps), self.weight, self.bias)


@caught_by("ranks", "NC")
class LocalGradient(BatchNorm):
    """The statistics of all ranks, and the gradient of this rank's share in them only."""

    def normalize_by_batch(self, x: Tensor, group: Group) -> Tensor:
        if group is None:
            return super().normalize_by_batch(x, group)
        own_mean, own_var, n = moments_of_batch(x) if len(x) else (x.sum(0) * 0, x.sum(0) * 0, 0)
        mean, var, count = merge_over_ranks(own_mean.detach(), own_var.detach(), n, group)
        self.update(mean, var, count)
        share = n / count
        mean = mean + share * (own_mean - own_mean.detach())
        var = var + share * (own_var - own_var.detach())
        return affine(normalized(x, mean, var, self.eps), self.weight, self.bias)


@caught_by("empty-ranks", "NC")
class DividesByNothing(BatchNorm):
    """NaN in the running statistics after a batch that is empty on all ranks."""

    def update(self, mean: Tensor, var: Tensor, count: int) -> None:
        if count == 0:
            mean, count = mean * float("nan"), 2
        super().update(mean, var, count)


@caught_by("ranks", "NCL")
class SameNoiseOnEveryRank(NoisyBatchNorm):
    """Every rank draws for its own samples, with the generator that all share."""

    def noise(self, x: Tensor, group: Group) -> tuple[Tensor, Tensor]:
        return super().noise(x, None)


@caught_by("ranks", "NC", raises=(AssertionError, InputError))
class SplitsOfTheRank(SplitBatchNorm):
    """Every rank cuts its own samples."""

    def normalize_by_batch(self, x: Tensor, group: Group) -> Tensor:
        return super().normalize_by_batch(x, None)


@caught_by("ranks-of-other-sizes")
class PlanesOfOneWeight(BatchRenorm):
    """Averages over images, whatever their size."""

    def rule(self, mean: Tensor, var: Tensor, *, positions: int, **given: Any) -> tuple[Tensor, ...]:
        return super().rule(mean, var, positions=1, **given)


@caught_by("ranks-of-other-ways")
class SumsAsTheyCome(BatchNorm):
    """A large input is summed in float64, a small one in its own dtype, and so the ranks meet."""

    def normalize_by_batch(self, x: Tensor, group: Group) -> Tensor:
        all_reduce(x.detach().sum(over_batch(x), dtype=torch.float64 if x.numel() > kernels.SMALL else None), group)
        return super().normalize_by_batch(x, group)


@caught_by("ranks-of-one-position")
class RefusesAlone(BatchInstanceNorm):
    """One rank raises, and the others wait for it."""

    def require_values(self, x: Tensor, count: int, group: Group) -> None:
        super().require_values(x, count, None)


@caught_by("reference-over-ranks", "NCL")
class ReferenceOfTheRank(VirtualBatchNorm):
    def rule_of_reference(self, mean: Tensor, var: Tensor, positions: int, group: Group) -> tuple[Tensor, ...]:
        return super().rule_of_reference(mean, var, positions, None)


# Facts


@caught_by("centres", "NC")
class ClaimsToCentre(RMSNorm):
    facts = replace(RMSNorm.facts, centres=True)


@caught_by("scales")
class ClaimsNoScale(TorchBatchNorm):
    facts = replace(TorchBatchNorm.facts, scales=False)


@caught_by("independence", "NCL")
class ClaimsFewerAxes(LayerNorm):
    facts = replace(LayerNorm.facts, axes=("C",))


@caught_by("cancels-bias", "NC")
class ClaimsToCancelBias(LayerNorm):
    facts = replace(LayerNorm.facts, cancels_bias=True)


@caught_by("folds", "NCL")
class ClaimsToFold(DynamicTanh):
    facts = replace(DynamicTanh.facts, folds=True)


@caught_by("dense")
class ClaimsToBeDense(InstanceNorm):
    facts = replace(InstanceNorm.facts, dense=True)


@caught_by("brings-activation", "NCL")
class ClaimsNoActivation(FilterResponseNorm):
    facts = replace(FilterResponseNorm.facts, brings_activation=False)


@caught_by("wants-partner", "NC")
class ClaimsToStandAlone(WeightStandardization):
    facts = replace(WeightStandardization.facts, wants_partner=False)


# Arguments, errors, documentation


@caught_by("wrong-arguments", raises=pytest.fail.Exception)
class TakesAnyEps(RMSNorm):
    """Never asks."""

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__(num_features)
        self.eps = eps


@caught_by("whole-numbers", raises=RuntimeError)
class TensorOfTheArgument(DynamicTanh):
    """alpha=1 makes integers, which cannot have a gradient."""

    def __init__(self, num_features: int, *, alpha: float = 0.5) -> None:
        super().__init__(num_features, alpha=alpha)
        self.alpha = nn.Parameter(torch.tensor([alpha]))


@caught_by("wrong-inputs", "NC")
class MessageWithoutTheShape(LayerNorm):
    def check(self, x: Tensor) -> None:
        try:
            super().check(x)
        except ValueError:
            raise type(self).error() from None

    @staticmethod
    def error() -> ValueError:
        from normzoo.errors import InputError

        return InputError("bad input")


@caught_by("one-value", "NC")
class ReturnsItsBias(LayerNorm):
    def normalize(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (self.num_features,), self.weight, self.bias, self.eps)


@caught_by("random", "NC")
class ClaimsToDraw(BatchNorm):
    facts = replace(BatchNorm.facts, random=True)


@caught_by("batch-multiple", "NCL")
class ClaimsToTakeFours(SplitBatchNorm):
    facts = replace(SplitBatchNorm.facts, batch_multiple=4)


@caught_by("reads-input")
class ClaimsToReadTheInput(WeightNorm):
    facts = replace(WeightNorm.facts, reads_input=True)


@caught_by("moments-of-nothing", "NC")
class ClaimsMomentsOfNothing(DynamicTanh):
    facts = replace(DynamicTanh.facts, zero_mean=True)


@caught_by("syncs")
class ClaimsToBeAlone(VirtualBatchNorm):
    facts = replace(VirtualBatchNorm.facts, syncs=False)


@caught_by("starts-as-the-paper-says")
class StartsWithoutTheIdentity(GlobalResponseNorm):
    """The layer's gain at 1 from the start: a network that the paper fine-tunes would be another one at once."""

    def __init__(self, num_features: int, *, eps: float = 1e-5) -> None:
        super().__init__(num_features, eps=eps)
        nn.init.ones_(self.weight)


@caught_by("starts-as-the-paper-says")
class IgnoresItsSteepness(DynamicTanh):
    def __init__(self, num_features: int, *, alpha: float = 0.5) -> None:
        super().__init__(num_features)


@caught_by("facts-and-documentation")
class Undocumented(GroupNorm):
    """Normalizes."""

    facts = replace(GroupNorm.facts, family="own")


@caught_by("builds-for-any-width")
class OnlyEvenWidths(GroupNorm):
    def __init__(self, num_features: int, *, num_groups: int | None = 2, eps: float = 1e-5, affine: bool = True):
        assert num_features % 2 == 0
        super().__init__(num_features, num_groups=num_groups, eps=eps, affine=affine)


# Transforms


class Scaled(torch.autograd.Function):
    """`scale x`, whose gradient is written to memory of its own: for reverse mode, one gradient at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return x * scale

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (scale,) = ctx.saved_tensors
        (dy,) = grad_outputs
        return torch.mul(dy, scale, out=torch.empty_like(dy)), None


@caught_by("forward-mode", "NCL", raises=NotImplementedError)
class WithoutForwardMode(InstanceNorm):
    """Many values take a function of their own, whatever runs the code."""

    def normalize(self, x: Tensor) -> Tensor:
        y = super().normalize(x)
        return y if y.numel() <= kernels.SMALL else Scaled.apply(y, torch.ones_like(y))


@caught_by("batched-gradients", "NCL", raises=RuntimeError)
class OneGradientAtATime(InstanceNorm):
    def normalize(self, x: Tensor) -> Tensor:
        y = super().normalize(x)
        return y if y.numel() <= kernels.SMALL else Scaled.apply(y, torch.ones_like(y))


@caught_by("ensembles", "NCL")
class EnsembleWithoutErrors(OnlineNorm):
    """Takes the statistics of an ensemble for those of a function that is transformed, which has no side effects."""

    def rule(self, mean: Tensor, var: Tensor, *, once: Any, **given: Any) -> tuple[Tensor, ...]:
        once.moved |= once.transformed
        return super().rule(mean, var, once=once, **given)


@caught_by("export", raises=Exception)
@caught_by("onnx", raises=Exception)
class FreezesTheBatch(InstanceNorm):
    """`len` of a tensor is a number of Python, which the exported program keeps."""

    def normalize(self, x: Tensor) -> Tensor:
        return super().normalize(x) * torch.ones(len(x), *[1] * (x.dim() - 1), dtype=x.dtype)


@caught_by("tracing", raises=Exception)
class FreezesItsOutput(InstanceNorm):
    def normalize(self, x: Tensor) -> Tensor:
        return super().normalize(x) if not torch.jit.is_tracing() else torch.tensor(super().normalize(x).tolist())


# Arguments of every layer


@caught_by("device-and-dtype")
class StaysOnTheCPU(ScaleNorm):
    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.weight = nn.Parameter(self.weight.to("cpu") if not self.weight.is_meta else torch.ones((), device="cpu"))


@caught_by("starts-from-meta")
class ResetsParametersOnly(BatchNorm):
    def reset_parameters(self) -> None:
        self.reset(list(self.named_parameters()))


@caught_by("resets")
class ResetsTheWeight(BatchNorm):
    def reset_running_stats(self) -> None:
        self.reset_parameters()


@caught_by("channel-dim", "NCL")
class ChannelsStayMoved(InstanceNorm):
    def forward(self, x: Tensor) -> Tensor:
        return self.normalize(x.movedim(self.channel_dim, 1)).contiguous().view_as(x)


@caught_by("tracing")
class BranchesOnASize(InstanceNorm):
    """The graph would keep the branch that the example took."""

    def normalize(self, x: Tensor) -> Tensor:
        return super().normalize(x) if x.shape[0] > 1 else torch.zeros_like(x)


@caught_by("process-group")
class SyncsEverywhere(BatchNorm):
    @property
    def group(self) -> Group:
        return ranks() if self.sync and self.uses_batch else None


@caught_by("sharded-from-meta", raises=(AssertionError, RuntimeError))
class CopiesUnsharded(BatchNorm):
    def reset(self, tensors: list[tuple[str, Tensor]]) -> None:
        new = type(self)(self.num_features).state_dict()
        for name, tensor in tensors:
            tensor.detach().copy_(new[name])


@caught_by("recalibrate")
class KeepsItsStatistics(RangeBatchNorm):
    def reset_running_stats(self) -> None:
        """Does nothing."""
