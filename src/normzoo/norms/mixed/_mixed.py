"""What layers share that mix statistics of the batch with those of each sample."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from normzoo.norms._ranks import Group, all_reduce, total
from normzoo.norms._running import RunningStatistics, over_samples

# From the means and variances of the planes, (N, C) each, to those of the batch, (C,) each.
OfBatch = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class MixedStatistics(RunningStatistics):
    """A layer that knows the batch's statistics from the batch, or in evaluation from running averages.

    Those of a sample are its own in evaluation as well.
    """

    def normalize_by(self, x: Tensor, of_batch: OfBatch) -> tuple[Tensor, ...]:
        """The layer with the batch's statistics as `of_batch` finds them.

        Returns:
            y like x; the batch's mean and variance, (C,) each.
        """
        raise NotImplementedError

    def require_values(self, x: Tensor, samples: int) -> None:
        """Raises `InputError` where a statistic would be that of a single value; the batch has that many samples."""
        self.require_several(samples * x.shape[2:].numel(), x)

    def normalize_by_batch(self, x: Tensor, group: Group) -> Tensor:
        samples = total(len(x), group, x.device)
        self.require_values(x, samples)
        y, mean, var = self.normalize_by(x, partial(over_samples, group=group))
        self.update(mean, var, samples * x.shape[2:].numel())
        return y

    def normalize_by_running(self, x: Tensor) -> Tensor:
        return self.normalize_by(x, self.running)[0]

    def running(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """The running averages, whatever the statistics of this batch."""
        assert self.running_mean is not None
        assert self.running_var is not None
        return self.running_mean, self.running_var


class ToUnitInterval(torch.autograd.Function):
    """`clip(gate, 0, 1)`, with a gradient that descent can follow everywhere but further out of the interval.

    At a bound or beyond it, a gradient is blocked where a step against it leads outwards: where it is negative for a
    gate of 1 or more, positive for one of 0 or less. Its sign is that of the sum over the ranks.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(gate: Tensor, group: Group) -> Tensor:
        return gate.clamp(0, 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Group], output: Tensor) -> None:
        gate, ctx.group = inputs
        ctx.save_for_backward(gate)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (d,) = grad_outputs
        (gate,) = ctx.saved_tensors
        of_all = all_reduce(d.detach(), ctx.group)
        outwards = ((gate >= 1) & (of_all < 0)) | ((gate <= 0) & (of_all > 0))
        return d * ~outwards, None
