"""Instance-batch normalization (IBN): instance norm for half of the channels, batch norm for the others."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from normzoo.norms._base import Facts, Paper
from normzoo.norms._checks import require_variance
from normzoo.norms._ops.ranks import Group, least
from normzoo.norms._ops.scale_shift import by_plane, standardize
from normzoo.norms.mixed._mixed import MixedStatistics, OfBatch

# The names of the two layers in IBN-Net, and in pytorchcv.
HALVES = (("IN.", "BN."), ("inst_norm.", "batch_norm."))


class InstanceBatchNorm(MixedStatistics):
    """Normalizes the first half of the channels as instance norm does, and the others as batch norm does.

    `y = weight (x - mean) / sqrt(var + eps) + bias`, mean and biased variance over positions for the first C // 2
    channels, over samples and positions for the others

    This is the layer of IBN-Net's blocks "a", in the authors' order; their code fails for an odd C, for which here
    batch norm gets the larger half. A single channel is normalized by batch norm.

    Args:
        num_features: number of channels C of the input (N, C, *).
        eps: added to the variance, in its units.
        momentum: weight of the newest batch in the running statistics, in [0, 1]; None for the average of all batches.
        affine: learn `weight` and `bias`, (C,) each.
        track_running_stats: keep running statistics for evaluation.
        bias: learn `bias`, too, if `affine`.
        sync: take the statistics over the batches of all ranks, weighted by their counts.
        process_group: the ranks to synchronize over; None for all.

    Buffers `running_mean` and `running_var` (unbiased): (C - C // 2,), of the channels of batch norm. A state_dict of
    `IBN` of IBN-Net or pytorchcv, which have two layers, loads too.

    Raises:
        InputError: an input without positions, (N, C); one value per channel, or of a sample's channel, in training; an
            argument out of range; an input that is not (N, C, *).

    Reference: Xingang Pan, Ping Luo, Jianping Shi, Xiaoou Tang. Two at Once: Enhancing Learning and Generalization
    Capacities via IBN-Net. 2018. arXiv 1807.09441, section 3.2.
    """

    facts = Facts(
        family="mixed",
        formula="y = weight (x - mean) / sqrt(var + eps) + bias, half of the channels by instance, half by batch",
        paper=Paper(
            title="Two at Once: Enhancing Learning and Generalization Capacities via IBN-Net",
            year=2018,
            arxiv="1807.09441",
        ),
        axes=("N", "s"),
        centres=True,
        scales=True,
        stateful=True,
        train_differs=True,
        dense=False,
        syncs=True,
    )

    def add_running(self, tracked: bool) -> None:
        self.instance_channels = self.num_features // 2
        by_batch = self.num_features - self.instance_channels
        self.register_buffer("running_mean", torch.zeros(by_batch) if tracked else None)
        self.register_buffer("running_var", torch.ones(by_batch) if tracked else None)
        self.register_buffer("num_batches_tracked", torch.tensor(0) if tracked else None)

    def require_values(self, x: Tensor, count: int, group: Group) -> None:
        super().require_values(x, count, group)
        if self.instance_channels > 0:
            remedy = "use larger images or fewer strides, or take BatchNorm"
            require_variance(self, x, least(math.prod(x.shape[2:]), group, x.device), per="channel", remedy=remedy)

    def normalize_by(self, x: Tensor, of_batch: OfBatch) -> tuple[Tensor, ...]:
        return by_plane(x, partial(self.rule, of_batch=of_batch), weight=self.weight, bias=self.bias)

    def rule(self, mean: Tensor, var: Tensor, of_batch: OfBatch) -> tuple[Tensor, ...]:
        first = self.instance_channels
        of = of_batch(mean[:, first:], var[:, first:])
        mean, var = (
            torch.cat([own[:, :first], shared.to(own.dtype).expand_as(own[:, first:])], 1)
            for own, shared in zip((mean, var), of, strict=True)
        )
        return *standardize(mean, var, self.eps), *of

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        for halves in HALVES:
            instance, batch = (prefix + name for name in halves)
            for name in ("weight", "bias"):
                parts = [state_dict.pop(half + name) for half in (instance, batch) if half + name in state_dict]
                if parts:
                    state_dict[prefix + name] = torch.cat(parts)
            for name in ("running_mean", "running_var", "num_batches_tracked"):
                if batch + name in state_dict:
                    state_dict[prefix + name] = state_dict.pop(batch + name)
        super()._load_from_state_dict(state_dict, prefix, *others)
