"""Batch-channel normalization: batch norm, followed by group norm."""

from functools import partial

import torch
from torch import Tensor, nn

from normzoo.norms._base import Facts, Paper
from normzoo.norms._ops.groups import resolve_groups
from normzoo.norms._ops.scale_shift import about, by_plane, standardize
from normzoo.norms._ops.tensors import inverse_root
from normzoo.norms.mixed._mixed import MixedStatistics, OfBatch


class BatchChannelNorm(MixedStatistics):
    """Normalizes each channel over the batch, then each group of channels of each sample.

    `y = group_weight (z - mean(z)) / sqrt(var(z) + eps) + group_bias`, mean and biased variance over the channels and
    positions of a group, `z = weight (x - mean(x)) / sqrt(var(x) + eps) + bias` over samples and positions

    The first step keeps channels away from the singularity at which they stop learning, the second works in small
    batches. As in the authors' code, the second scale and shift are one value per group (`GroupNorm` has one per
    channel); with `affine=False` both steps have none. The paper's variant for micro-batches, whose first step trains
    on running estimates, is not this layer.

    Args:
        num_features: number of channels C of the input (N, C, *).
        num_groups: groups G of C / G neighbouring channels; must divide C. None for the most groups up to the paper's
            32 that have at least 4 channels each, which works for every C and (N, C).
        eps: added to the variances, in their units.
        momentum: weight of the newest batch in the running statistics, in [0, 1]; None for the average of all batches.
        affine: learn `weight` and `bias`, (C,) each, and `group_weight` and `group_bias`, (G,) each.
        track_running_stats: keep `running_mean` and `running_var` (unbiased), (C,) each, for evaluation.
        sync: take the batch's statistics over the batches of all ranks, weighted by their counts.

    Raises:
        InputError: one value per channel in training; num_groups does not divide C; an argument out of range; an input
            that is not (N, C, *).

    Reference: Siyuan Qiao, Huiyu Wang, Chenxi Liu, Wei Shen, Alan Yuille. Rethinking Normalization and Elimination
    Singularity in Neural Networks. 2019. arXiv 1911.09738, section 4.
    """

    facts = Facts(
        family="mixed",
        formula="y = group_weight (z - mean(z)) / sqrt(var(z) + eps) + group_bias, z the output of batch norm",
        paper=Paper(
            title="Rethinking Normalization and Elimination Singularity in Neural Networks",
            year=2019,
            arxiv="1911.09738",
        ),
        axes=("N", "C/G", "s"),
        centres=True,
        scales=True,
        cancels_bias=True,
        stateful=True,
        train_differs=True,
        syncs=True,
    )

    def __init__(
        self,
        num_features: int,
        *,
        num_groups: int | None = None,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        sync: bool = False,
    ) -> None:
        super().__init__(
            num_features, eps=eps, momentum=momentum, affine=affine, track_running_stats=track_running_stats, sync=sync
        )
        self.num_groups = resolve_groups(self, num_groups)
        self.group_weight = nn.Parameter(torch.ones(self.num_groups)) if affine else None
        self.group_bias = nn.Parameter(torch.zeros(self.num_groups)) if affine else None

    def normalize_by(self, x: Tensor, of_batch: OfBatch) -> tuple[Tensor, ...]:
        learned = self.weight, self.bias, self.group_weight, self.group_bias
        return by_plane(x, partial(self.rule, of_batch=of_batch), *learned)

    def rule(
        self,
        mean: Tensor,
        var: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        group_weight: Tensor | None,
        group_bias: Tensor | None,
        of_batch: OfBatch,
    ) -> tuple[Tensor, ...]:
        of = of_batch(mean, var)
        scale, _ = standardize(*of, self.eps)
        scale = scale if weight is None else scale * weight
        # The means and variances of the planes of z, and from them those of its groups.
        z_mean = (mean - of[0]) * scale
        z_mean = z_mean if bias is None else z_mean + bias
        grouped = z_mean.unflatten(1, (self.num_groups, -1))
        group_mean = grouped.mean(2, keepdim=True)
        z_var = (var * scale.square()).unflatten(1, (self.num_groups, -1))
        inv_std = inverse_root((z_var + (grouped - group_mean).square()).mean(2, keepdim=True) + self.eps)
        gain = inv_std if group_weight is None else inv_std * group_weight.unsqueeze(1)
        # y = gain (z - group_mean) + group_bias, and z = z_mean + scale (x - mean) in each plane
        level = (grouped - group_mean) * gain
        level = level if group_bias is None else level + group_bias.unsqueeze(1)
        slope = (scale.unflatten(0, (self.num_groups, -1)) * gain).flatten(1)
        return *about(mean, slope, level.flatten(1)), *of
