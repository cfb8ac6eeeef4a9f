"""Batch normalization by the range."""

import math
from functools import partial

import torch
from torch import Tensor

from normzoo.norms._base import Facts, Paper
from normzoo.norms._ops.ranks import Group, all_reduce, total
from normzoo.norms._ops.scale_shift import by_plane
from normzoo.norms._ops.tensors import at_least_float32
from normzoo.norms.batch._running_scale import RunningScale
from normzoo.norms.batch._spread import extents


class RangeBatchNorm(RunningScale):
    """Batch normalization whose scale is the range of the values, without squares, for low-precision arithmetic.

    `y = weight (x - mean) / (scale + eps) + bias`, with `scale = (max(x) - min(x)) / sqrt(2 ln n)` over the n values of
    a channel, samples and positions

    For normally distributed values the scale is about twice the standard deviation, for which `weight` can compensate,
    as in the paper. Its authors' code multiplies the scale by 0.54, averages the ranges of 16 parts of the batch, and
    stores the inverse; here the range is that of the whole batch, as in the paper. The paper has no eps.

    Args:
        num_features: number of channels C of the input (N, C, *).
        eps: added to the scale, in its units.
        momentum: weight of the newest batch in the running statistics, in [0, 1]; None for the average of all batches.
        affine: learn `weight` and `bias`, (C,) each.
        track_running_stats: keep `running_mean` and `running_scale`, (C,) each, for evaluation.
        bias: learn `bias`, too, if `affine`.
        sync: take the statistics over the batches of all ranks, weighted by their counts.
        process_group: the ranks to synchronize over; None for all.

    The gradient of the maximum goes to the largest value, in equal shares if there are several; so that of the minimum.
    With z = (x - mean) / (scale + eps), d the gradient of z, and k(v) how many values of the channel are v::

        dscale = -sum(d z) / (scale + eps)
        dx     = (d - mean(d)) / (scale + eps) + dscale / sqrt(2 ln n) ([x = max] / k(max) - [x = min] / k(min))

    Raises:
        InputError: one value per channel in training; an argument out of range; an input that is not (N, C, *).

    Reference: Ron Banner, Itay Hubara, Elad Hoffer, Daniel Soudry. Scalable Methods for 8-bit Training of Neural
    Networks. 2018. arXiv 1805.11046, section 3.
    """

    facts = Facts(
        family="batch",
        formula="y = weight (x - mean) / (scale + eps) + bias, with scale = (max(x) - min(x)) / sqrt(2 ln n)",
        paper=Paper(title="Scalable Methods for 8-bit Training of Neural Networks", year=2018, arxiv="1805.11046"),
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
        wide, extent, slope = extents(at_least_float32(x), group)
        factor = 1 / math.sqrt(2 * math.log(max(count, 2)))
        share = math.prod(x.shape[2:]) / max(count, 1)
        rule = partial(self.rule, extent=extent, factor=factor, share=share, group=group)
        y, mean, scale = by_plane(wide, rule, slope, weight=self.weight, bias=self.bias)
        self.move(count, running_mean=mean, running_scale=scale)
        return y.to(x.dtype)

    def rule(
        self, mean: Tensor, var: Tensor, slope: Tensor, extent: Tensor, factor: float, share: float, group: Group
    ) -> tuple[Tensor, ...]:
        mean, slope = all_reduce(torch.stack([mean * share, slope]).sum(1), group)
        scale = factor * (extent + slope)
        inverse = 1 / (scale + self.eps)
        return inverse, -mean * inverse, mean, scale
