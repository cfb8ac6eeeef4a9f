"""The base of layers that mix statistics of the batch with those of each sample."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from normzoo.norms._ops.ranks import Group, all_reduce, total
from normzoo.norms._ops.running import RunningStatistics, over_samples
from normzoo.norms._ops.tensors import in_forward_mode

# From the means and variances of the planes, (N, C) each, to those of the batch, (C,) each.
OfBatch = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class MixedStatistics(RunningStatistics):
    """A layer with the statistics of the batch, or in evaluation their running averages, and those of each sample.

    The statistics of a sample are computed in evaluation, too.
    """

    def normalize_by(self, x: Tensor, of_batch: OfBatch) -> tuple[Tensor, ...]:
        """The layer, with the batch's statistics computed by `of_batch`.

        Returns:
            y like x; the batch's mean and variance, (C,) each.
        """
        raise NotImplementedError

    def require_values(self, x: Tensor, count: int, group: Group) -> None:
        """Raises `InputError` if a statistic is of a single value: on all ranks, or on none.

        Args:
            x: the batch of this rank.
            count: values per channel of all ranks.
            group: the ranks.
        """
        self.require_several(count, x)

    def normalize_by_batch(self, x: Tensor, group: Group) -> Tensor:
        positions = math.prod(x.shape[2:])
        count = total(x.shape[0] * positions, group, x.device)
        self.require_values(x, count, group)
        y, mean, var = self.normalize_by(x, partial(over_samples, positions=positions, group=group))
        self.update(mean, var, count)
        return y

    def normalize_by_running(self, x: Tensor) -> Tensor:
        assert self.running_mean is not None
        assert self.running_var is not None
        # Copies: the buffers may change before a backward pass computes the rule again.
        running = self.running_mean.clone(), self.running_var.clone()
        return self.normalize_by(x, lambda mean, var: running)[0]


def to_unit_interval(gate: Tensor, group: Group) -> Tensor:
    """`clip(gate, 0, 1)`, with the gradient of `ToUnitInterval`; forward-mode differentiation has none to change."""
    clipped: Tensor = gate.clamp(0.0, 1.0) if in_forward_mode() else ToUnitInterval.apply(gate, group)
    return clipped


class ToUnitInterval(torch.autograd.Function):
    """`clip(gate, 0, 1)`, whose gradient is 0 only where a step against it would lead out of the interval.

    At a bound or beyond it, the gradient is set to 0 if it is negative for a gate of 1 or more, or positive for a gate
    of 0 or less. Its sign is that of the sum over the ranks of the group. Without a group, each rank uses its own part
    of the gradient: if these are averaged afterwards, as in DDP, the parts that lead outwards are missing from the
    average.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(gate: Tensor, group: Group) -> Tensor:
        return gate.clamp(0.0, 1.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Group], output: Tensor) -> None:
        gate, ctx.group = inputs
        ctx.save_for_backward(gate)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (d,) = grad_outputs
        (gate,) = ctx.saved_tensors
        with torch.no_grad():
            of_all = all_reduce(d, ctx.group)
            outwards = ((gate >= 1) & (of_all < 0)) | ((gate <= 0) & (of_all > 0))
        return d * ~outwards, None
