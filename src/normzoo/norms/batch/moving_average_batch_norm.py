"""Moving average batch normalization: statistics of the last batches, forward and backward."""

import math
from functools import partial

import torch
from torch import Tensor

from normzoo.norms._base import Facts, Paper
from normzoo.norms._checks import require_count, require_number
from normzoo.norms._ops.ranks import Group, all_reduce, total
from normzoo.norms._ops.running import in_recomputation, is_captured
from normzoo.norms.batch._feedback import Pass, RunningSquare, averaged_over, by_plane_apart, replace, with_feedback


class MovingAverageBatchNorm(RunningSquare):
    """Divides each channel by the root of its mean square over the last batches, for very small batches.

    `y = weight r z + bias`, with `z = x / sqrt(square + eps)`, and without gradient
    `r = clip(sqrt(square + eps) / sqrt(running_square + eps), 1 / r_max, r_max)`

    `square` is the average of E[x^2] over the last `buffer_size` batches, this one included, and `running_square` its
    exponential average before this batch. As in batch normalization, the gradient removes the component of dy along z,
    but averaged over the last `buffer_size` batches, this one included::

        g  = weight r dy
        dx = (g - z average(E[g z])) / sqrt(square + eps)

    The first `buffer_size` batches are normalized by their own statistics, and r is 1 up to step `r_after`. Both
    equations and this start follow the authors' code, `MABN.py`, without its `warmup_iters`: the first 100 batches are
    normalized by their own statistics there. The layer subtracts no mean, so the authors use it after convolutions with
    centred weights (`WeightStandardization` without the division).

    With activation checkpointing, run backward after each forward pass: a repeated pass starts from the statistics
    before the last one.

    Args:
        num_features: number of channels C of the input (N, C, *).
        buffer_size: number of batches m in the averages, at least 1.
        r_max: bound of the ratio of the averages, at least 1; the authors' is 5.
        r_after: training steps with r = 1, at least 0.
        eps: added to the mean square, in its units.
        momentum: weight of the newest average in the running one, in [0, 1]; None for the average of all. The authors'
            is 0.02.
        affine: learn `weight` and `bias`, (C,) each.
        sync: take the statistics over the batches of all ranks, weighted by their counts.

    Buffers `squares` and `products`, (buffer_size, C) each: E[x^2] and E[g z] of the last batches. `running_square`,
    (C,), starts at 1.

    Raises:
        InputError: an argument out of range; an input that is not (N, C, *).

    Reference: Junjie Yan, Ruosi Wan, Xiangyu Zhang, Wei Zhang, Yichen Wei, Jian Sun. Towards Stabilizing Batch
    Statistics in Backward Propagation of Batch Normalization. 2020. arXiv 2001.06838, section 4.
    """

    facts = Facts(
        family="batch",
        formula="y = weight r z + bias, z = x / sqrt(square + eps) by averages over the last batches",
        paper=Paper(
            title="Towards Stabilizing Batch Statistics in Backward Propagation of Batch Normalization",
            year=2020,
            arxiv="2001.06838",
        ),
        axes=("N", "s"),
        scales=True,
        stateful=True,
        train_differs=True,
        syncs=True,
        folds=True,
    )

    squares: Tensor
    products: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        buffer_size: int = 16,
        r_max: float = 3.0,
        r_after: int = 1_000,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        sync: bool = False,
    ) -> None:
        super().__init__(num_features, eps=eps, momentum=momentum, affine=affine, sync=sync)
        require_count(self, 1, buffer_size=buffer_size)
        require_number(self, 1, r_max=r_max)
        require_count(self, 0, r_after=r_after)
        self.buffer_size, self.r_max, self.r_after = buffer_size, r_max, r_after
        self.register_buffer("squares", torch.zeros(buffer_size, num_features))
        self.register_buffer("products", torch.zeros(buffer_size, num_features))

    def normalize_by_batch(self, x: Tensor, group: Group) -> Tensor:
        count = total(x.numel() // x.shape[1], group, x.device)
        before = self.before()
        step = before["num_batches_tracked"] + 1
        slot = (torch.arange(self.buffer_size, device=step.device) == step % self.buffer_size).unsqueeze(1)
        rule = partial(
            self.rule,
            step=step,
            squares=before["squares"],
            products=before["products"],
            buffer=self.products,
            running=before["running_square"] + self.eps,
            r_max=1 + (self.r_max - 1) * (step > self.r_after).to(self.running_square.dtype),
            slot=slot,
            positions=math.prod(x.shape[2:]),
            count=count,
            group=group,
            once=Pass(self.products),
        )
        y, batch_square, square = by_plane_apart(x, rule, weight=self.weight, bias=self.bias)
        if count > 0 and not in_recomputation() and not is_captured(self.squares):
            replace(self.squares, torch.where(slot, batch_square, self.squares))
        self.move(count, running_square=square)
        return y

    def rule(
        self,
        mean: Tensor,
        var: Tensor,
        *,
        step: Tensor,
        squares: Tensor,
        products: Tensor,
        buffer: Tensor,
        running: Tensor,
        r_max: Tensor,
        slot: Tensor,
        positions: int,
        count: int,
        group: Group,
        once: Pass,
    ) -> tuple[Tensor, ...]:
        values = max(count, 1)
        batch_square = all_reduce((mean.square() + var).sum(0) * (positions / values), group)
        square = average(squares, batch_square, step, slot)
        std = (square + self.eps).sqrt()
        r = (std / running.sqrt()).clamp(1 / r_max, r_max).detach()

        def gradient(
            d_scale: Tensor,
            d_shift: Tensor,
            mean: Tensor,
            var: Tensor,
            scale: Tensor,
            shift: Tensor,
            buffer: Tensor,
            products: Tensor,
            r: Tensor,
            step: Tensor,
            slot: Tensor,
        ) -> tuple[Tensor, ...]:
            product = all_reduce(d_scale * scale, group) / values
            slope = -average(products, product, step, slot) * (scale / r).square()
            return slope, torch.zeros_like(scale), torch.where(slot, product, buffer)

        scale = r / std
        shift = torch.zeros_like(scale)
        given = buffer, products, r, step, slot
        tables = with_feedback(mean, var, scale, shift, positions, averaged_over(group, gradient), once, *given)
        return *tables, batch_square, square


def average(before: Tensor, batch: Tensor, step: Tensor, slot: Tensor) -> Tensor:
    """The mean over the last batches, with this one in its slot; this batch alone until there are enough."""
    return torch.where(step > len(before), torch.where(slot, batch, before).mean(0), batch)
