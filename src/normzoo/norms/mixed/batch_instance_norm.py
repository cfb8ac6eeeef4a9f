"""Batch-instance normalization: a learned gate between batch norm and instance norm per channel."""

import math
from functools import partial

import torch
from torch import Tensor, nn

from normzoo.norms._base import Facts, Paper
from normzoo.norms._checks import require_variance
from normzoo.norms._ops.ranks import Group, least
from normzoo.norms._ops.scale_shift import about, by_plane
from normzoo.norms._ops.tensors import inverse_root
from normzoo.norms.mixed._mixed import MixedStatistics, OfBatch, to_unit_interval


class BatchInstanceNorm(MixedStatistics):
    """Mixes batch norm and instance norm by a gate per channel, which learns how much style to keep.

    `y = weight (gate x_B + (1 - gate) x_I) + bias`, x_B normalized over samples and positions, x_I over positions alone

    The gate stays in [0, 1]. The paper clips the parameter after every update; here the forward pass clips it, which
    works in any training loop. The gradient is 0 only where it would push the gate further out, so a gate outside of
    [0, 1] can return. Under DDP without `sync`, each rank decides that by its own part of the gradient.

    Args:
        num_features: number of channels C of the input (N, C, *).
        eps: added to the variance, in its units.
        momentum: weight of the newest batch in the running statistics, in [0, 1]; None for the average of all batches.
        affine: learn `weight` and `bias`, (C,) each.
        track_running_stats: keep `running_mean` and `running_var` (unbiased), (C,) each, of x_B for evaluation.
        bias: learn `bias`, too, if `affine`.
        sync: take the batch's statistics over the batches of all ranks, weighted by their counts.
        process_group: the ranks to synchronize over; None for all.

    Parameter `gate`: (C,), which starts at 1, as `BatchNorm`. The authors train it at ten times the learning rate of
    the other parameters and without weight decay.

    Raises:
        InputError: an input without positions, (N, C); a single position in training, whose variance is 0; an argument
            out of range; an input that is not (N, C, *).

    Reference: Hyeonseob Nam, Hyo-Eun Kim. Batch-Instance Normalization for Adaptively Style-Invariant Neural Networks.
    2018. arXiv 1805.07925, equations 3 and 4.
    """

    facts = Facts(
        family="mixed",
        formula="y = weight (gate x_B + (1 - gate) x_I) + bias",
        paper=Paper(
            title="Batch-Instance Normalization for Adaptively Style-Invariant Neural Networks",
            year=2018,
            arxiv="1805.07925",
        ),
        axes=("N", "s"),
        centres=True,
        scales=True,
        stateful=True,
        train_differs=True,
        dense=False,
        syncs=True,
        gates=("gate",),
    )

    def add_affine(self, *, weight: bool = True, bias: bool = True) -> None:
        self.gate = nn.Parameter(torch.ones(self.num_features))
        super().add_affine(weight=weight, bias=bias)

    def require_values(self, x: Tensor, count: int, group: Group) -> None:
        remedy = "use larger images or fewer strides, or take BatchNorm"
        require_variance(self, x, least(math.prod(x.shape[2:]), group, x.device), per="channel", remedy=remedy)

    def normalize_by(self, x: Tensor, of_batch: OfBatch) -> tuple[Tensor, ...]:
        gate = to_unit_interval(self.gate, self.group)
        return by_plane(x, partial(self.rule, of_batch=of_batch), gate, weight=self.weight, bias=self.bias)

    def rule(self, mean: Tensor, var: Tensor, gate: Tensor, of_batch: OfBatch) -> tuple[Tensor, ...]:
        of = of_batch(mean, var)
        batch, instance = (inverse_root(v + self.eps) for v in (of[1], var))
        return *about(mean, instance + gate * (batch - instance), gate * batch * (mean - of[0])), *of
