"""The evolved normalization-activation layer with statistics of the batch and of the sample."""

import math
from functools import partial

import torch
from torch import Tensor, nn

from normzoo.norms._base import Facts, Paper
from normzoo.norms._ops.blocks import in_blocks
from normzoo.norms._ops.ranks import Group, total
from normzoo.norms._ops.running import RunningStatistics, over_samples
from normzoo.norms._ops.scale import scale_per_channel
from normzoo.norms._ops.scale_shift import by_plane, plane_moments
from normzoo.norms._ops.tensors import per_channel, per_plane, plane_sums


class EvoNormB0(RunningStatistics):
    """Divides by the batch's standard deviation, or by a line in x where that is larger; includes an activation.

    `y = weight x / max(sqrt(batch_var + eps), v x + sqrt(var + eps)) + bias`, biased variances: of the channel over
    samples and positions, and of the channel of one sample over positions

    Evaluation takes `running_var` for the batch's variance. It averages the unbiased variance, as torch's batch norms
    and timm's EvoNorm2dB0 do; the paper's code averages the biased one. No mean is subtracted or tracked. On (N, C) the
    variance of a sample is 0. Without the activation it computes x / sqrt(batch_var + eps); the paper's own code then
    keeps only weight and bias. It is in the family "sample" beside `EvoNormS0`, found by the same search, although it
    is the only one there with a statistic of the batch and running statistics.

    With m the denominator, [b] 1 where it is v x + sqrt(var + eps) and 0 elsewhere, and z = x / m::

        dx = weight dy / m (1 - [b] v x / m) = weight dy / m times sqrt(var + eps) / m where [b], else 1
        dm = -weight dy z / m,   dv = sum [b] dm x

    and the gradient of each standard deviation is the sum of dm over those x for which m contains it.

    Args:
        num_features: number of channels C of the input (N, C, *).
        eps: added to the variances, in their units.
        momentum: weight of the newest batch in the running variance, in [0, 1]; None for the average of all batches.
        affine: learn `weight` and `bias`, (C,) each.
        track_running_stats: keep `running_var`, (C,), for evaluation.
        sync: take the variance over the batches of all ranks, weighted by their counts.

    Parameter `v`, (C,): the slope of each line, 1 at the start; None after `drop_activation`.

    Raises:
        InputError: an argument out of range; an input that is not (N, C, *).

    Reference: Hanxiao Liu, Andrew Brock, Karen Simonyan, Quoc V. Le. Evolving Normalization-Activation Layers. 2020.
    arXiv 2004.02967, table 2.
    """

    facts = Facts(
        family="sample",
        formula="y = weight x / max(sqrt(batch_var + eps), v x + sqrt(var + eps)) + bias",
        paper=Paper(title="Evolving Normalization-Activation Layers", year=2020, arxiv="2004.02967"),
        axes=("N", "s"),
        scales=True,
        unit_square=False,
        stateful=True,
        train_differs=True,
        syncs=True,
        brings_activation=True,
        exceptions={
            "large-and-small-scales": "float32 cannot tell the larger of the two where v x is lost beside sqrt(eps)"
        },
    )

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        sync: bool = False,
    ) -> None:
        super().__init__(
            num_features,
            eps=eps,
            momentum=momentum,
            affine=affine,
            track_running_stats=track_running_stats,
            sync=sync,
        )
        self.v: nn.Parameter | None = nn.Parameter(torch.ones(num_features))

    def add_running(self, tracked: bool) -> None:
        super().add_running(tracked)
        del self.running_mean

    def drop_activation(self) -> None:
        self.v = None

    def normalize_by_batch(self, x: Tensor, group: Group) -> Tensor:
        positions = math.prod(x.shape[2:])
        count = total(x.shape[0] * positions, group, x.device)
        if self.v is None:
            rule = partial(self.rule, positions=positions, group=group)
            y, var = by_plane(x, rule, weight=self.weight, bias=self.bias)
        else:
            mean, var = plane_moments(x)
            batch_var = over_samples(mean, var, positions, group)[1]
            y, var = self.evolved(x, batch_var, var), batch_var
        self.move(count, running_var=var * (count / max(count - 1, 1)))
        return y

    def normalize_by_running(self, x: Tensor) -> Tensor:
        assert self.running_var is not None
        if self.v is not None:
            return self.evolved(x, self.running_var, plane_moments(x)[1])
        scale = (self.running_var + self.eps).rsqrt()
        return scale_per_channel(x, scale if self.weight is None else scale * self.weight, None, self.bias)

    def rule(self, mean: Tensor, var: Tensor, positions: int, group: Group) -> tuple[Tensor, ...]:
        """1 / std of the batch, no shift, and the variance."""
        var = over_samples(mean, var, positions, group)[1]
        inv_std = (var + self.eps).rsqrt()
        return inv_std, torch.zeros_like(inv_std), var

    def evolved(self, x: Tensor, batch_var: Tensor, var: Tensor) -> Tensor:
        stds = (batch_var + self.eps).sqrt(), (var + self.eps).sqrt()
        tensors = stds[0], self.v, self.weight, self.bias
        return in_blocks(over_larger, x, *tensors, tables=stds[1:], gradient=gradient_of_over_larger)


def over_larger(
    x: Tensor, std: Tensor, batch_std: Tensor, v: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    """`weight x / max(batch_std, v x + std) + bias`."""
    line = x * per_channel(v, x) + per_plane(std, x)
    y = x / torch.maximum(line, per_channel(batch_std, x))
    y = y if weight is None else y * per_channel(weight, x)
    return y if bias is None else y + per_channel(bias, x)


def gradient_of_over_larger(
    dy: Tensor, x: Tensor, std: Tensor, batch_std: Tensor, v: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The gradients of x, std, batch_std, v, weight and bias; see `EvoNormB0`."""
    v_, std_, batch_std_ = per_channel(v, x), per_plane(std, x), per_channel(batch_std, x)
    m = (x * v_).add_(std_)
    # 1 or 0, as numbers: torch.where takes ten times as long as multiplying.
    on_line = torch.gt(m, batch_std_, out=torch.empty_like(m))
    inverse = torch.maximum(m, batch_std_, out=m).reciprocal_()
    z = x * inverse
    d_weight = None if weight is None else plane_sums(z * dy).sum(0)
    d_bias = None if bias is None else plane_sums(dy).sum(0)
    dz = dy * inverse
    if weight is not None:
        dz *= per_channel(weight, x)
    minus_dm = z.mul_(dz)
    d_both = plane_sums(minus_dm)
    minus_dm *= on_line
    d_line = plane_sums(minus_dm)
    d_v = -plane_sums(minus_dm.mul_(x)).sum(0)
    dx = inverse.mul_(std_).mul_(on_line).add_(1 - on_line).mul_(dz)
    return dx, -d_line, (d_line - d_both).sum(0), d_v, d_weight, d_bias
