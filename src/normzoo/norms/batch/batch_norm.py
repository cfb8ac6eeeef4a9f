"""Batch normalization."""

import torch
from torch import Tensor, nn

from normzoo.errors import InputError
from normzoo.norms._base import Facts, Paper
from normzoo.norms._ops.ranks import Group
from normzoo.norms._ops.running import RunningStatistics
from normzoo.norms.batch._normalize import batch_norm, masked_batch_norm


class BatchNorm(RunningStatistics, nn.BatchNorm2d):  # type: ignore[misc] # torch declares no None for bias
    """Normalizes each channel by its mean and variance over the batch, and learns a scale and a shift.

    `y = weight (x - mean) / sqrt(var + eps) + bias`, mean and biased variance over samples and positions.

    Parameters, buffers and their meaning are those of `torch.nn.BatchNorm2d`; a state_dict loads from one into the
    other. The gradient is derived in `normzoo.norms.batch._normalize.Normalize`. `norm(x, mask)` ignores padding;
    `norm.freeze()` fixes the running statistics and normalizes by them, in training too.

    Differences from torch: running statistics stay float32 under `.half()` and `.bfloat16()`; an empty batch is not
    counted; a channel with NaN or infinity in a batch keeps its running statistics, which would otherwise stay NaN (the
    output is NaN, too); `torch.func` transforms and activation checkpointing update them at most once; gradients are
    differentiable again.

    Args:
        num_features: number of channels C of the input (N, C, *).
        eps: added to the variance, in its units.
        momentum: weight of the newest batch in the running statistics, in [0, 1]; None for the average of all batches.
        affine: learn `weight` and `bias`, (C,) each.
        track_running_stats: keep `running_mean` and `running_var` (unbiased), (C,) each, for evaluation.
        bias: learn `bias`, too, if `affine`.
        sync: take the statistics over the batches of all ranks, weighted by their counts.
        process_group: the ranks to synchronize over; None for all.

    Raises:
        InputError: one value per channel in training; an argument out of range; an input that is not (N, C, *).

    Reference: Sergey Ioffe, Christian Szegedy. Batch Normalization: Accelerating Deep Network Training by Reducing
    Internal Covariate Shift. 2015. arXiv 1502.03167, algorithms 1 and 2.
    """

    facts = Facts(
        family="batch",
        formula="y = weight (x - mean) / sqrt(var + eps) + bias",
        paper=Paper(
            title="Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift",
            year=2015,
            arxiv="1502.03167",
        ),
        axes=("N", "s"),
        centres=True,
        scales=True,
        stateful=True,
        train_differs=True,
        syncs=True,
        folds=True,
    )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalizes x.

        Args:
            x: (N, C, *).
            mask: (N, *), bool, True for values and False for padding: padding has no part in the statistics, its
                output and its gradient are 0, and its values do not matter.

        Raises:
            InputError: a mask of another shape or dtype; or an error of the class.
        """
        if mask is None:
            return super().forward(x)
        self.check(x)
        y = self.normalize_masked(x.movedim(self.channel_dim, 1), mask)
        return y.movedim(1, self.channel_dim)

    def normalize_masked(self, x: Tensor, mask: Tensor) -> Tensor:
        """`normalize` of the values that are not padding."""
        check_mask(self, x, mask)
        padded = mask.unsqueeze(1).logical_not()
        if not self.uses_batch:
            return self.normalize_by_running(x.masked_fill(padded, 0)).masked_fill(padded, 0)
        y, mean, var, count = masked_batch_norm(x, padded, self.weight, self.bias, self.eps, self.group)
        if not torch.compiler.is_compiling():  # compiled code cannot read the values of a tensor
            self.require_several(int(count), x)
        self.move(count, running_mean=mean, running_var=var * (count / (count - 1).clamp_min(1)))
        return y

    def normalize_by_batch(self, x: Tensor, group: Group) -> Tensor:
        y, mean, var, count = batch_norm(x, self.weight, self.bias, self.eps, group)
        self.require_several(count, x)
        self.update(mean, var, count)
        return y


def check_mask(layer: BatchNorm, x: Tensor, mask: Tensor) -> None:
    """Raises `InputError` unless the mask fits x."""
    want = (x.shape[0], *x.shape[2:])
    if mask.dtype != torch.bool or tuple(mask.shape) != want:
        raise InputError(
            f"{type(layer).__name__} got a mask of {mask.dtype} and shape {tuple(mask.shape)} for an input of shape "
            f"{tuple(x.shape)}; give one of torch.bool and shape {want}, True for values."
        )
