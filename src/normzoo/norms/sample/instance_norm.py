"""Instance normalization."""

import math

from torch import Tensor

from normzoo.norms._base import Facts, Paper
from normzoo.norms._checks import require_variance
from normzoo.norms._ops.groups import group_norm
from normzoo.norms._ops.ranks import Group
from normzoo.norms._ops.running import RunningStatistics
from normzoo.norms._ops.scale_shift import by_plane, standardize


class InstanceNorm(RunningStatistics):
    """Normalizes each channel of each sample by its mean and variance over positions.

    `y = weight (x - mean) / sqrt(var + eps) + bias`, mean and biased variance over positions

    Unlike torch's, it learns a scale and a shift by default, as every layer here does, keeps channels-last, always
    takes samples, and counts batches in `num_batches_tracked`.

    Args:
        num_features: number of channels C of the input (N, C, *).
        eps: added to the variance, in its units.
        momentum: weight of the newest batch in the running statistics, in [0, 1]; None for the average of all batches.
        affine: learn `weight` and `bias`, (C,) each.
        track_running_stats: keep `running_mean` and `running_var` (unbiased), (C,) each, of the average sample, and
            normalize by them in evaluation.
        bias: learn `bias`, too, if `affine`.

    Raises:
        InputError: an input without positions, (N, C); a single position, whose variance is 0; eps below 0; an
            input that is not (N, C, *).

    Reference: Dmitry Ulyanov, Andrea Vedaldi, Victor Lempitsky. Instance Normalization: The Missing Ingredient for Fast
    Stylization. 2016. arXiv 1607.08022, equation 4.
    """

    facts = Facts(
        family="sample",
        formula="y = weight (x - mean) / sqrt(var + eps) + bias",
        paper=Paper(
            title="Instance Normalization: The Missing Ingredient for Fast Stylization", year=2016, arxiv="1607.08022"
        ),
        axes=("s",),
        centres=True,
        scales=True,
        dense=False,
    )

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = False,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, bias=bias)

    def lacks_statistics(self) -> bool:
        return super().lacks_statistics() or not self.track_running_stats

    def normalize_by_batch(self, x: Tensor, group: Group) -> Tensor:
        require_variance(
            self,
            x,
            math.prod(x.shape[2:]),
            per="channel",
            remedy="use larger images or fewer strides, or take GroupNorm",
        )
        if self.num_batches_tracked is None:
            # One group per channel equals F.instance_norm, whose kernel loses channels-last.
            return group_norm(x, self.num_features, self.weight, self.bias, self.eps)
        y, mean, var = by_plane(x, self.rule, weight=self.weight, bias=self.bias)
        self.update(mean.mean(0), var.mean(0), math.prod(x.shape[2:]))
        return y

    def rule(self, mean: Tensor, var: Tensor) -> tuple[Tensor, ...]:
        return *standardize(mean, var, self.eps), mean, var
