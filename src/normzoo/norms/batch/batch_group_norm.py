"""Group normalization with statistics over the batch."""

import math
from functools import partial

import torch
from torch import Tensor

from normzoo.norms._base import Facts, Paper
from normzoo.norms._checks import require_variance
from normzoo.norms._ops.groups import resolve_groups
from normzoo.norms._ops.ranks import Group, total
from normzoo.norms._ops.running import RunningStatistics, over_samples
from normzoo.norms._ops.scale import scale_per_channel
from normzoo.norms._ops.scale_shift import by_plane, standardize


class BatchGroupNorm(RunningStatistics):
    """Normalizes each group of channels by the group's mean and variance over the batch.

    `y = weight (x - mean) / sqrt(var + eps) + bias`, mean and biased variance over samples, positions and the channels
    of a group

    With one group per channel this is `BatchNorm`. Fewer groups have more values per statistic, which helps in small
    batches. The paper splits channels and positions, flattened, into any number of groups; here, as in its experiments
    with at most C groups, a group is C / G whole channels.

    Args:
        num_features: number of channels C of the input (N, C, *).
        num_groups: groups G of C / G neighbouring channels; must divide C. None for the most groups up to 32 that have
            at least 4 channels each, as in `GroupNorm`; the paper chooses by the batch size, up to 512.
        eps: added to the variance, in its units.
        momentum: weight of the newest batch in the running statistics, in [0, 1]; None for the average of all batches.
        affine: learn `weight` and `bias`, (C,) each.
        track_running_stats: keep `running_mean` and `running_var` (unbiased), (G,) each, for evaluation.
        sync: take the statistics over the batches of all ranks, weighted by their counts.

    Raises:
        InputError: num_groups does not divide C; one value per group in training; another argument out of range; an
            input that is not (N, C, *).

    Reference: Xiao-Yun Zhou, Jiacheng Sun, Nanyang Ye, Xu Lan, Qijun Luo, Bo-Lin Lai, Pedro Esperanca, Guang-Zhong
    Yang, Zhenguo Li. Batch Group Normalization. 2020. arXiv 2012.02782.
    """

    facts = Facts(
        family="batch",
        formula="y = weight (x - mean) / sqrt(var + eps) + bias",
        paper=Paper(title="Batch Group Normalization", year=2020, arxiv="2012.02782"),
        axes=("N", "C/G", "s"),
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
        if track_running_stats:
            self.running_mean = torch.zeros(self.num_groups)
            self.running_var = torch.ones(self.num_groups)

    def normalize_by_batch(self, x: Tensor, group: Group) -> Tensor:
        count = total(x.numel() // self.num_groups, group, x.device)
        require_variance(
            self, x, count, per="group", remedy="use batches of at least 2 samples, take fewer groups, or call .eval()"
        )
        rule = partial(self.rule, positions=math.prod(x.shape[2:]), group=group)
        y, mean, var = by_plane(x, rule, weight=self.weight, bias=self.bias)
        self.update(mean, var, count)
        return y

    def rule(self, mean: Tensor, var: Tensor, positions: int, group: Group) -> tuple[Tensor, ...]:
        merged = over_samples(mean, var, positions, group)
        mean, var = (v.view(self.num_groups, -1) for v in merged)  # (C,) -> (G, C / G)
        centre = mean.mean(1)
        var = (var + (mean - centre.unsqueeze(1)).square()).mean(1)
        return *standardize(self.spread(centre), self.spread(var), self.eps), centre, var

    def normalize_by_running(self, x: Tensor) -> Tensor:
        assert self.running_mean is not None
        assert self.running_var is not None
        scale = self.spread((self.running_var + self.eps).rsqrt())
        scale = scale if self.weight is None else scale * self.weight
        return scale_per_channel(x, scale, self.spread(self.running_mean), self.bias)

    def spread(self, v: Tensor) -> Tensor:
        """Repeats the value of each group for its channels: (G,) -> (C,)."""
        return v.unsqueeze(1).expand(-1, self.num_features // self.num_groups).flatten()
