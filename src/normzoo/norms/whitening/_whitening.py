"""The base of whitening layers: groups of channels, a running mean and a running matrix per group."""

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from normzoo.norms._ops.groups import resolve_groups
from normzoo.norms._ops.ranks import Group, total
from normzoo.norms._ops.running import RunningStatistics
from normzoo.norms.whitening._matrices import by_group, over_ranks


class Whitening(RunningStatistics):
    """A layer that multiplies the channels of each group by a matrix that decorrelates them over the batch.

    A subclass implements the abstract methods, and sets `running_matrix`, the name of a buffer.

    Args:
        num_features: number of channels C.
        num_groups: groups G; None for groups of the largest size up to `largest_group` that divides C.
        eps: added to the variances, in their units.
        momentum: weight of the newest batch in the running statistics, in [0, 1]; None for the average of all batches.
        affine: learn a `weight` and a `bias` per channel.
        track_running_stats: keep running statistics. Without them, evaluation uses those of the batch.
        sync: take the statistics over the batches of all ranks, weighted by their counts.
    """

    running_matrix: ClassVar[str]

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
        if num_groups is None:
            size = max(d for d in range(1, self.largest_group() + 1) if num_features % d == 0)
            num_groups = num_features // size
        self.num_groups = resolve_groups(self, num_groups)
        identity = torch.eye(num_features // self.num_groups).repeat(self.num_groups, 1, 1)
        self.register_buffer(self.running_matrix, identity if track_running_stats else None)

    def add_running(self, tracked: bool) -> None:
        self.register_buffer("running_mean", torch.zeros(self.num_features) if tracked else None)
        self.register_buffer("num_batches_tracked", torch.tensor(0) if tracked else None)

    def largest_group(self) -> int:
        """The largest number of channels in a group by default."""
        raise NotImplementedError

    def whitening(self, cov: Tensor) -> Tensor:
        """The matrices (G, d, d) from the covariances, in float64."""
        raise NotImplementedError

    def to_average(self, cov: Tensor, matrix: Tensor, count: int) -> Tensor:
        """The matrices (G, d, d) to average in `running_matrix`."""
        raise NotImplementedError

    def evaluation_matrix(self) -> Tensor:
        """The matrices (G, d, d) of evaluation, from the running averages, in float64."""
        raise NotImplementedError

    def normalize_by_batch(self, x: Tensor, group: Group) -> Tensor:
        own = x.numel() // x.shape[1]
        count = total(own, group, x.device)
        self.require_several(count, x)
        rule = partial(self.rule, share=own / max(count, 1), group=group)
        y, mean, cov, matrix = by_group(x, rule, self.num_groups, self.weight, self.bias)
        average = self.to_average(cov, matrix, count)
        # A group with a value that is not finite is not averaged.
        average = average + 0 * average.sum((1, 2), keepdim=True)
        self.move(count, running_mean=mean, **{self.running_matrix: average})
        return y

    def rule(self, mean: Tensor, cov: Tensor, share: float, group: Group) -> tuple[Tensor, ...]:
        mean, cov = over_ranks(mean, cov, share, group)
        matrix = self.whitening(cov)
        return matrix, mean, mean, cov, matrix

    def normalize_by_running(self, x: Tensor) -> Tensor:
        matrix = self.evaluation_matrix()
        given = self.weight, self.bias, self.running_mean
        return by_group(x, lambda mean, cov: (matrix, mean), self.num_groups, *given)[0]
