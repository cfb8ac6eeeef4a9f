"""Batch normalization over parts of the batch."""

import math
from functools import partial

import torch
from torch import Tensor

from normzoo.norms._base import Facts, Paper
from normzoo.norms._checks import require_count
from normzoo.norms._ops.ranks import Group, samples_before
from normzoo.norms._ops.running import RunningStatistics, counts_of_parts, over_parts
from normzoo.norms._ops.scale_shift import by_plane, standardize


class GhostBatchNorm(RunningStatistics):
    """Normalizes each part ("ghost batch") of a large batch by its own statistics, like small batches.

    `y_k = weight (x_k - mean(x_k)) / sqrt(var(x_k) + eps) + bias` for the parts x_k of the batch

    The parts update the running statistics one after the other, like batches. `torch.chunk` splits the batch into
    `ceil(N / ghost_size)` parts. `running_var` averages the variances of the parts, as in `BatchNorm`; the paper
    averages their standard deviations.

    Args:
        num_features: number of channels C of the input (N, C, *).
        ghost_size: largest number of samples in a part.
        eps: added to the variance, in its units.
        momentum: weight of the newest part in the running statistics, in [0, 1]; None for the average of all parts.
        affine: learn `weight` and `bias`, (C,) each.
        track_running_stats: keep `running_mean` and `running_var` (unbiased), (C,) each, for evaluation.
        sync: split the batch of all ranks into parts, as one rank would.

    Raises:
        InputError: a part with one value per channel in training; an argument out of range; an input that is not
            (N, C, *).

    Reference: Elad Hoffer, Itay Hubara, Daniel Soudry. Train longer, generalize better: closing the generalization gap
    in large batch training of neural networks. 2017. arXiv 1705.08741, algorithm 1.
    """

    facts = Facts(
        family="batch",
        formula="y_k = weight (x_k - mean(x_k)) / sqrt(var(x_k) + eps) + bias, for parts x_k of the batch",
        paper=Paper(
            title="Train longer, generalize better: closing the generalization gap in large batch training of neural "
            "networks",
            year=2017,
            arxiv="1705.08741",
        ),
        axes=("N", "s"),
        centres=True,
        scales=True,
        stateful=True,
        train_differs=True,
        syncs=True,
        folds=True,
    )

    def __init__(
        self,
        num_features: int,
        *,
        ghost_size: int = 32,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        sync: bool = False,
    ) -> None:
        super().__init__(
            num_features, eps=eps, momentum=momentum, affine=affine, track_running_stats=track_running_stats, sync=sync
        )
        require_count(self, 1, ghost_size=ghost_size)
        self.ghost_size = ghost_size

    def normalize_by_batch(self, x: Tensor, group: Group) -> Tensor:
        before, samples = samples_before(x.shape[0], group, x.device)
        size = -(-samples // max(-(-samples // self.ghost_size), 1))
        part = torch.arange(before, before + x.shape[0], device=x.device) // max(size, 1)
        parts = -(-samples // max(size, 1))
        counts = counts_of_parts(x, before, size, parts, group)
        for count in counts:  # before any of them updates the state
            self.require_several(count, x)
        rule = partial(self.rule, part=part, parts=parts, positions=math.prod(x.shape[2:]), group=group)
        y, means, variances = by_plane(x, rule, weight=self.weight, bias=self.bias)
        for mean, var, count in zip(means, variances, counts, strict=True):
            self.update(mean, var, count)
        return y

    def rule(
        self, mean: Tensor, var: Tensor, part: Tensor, parts: int, positions: int, group: Group
    ) -> tuple[Tensor, ...]:
        means, variances = over_parts(mean, var, part, parts, positions, group)
        return *standardize(means[part], variances[part], self.eps), means, variances
