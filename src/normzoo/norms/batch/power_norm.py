"""Power normalization: running statistics in training, and a backward pass that compensates."""

import math
from functools import partial

import torch
from torch import Tensor

from normzoo.norms._base import Facts, Paper
from normzoo.norms._ops.ranks import Group, all_reduce, total
from normzoo.norms.batch._feedback import Pass, RunningSquare, averaged_over, by_plane_apart, with_feedback


class PowerNorm(RunningSquare):
    """Divides each channel by the root of its running mean square, in training as in evaluation.

    `y = weight z + bias`, `z = x / sqrt(running_square + eps)`, the running mean of x^2 from before this batch

    The gradient is not the derivative. As in batch normalization, it removes the component of dy along z, but by a
    running average, too, from before this batch::

        g  = weight dy
        dx = (g - nu z) / sqrt(running_square + eps)

    Then both are updated, with averages E over samples and positions::

        running_square <- (1 - momentum) running_square + momentum E[x^2]
        nu             <- (1 - momentum E[z^2]) nu      + momentum E[g z]

    This is the paper's algorithm 3. Its authors' code differs: it divides dx by the root of the batch's own mean
    square, starts with batch statistics, and scales each position before the layer.

    With activation checkpointing, run backward after each forward pass: a repeated pass starts from the statistics
    before the last one.

    Args:
        num_features: number of channels C of the input (N, C, *).
        eps: added to the mean square, in its units.
        momentum: weight of the newest batch in the running statistics, in [0, 1]; None for the average of all batches.
        affine: learn `weight` and `bias`, (C,) each.
        sync: take the statistics over the batches of all ranks, weighted by their counts.

    Buffers `running_square`, the paper's psi^2, which starts at 1, and `nu`, which starts at 0: (C,) each.

    Raises:
        InputError: an argument out of range; an input that is not (N, C, *).

    Reference: Sheng Shen, Zhewei Yao, Amir Gholami, Michael W. Mahoney, Kurt Keutzer. PowerNorm: Rethinking Batch
    Normalization in Transformers. 2020. arXiv 2003.07845, algorithm 3.
    """

    facts = Facts(
        family="batch",
        formula="y = weight z + bias, z = x / sqrt(running_square + eps), in training too",
        paper=Paper(title="PowerNorm: Rethinking Batch Normalization in Transformers", year=2020, arxiv="2003.07845"),
        axes=("N", "s"),
        stateful=True,
        syncs=True,
        folds=True,
        exceptions={
            "independence": "a batch is normalized by statistics of the batches before it",
            "gradcheck": "the paper's gradient is not the derivative of its forward pass",
        },
    )

    nu: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        sync: bool = False,
    ) -> None:
        super().__init__(num_features, eps=eps, momentum=momentum, affine=affine, sync=sync)
        self.register_buffer("nu", torch.zeros(num_features))

    def normalize_by_batch(self, x: Tensor, group: Group) -> Tensor:
        count = total(x.numel() // x.shape[1], group, x.device)
        before = self.before()
        step = (before["num_batches_tracked"] + 1).to(self.nu.dtype)
        rule = partial(
            self.rule,
            square=before["running_square"] + self.eps,
            nu=before["nu"],
            buffer=self.nu,
            momentum=1 / step if self.momentum is None else self.momentum,
            positions=math.prod(x.shape[2:]),
            count=count,
            group=group,
            once=Pass(self.nu),
        )
        y, square = by_plane_apart(x, rule, weight=self.weight, bias=self.bias)
        self.move(count, running_square=square)
        return y

    def rule(
        self,
        mean: Tensor,
        var: Tensor,
        *,
        square: Tensor,
        nu: Tensor,
        buffer: Tensor,
        momentum: Tensor | float,
        positions: int,
        count: int,
        group: Group,
        once: Pass,
    ) -> tuple[Tensor, ...]:
        values = max(count, 1)
        batch_square = all_reduce((mean.square() + var).sum(0).detach() * (positions / values), group)

        def gradient(
            d_scale: Tensor,
            d_shift: Tensor,
            mean: Tensor,
            var: Tensor,
            scale: Tensor,
            shift: Tensor,
            buffer: Tensor,
            nu: Tensor,
            batch_square: Tensor,
            momentum: Tensor | float,
        ) -> tuple[Tensor, ...]:
            with torch.no_grad():
                zz, gz = batch_square * scale.square(), all_reduce(d_scale * scale, group) / values
                after = buffer * (1 - momentum * zz) + momentum * gz
            return -nu * scale.square(), torch.zeros_like(scale), after

        scale = square.rsqrt()
        shift = torch.zeros_like(scale)
        given = buffer, nu, batch_square, momentum
        tables = with_feedback(mean, var, scale, shift, positions, averaged_over(group, gradient), once, *given)
        return *tables, batch_square
