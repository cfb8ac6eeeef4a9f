"""Batch normalization by the mean absolute deviation."""

import math
from functools import partial

import torch
from torch import Tensor

from normzoo.norms._base import Facts, Paper
from normzoo.norms._ops.ranks import Group, all_reduce, total
from normzoo.norms._ops.scale_shift import by_plane
from normzoo.norms._ops.tensors import at_least_float32
from normzoo.norms.batch._running_scale import RunningScale
from normzoo.norms.batch._spread import deviations


class L1BatchNorm(RunningScale):
    """Batch normalization whose scale is the mean absolute deviation: no square and no root.

    `y = weight (x - mean) / (scale + eps) + bias`, with `scale = sqrt(pi / 2) mean(|x - mean|)` over samples, positions

    For normally distributed values the scale is the standard deviation. Another paper of the same year (Wu et al.,
    1802.09769) omits the constant, which `weight` can learn. Neither has an eps or a running scale: here both are in
    units of the scale.

    Args:
        num_features: number of channels C of the input (N, C, *).
        eps: added to the scale, in its units.
        momentum: weight of the newest batch in the running statistics, in [0, 1]; None for the average of all batches.
        affine: learn `weight` and `bias`, (C,) each.
        track_running_stats: keep `running_mean` and `running_scale`, (C,) each, for evaluation.
        bias: learn `bias`, too, if `affine`.
        sync: take the statistics over the batches of all ranks, weighted by their counts.
        process_group: the ranks to synchronize over; None for all.

    The gradient, where no value is the mean: with n values per channel, z = (x - mean) / (scale + eps) and d the
    gradient of z::

        dscale = -sum(d z) / (scale + eps)
        dx     = (d - mean(d)) / (scale + eps) + sqrt(pi / 2) dscale / n (sign(x - mean) - mean(sign(x - mean)))

    Raises:
        InputError: one value per channel in training; an argument out of range; an input that is not (N, C, *).

    Reference: Elad Hoffer, Ron Banner, Itay Golan, Daniel Soudry. Norm matters: efficient and accurate normalization
    schemes in deep networks. 2018. arXiv 1803.01814, section 4.
    """

    facts = Facts(
        family="batch",
        formula="y = weight (x - mean) / (scale + eps) + bias, with scale = sqrt(pi / 2) mean(|x - mean|)",
        paper=Paper(
            title="Norm matters: efficient and accurate normalization schemes in deep networks",
            year=2018,
            arxiv="1803.01814",
        ),
        axes=("N", "s"),
        centres=True,
        scales=True,
        unit_square=False,
        stateful=True,
        train_differs=True,
        syncs=True,
        folds=True,
    )

    def normalize_by_batch(self, x: Tensor, group: Group) -> Tensor:
        count = total(x.numel() // x.shape[1], group, x.device)
        self.require_several(count, x)
        wide, deviation, sign, centre = deviations(at_least_float32(x), max(count, 1), group)
        share = math.prod(x.shape[2:]) / max(count, 1)
        rule = partial(self.rule, sign=sign, centre=centre, share=share, group=group)
        y, mean, scale = by_plane(wide, rule, deviation, weight=self.weight, bias=self.bias)
        self.move(count, running_mean=mean, running_scale=scale)
        return y.to(x.dtype)

    def rule(
        self, mean: Tensor, var: Tensor, deviation: Tensor, sign: Tensor, centre: Tensor, share: float, group: Group
    ) -> tuple[Tensor, ...]:
        mean, deviation, sign = all_reduce(torch.stack([mean, deviation, sign]).sum(1) * share, group)
        # The centre is a constant: the second term is the derivative of the deviation with respect to the mean.
        scale = math.sqrt(math.pi / 2) * (deviation + sign * (centre - mean))
        inverse = 1 / (scale + self.eps)
        return inverse, -mean * inverse, mean, scale
