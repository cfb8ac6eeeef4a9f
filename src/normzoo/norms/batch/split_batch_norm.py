"""Batch normalization of the parts of a batch, each with its own scale, shift and statistics."""

import math
from functools import partial

import torch
from torch import Tensor, nn

from normzoo.errors import InputError
from normzoo.norms._base import Facts, Paper
from normzoo.norms._checks import require_count, require_variance
from normzoo.norms._ops.ranks import Group, samples_before
from normzoo.norms._ops.running import RunningStatistics, counts_of_parts, over_parts
from normzoo.norms._ops.scale import scale_per_channel
from normzoo.norms._ops.scale_shift import by_plane, standardize
from normzoo.norms.batch.batch_norm import BatchNorm


class SplitBatchNorm(RunningStatistics):
    """Normalizes each part of a batch separately, for batches that mix distributions; evaluation uses the first.

    `y_k = weight_k (x_k - mean(x_k)) / sqrt(var(x_k) + eps) + bias_k` for the K equal parts x_k of the batch

    The paper trains on a batch of clean samples followed by as many adversarial ones. The layer itself normalizes the
    first part, auxiliary layers the others; evaluation, and a frozen layer, treat all samples as the first part. Names
    are those of timm's `SplitBatchNorm2d`; a state_dict loads from one into the other.

    Args:
        num_features: number of channels C of the input (N, C, *).
        eps: added to the variance, in its units.
        momentum: weight of the newest batch in the running statistics, in [0, 1]; None for the average of all batches.
        affine: learn `weight` and `bias`, (C,) each, for every part.
        track_running_stats: keep `running_mean` and `running_var` (unbiased), (C,) each, for every part.
        num_splits: equal parts K of a batch in training, at least 2; must divide its number of samples.
        sync: split the batch of all ranks into parts, as one rank would.

    Modules `aux_bn`: K - 1 layers `BatchNorm`, with the parameters and buffers of the parts after the first.

    Raises:
        InputError: in training, a batch that K does not divide, or a part with one value per channel; an argument out
            of range; an input that is not (N, C, *).

    Reference: Cihang Xie, Mingxing Tan, Boqing Gong, Jiang Wang, Alan Yuille, Quoc V. Le. Adversarial Examples Improve
    Image Recognition. 2019. arXiv 1911.09665, section 4.2.
    """

    facts = Facts(
        family="batch",
        formula="y_k = weight_k (x_k - mean(x_k)) / sqrt(var(x_k) + eps) + bias_k, for K equal parts x_k of the batch",
        paper=Paper(title="Adversarial Examples Improve Image Recognition", year=2019, arxiv="1911.09665"),
        axes=("N", "s"),
        centres=True,
        scales=True,
        stateful=True,
        batch_multiple=2,
        train_differs=True,
        syncs=True,
        folds=True,
    )

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        num_splits: int = 2,
        *,
        sync: bool = False,
    ) -> None:
        super().__init__(
            num_features, eps=eps, momentum=momentum, affine=affine, track_running_stats=track_running_stats, sync=sync
        )
        require_count(self, 2, num_splits=num_splits)
        self.num_splits = num_splits
        self.aux_bn = nn.ModuleList(
            BatchNorm(num_features, eps=eps, momentum=momentum, affine=affine, track_running_stats=track_running_stats)
            for _ in range(num_splits - 1)
        )

    @property
    def layers(self) -> list[RunningStatistics]:
        """The layers of this forward pass: this one, and in training the auxiliary ones."""
        return [self, *self.aux_bn] if self.training and not self.frozen else [self]

    def stacked(self, name: str) -> Tensor | None:
        """A parameter of these layers, (K, C)."""
        if not self.affine:
            return None
        values = [getattr(layer, name) for layer in self.layers]
        # Parameters that evaluation does not use get a gradient of 0, since DDP waits for every parameter.
        return torch.stack(values) + sum(p[:0].sum() for p in self.aux_bn.parameters())

    def normalize_by_batch(self, x: Tensor, group: Group) -> Tensor:
        layers = self.layers
        before, samples = samples_before(x.shape[0], group, x.device)
        if samples % len(layers):
            raise InputError(
                f"SplitBatchNorm(num_splits={self.num_splits}) got an input of shape {tuple(x.shape)}: {samples} "
                f"samples are no {self.num_splits} equal parts; use batches of a multiple of {self.num_splits} (drop "
                f"the last, smaller batch)."
            )
        size = samples // len(layers)
        counts = counts_of_parts(x, before, size, len(layers), group)
        remedy = f"use batches of at least {2 * len(layers)} samples, or, with running statistics, call .eval()"
        require_variance(self, x, min(counts), per="channel of a part", remedy=remedy)
        part = torch.arange(before, before + x.shape[0], device=x.device) // max(size, 1)
        rule = partial(self.rule, part=part, parts=len(layers), positions=math.prod(x.shape[2:]), group=group)
        y, means, variances = by_plane(x, rule, self.stacked("weight"), self.stacked("bias"))
        for layer, mean, var, count in zip(layers, means, variances, counts, strict=True):
            layer.update(mean, var, count)
        return y

    def normalize_by_running(self, x: Tensor) -> Tensor:
        assert self.running_mean is not None
        assert self.running_var is not None
        scale, weight, bias = (self.running_var + self.eps).rsqrt(), self.stacked("weight"), self.stacked("bias")
        scale = scale if weight is None else scale * weight[0]
        return scale_per_channel(x, scale, self.running_mean, None if bias is None else bias[0])

    def rule(
        self,
        mean: Tensor,
        var: Tensor,
        weights: Tensor | None,
        biases: Tensor | None,
        part: Tensor,
        parts: int,
        positions: int,
        group: Group,
    ) -> tuple[Tensor, ...]:
        means, variances = over_parts(mean, var, part, parts, positions, group)
        scale, shift = standardize(means, variances, self.eps)  # (K, C)
        if weights is not None:
            scale, shift = weights * scale, weights * shift
        if biases is not None:
            shift = shift + biases
        return scale[part], shift[part], means, variances
