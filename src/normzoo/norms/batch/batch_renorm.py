"""Batch renormalization: training normalizes by the running statistics, like evaluation."""

import math
from functools import partial

import torch
from torch import Tensor

from normzoo.errors import InputError
from normzoo.norms._base import Facts, Paper
from normzoo.norms._checks import require_count, require_number
from normzoo.norms._ops.ranks import Group, total
from normzoo.norms._ops.running import RunningStatistics, over_samples
from normzoo.norms._ops.scale_shift import by_plane


class BatchRenorm(RunningStatistics):
    """Corrects batch normalization towards the running statistics, within bounds that widen over training.

    `y = weight ((x - mean) / std r + d) + bias`, with `std = sqrt(var + eps)` of the batch and, without gradient,
    `r = clip(std / running_std, 1 / r_max, r_max)` and `d = clip((mean - running_mean) / running_std, -d_max, d_max)`

    At r = 1, d = 0, where training starts, this is `BatchNorm`; within the bounds, training computes what evaluation
    does. The bounds grow linearly from 1 and 0 between step `warmup` and steps `r_steps` and `d_steps`.

    With activation checkpointing, run backward after each forward pass: a repeated pass starts from the statistics
    before the last one.

    Args:
        num_features: number of channels C of the input (N, C, *).
        r_max: final bound of the ratio of standard deviations, at least 1.
        d_max: final bound of the shift, in running standard deviations, at least 0.
        warmup: training steps with r = 1 and d = 0.
        r_steps: step at which `r_max` is reached.
        d_steps: step at which `d_max` is reached.
        eps: added to the variance, in its units.
        momentum: weight of the newest batch in the running statistics, in [0, 1]; None for the average of all batches.
        affine: learn `weight` and `bias`, (C,) each.
        sync: take the statistics over the batches of all ranks, weighted by their counts.

    Buffers `running_mean`, `running_var`: (C,). The running variance averages the biased one (torch's layers average
    the unbiased): an unbiased one would pull r below 1 in small batches. The paper averages the standard deviation; the
    variance is what `BatchNorm` keeps, so that a state_dict loads from one into the other.

    Raises:
        InputError: one value per channel in training; an argument out of range; an input that is not (N, C, *).

    Reference: Sergey Ioffe. Batch Renormalization: Towards Reducing Minibatch Dependence in Batch-Normalized Models.
    2017. arXiv 1702.03275, algorithm 1; the bounds' schedule is that of its section 4.
    """

    facts = Facts(
        family="batch",
        formula="y = weight ((x - mean) / std r + d) + bias, r and d from the running statistics, clipped",
        paper=Paper(
            title="Batch Renormalization: Towards Reducing Minibatch Dependence in Batch-Normalized Models",
            year=2017,
            arxiv="1702.03275",
        ),
        axes=("N", "s"),
        centres=True,
        scales=True,
        stateful=True,
        train_differs=True,
        syncs=True,
        folds=True,
    )

    stores_unbiased = False

    def __init__(
        self,
        num_features: int,
        *,
        r_max: float = 3.0,
        d_max: float = 5.0,
        warmup: int = 5_000,
        r_steps: int = 40_000,
        d_steps: int = 25_000,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        sync: bool = False,
    ) -> None:
        super().__init__(num_features, eps=eps, momentum=momentum, affine=affine, sync=sync)
        # The smallest values of both give BatchNorm.
        require_number(self, 1, r_max=r_max)
        require_number(self, 0, d_max=d_max)
        require_count(self, 0, warmup=warmup, r_steps=r_steps, d_steps=d_steps)
        if not warmup <= min(r_steps, d_steps):
            raise InputError(
                f"BatchRenorm(warmup={warmup}, r_steps={r_steps}, d_steps={d_steps}): the bounds widen after the "
                f"warm-up, so 0 <= warmup <= r_steps and warmup <= d_steps; lower the warm-up."
            )
        self.r_max, self.d_max = r_max, d_max
        self.warmup, self.r_steps, self.d_steps = warmup, r_steps, d_steps

    def bounds(self, steps: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The bounds of r and d after so many steps: scalars."""
        since = (steps - self.warmup).to(dtype)
        r_part = (since / max(self.r_steps - self.warmup, 1)).clamp(0, 1)
        d_part = (since / max(self.d_steps - self.warmup, 1)).clamp(0, 1)
        return 1 + (self.r_max - 1) * r_part, self.d_max * d_part

    def normalize_by_batch(self, x: Tensor, group: Group) -> Tensor:
        count = total(x.numel() // x.shape[1], group, x.device)
        self.require_several(count, x)
        rule = partial(self.rule, before=self.before(), positions=math.prod(x.shape[2:]), group=group)
        y, mean, var = by_plane(x, rule, weight=self.weight, bias=self.bias)
        self.update(mean, var, count)
        return y

    def rule(
        self, mean: Tensor, var: Tensor, before: dict[str, Tensor], positions: int, group: Group
    ) -> tuple[Tensor, ...]:
        mean, var = over_samples(mean, var, positions, group)
        std, running_std = (var + self.eps).sqrt(), (before["running_var"] + self.eps).sqrt()
        r_max, d_max = self.bounds(before["num_batches_tracked"], running_std.dtype)
        r = (std / running_std).clamp(1 / r_max, r_max).detach()
        d = ((mean - before["running_mean"]) / running_std).clamp(-d_max, d_max).detach()
        return r / std, d - mean * r / std, mean, var
