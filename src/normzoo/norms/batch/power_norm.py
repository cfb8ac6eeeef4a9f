"""Power normalization: running statistics in training, and a backward pass that compensates."""

import math
from functools import partial

import torch
from torch import Tensor

from normzoo.norms._base import Facts, Paper
from normzoo.norms._checks import require_count, require_divisor
from normzoo.norms._ops.ranks import Group, all_reduce, total
from normzoo.norms._ops.scale_shift import by_position
from normzoo.norms._ops.tensors import at_least_float32, inverse_root
from normzoo.norms.batch._feedback import Pass, RunningSquare, averaged_over, by_plane_apart, with_feedback


class PowerNorm(RunningSquare):
    """Divides each channel by the root of its running mean square, in training as in evaluation.

    `y = weight z + bias`, `z = u / sqrt(running_square + eps)`, the running mean of u^2 from before this batch

    u is x, each position divided by the root of the mean square of its channels, or of each of `scale_groups` groups of
    them. The gradient with respect to u is not the derivative. As in batch normalization, it removes the component of
    dy along z, but by a running average, too, from before this batch::

        g  = weight dy
        du = (g - nu z) / sqrt(running_square + eps)

    Then both are updated, with averages E over samples and positions::

        running_square <- (1 - momentum) running_square + momentum E[u^2]
        nu             <- (1 - momentum E[z^2]) nu      + momentum E[g z]

    In the first `warmup_steps` training steps, E[u^2] of the batch takes the place of `running_square` in z and du.

    This is the paper's algorithm 3 with the two additions of its authors' code. `scale_groups=0, warmup_steps=0` is the
    algorithm alone, which folds into the layer before it but diverges at high learning rates: ResNet-8 on digits (SGD
    with momentum 0.9, rate 0.1) becomes NaN in two of three runs, and reaches 0.88 with both. After the warm-up, the
    authors' code divides g - nu z by the root of the batch's own mean square instead.

    With activation checkpointing, run backward after each forward pass: a repeated pass starts from the statistics
    before the last one.

    Args:
        num_features: number of channels C of the input (N, C, *).
        scale_groups: groups of neighbouring channels that share a mean square at each position; must divide C. 0, or C,
            for u = x. The authors' is 1.
        warmup_steps: training steps with the statistics of the batch, at least 0. The authors' is 10,000.
        eps: added to each mean square, in its units.
        momentum: weight of the newest batch in the running statistics, in [0, 1]; None for the average of all batches.
        affine: learn `weight` and `bias`, (C,) each.
        sync: take the statistics over the batches of all ranks, weighted by their counts.

    Buffers `running_square`, the paper's psi^2, which starts at 1, and `nu`, which starts at 0: (C,) each.

    Raises:
        InputError: an argument out of range; scale_groups does not divide C; an input that is not (N, C, *).

    Reference: Sheng Shen, Zhewei Yao, Amir Gholami, Michael W. Mahoney, Kurt Keutzer. PowerNorm: Rethinking Batch
    Normalization in Transformers. 2020. arXiv 2003.07845, algorithm 3.
    """

    facts = Facts(
        family="batch",
        formula="y = weight z + bias, z = u / sqrt(running_square + eps), in training too",
        paper=Paper(title="PowerNorm: Rethinking Batch Normalization in Transformers", year=2020, arxiv="2003.07845"),
        axes=("N", "C", "s"),
        scales=True,
        stateful=True,
        train_differs=True,
        syncs=True,
        exceptions={
            "gradcheck": "the paper's gradient is not the derivative of its forward pass",
            "forward-mode": "the paper's gradient is not the derivative of its forward pass",
        },
    )

    nu: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        scale_groups: int = 1,
        warmup_steps: int = 100,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        sync: bool = False,
    ) -> None:
        super().__init__(num_features, eps=eps, momentum=momentum, affine=affine, sync=sync)
        require_count(self, 0, scale_groups=scale_groups, warmup_steps=warmup_steps)
        require_divisor(self, scale_groups=scale_groups or 1)
        self.scale_groups, self.warmup_steps = scale_groups, warmup_steps
        self.register_buffer("nu", torch.zeros(num_features))

    def normalize(self, x: Tensor) -> Tensor:
        if self.scale_groups in (0, self.num_features):  # a channel alone would keep its sign only
            return super().normalize(x)
        # The groups as further positions, (N, C / G, *, G).
        groups = at_least_float32(x).unflatten(1, (self.scale_groups, -1)).movedim(1, -1)
        u = by_position(groups, self.scale)[0].movedim(-1, 1).flatten(1, 2)
        return super().normalize(u).to(x.dtype)

    def scale(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """The tables of `x / sqrt(mean(x^2) + eps)`, the mean over the channels of a group at a position."""
        return inverse_root(mean.square() + var + self.eps), torch.zeros_like(mean)

    def normalize_by_batch(self, x: Tensor, group: Group) -> Tensor:
        count = total(x.numel() // x.shape[1], group, x.device)
        before = self.before()
        step = before["num_batches_tracked"] + 1
        rule = partial(
            self.rule,
            running=before["running_square"],
            warms_up=step <= self.warmup_steps,
            nu=before["nu"],
            buffer=self.nu,
            momentum=1 / step.to(self.nu.dtype) if self.momentum is None else self.momentum,
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
        running: Tensor,
        warms_up: Tensor,
        nu: Tensor,
        buffer: Tensor,
        momentum: Tensor | float,
        positions: int,
        count: int,
        group: Group,
        once: Pass,
    ) -> tuple[Tensor, ...]:
        values = max(count, 1)
        batch_square = all_reduce((mean.square() + var).sum(0) * (positions / values), group)

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

        scale = inverse_root(torch.where(warms_up, batch_square, running) + self.eps)
        shift = torch.zeros_like(scale)
        given = buffer, nu, batch_square, momentum
        tables = with_feedback(mean, var, scale, shift, positions, averaged_over(group, gradient), once, *given)
        return *tables, batch_square
