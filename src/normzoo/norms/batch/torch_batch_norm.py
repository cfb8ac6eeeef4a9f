"""Batch normalization by torch."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normzoo.norms._base import Facts
from normzoo.norms._ops.ranks import Group
from normzoo.norms._ops.running import RunningStatistics
from normzoo.norms._ops.tensors import at_least_float32
from normzoo.norms.batch._normalize import batch_norm
from normzoo.norms.batch.batch_norm import BatchNorm


class TorchBatchNorm(RunningStatistics, nn.BatchNorm2d):  # type: ignore[misc] # torch declares no None for bias
    """`BatchNorm` by torch's own kernel: the same arguments, equation and state, for comparison and for speed.

    `y = weight (x - mean) / sqrt(var + eps) + bias`, mean and biased variance over samples and positions.

    Args:
        num_features: number of channels C of the input (N, C, *).
        eps: added to the variance, in its units.
        momentum: weight of the newest batch in the running statistics, in [0, 1]; None for the average of all batches.
        affine: learn `weight` and `bias`, (C,) each.
        track_running_stats: keep `running_mean` and `running_var` (unbiased), (C,) each, for evaluation.
        bias: learn `bias`, too, if `affine`.
        sync: take the statistics over the batches of all ranks, weighted by their counts; this uses `BatchNorm`.
        process_group: the ranks to synchronize over; None for all.

    Raises:
        InputError: one value per channel in training; an argument out of range; an input that is not (N, C, *).

    Reference: `torch.nn.functional.batch_norm`, after Sergey Ioffe, Christian Szegedy. Batch Normalization:
    Accelerating Deep Network Training by Reducing Internal Covariate Shift. 2015. arXiv 1502.03167.
    """

    facts = Facts(
        family="batch",
        formula=BatchNorm.facts.formula,
        paper=BatchNorm.facts.paper,
        axes=("N", "s"),
        centres=True,
        scales=True,
        stateful=True,
        train_differs=True,
        syncs=True,
        folds=True,
        exceptions={
            "checkpointing": "in torch the forward pass that checkpointing repeats moves the running statistics again",
            "nan-batch": "torch's kernel moves the running statistics to NaN, and they stay NaN",
            "compile-settings": "for momentum=None the kernel needs the number of batches as a number, not a tensor",
        },
    )

    def normalize_by_batch(self, x: Tensor, group: Group) -> Tensor:
        # The kernel does not support ranks, and torch's SyncBatchNorm does not support gloo.
        if group is not None or self.is_refused(x):
            y, batch_mean, batch_var, count = batch_norm(x, self.weight, self.bias, self.eps, group)
            self.require_several(count, x)
            self.update(batch_mean, batch_var, count)
            return y
        self.require_several(x.numel() // x.shape[1], x)
        mean, var, momentum = self.running_mean, self.running_var, self.momentum
        tracks = self.training and self.track_running_stats
        if not tracks:
            mean = var = None
        elif self.num_batches_tracked is not None and momentum is None:
            momentum = 1 / float(self.num_batches_tracked + 1)
        y = self.kernel(x, mean, var, True, momentum or 0.0)
        if tracks and self.num_batches_tracked is not None:  # after the kernel, which may raise
            self.num_batches_tracked.add_(1)
        return y

    def normalize_by_running(self, x: Tensor) -> Tensor:
        if self.is_refused(x):
            return super().normalize_by_running(x)
        return self.kernel(x, self.running_mean, self.running_var, False, 0.0)

    def kernel(self, x: Tensor, mean: Tensor | None, var: Tensor | None, by_batch: bool, momentum: float) -> Tensor:
        """torch's kernel, which keeps channels last in memory only in images: (N, C, L) passes as (N, C, 1, L)."""
        if x.dim() == 3 and not x.is_contiguous():
            return self.kernel(x.unsqueeze(2), mean, var, by_batch, momentum).squeeze(2)
        y = F.batch_norm(wide_on_cpu(x), mean, var, *self.wide_affine(), by_batch, momentum, self.eps)
        return y.to(x.dtype)

    def is_refused(self, x: Tensor) -> bool:
        """Whether the kernel refuses the call: an eps of 0, or x in float64 and the layer not."""
        if x.dtype != torch.float64:
            return self.eps == 0
        return self.eps == 0 or any(t.dtype == torch.float32 for t in (*self.parameters(), *self.buffers()))

    def wide_affine(self) -> tuple[Tensor | None, Tensor | None]:
        """`weight` and `bias` in float32 at least: the kernel requires the dtype of the running statistics."""
        weight, bias = self.weight, self.bias
        return None if weight is None else at_least_float32(weight), None if bias is None else at_least_float32(bias)


def wide_on_cpu(x: Tensor) -> Tensor:
    """Channels-last images on a CPU in float32 at least: the kernel sums their gradients in their own dtype."""
    return at_least_float32(x) if x.device.type == "cpu" and not x.is_contiguous() else x
