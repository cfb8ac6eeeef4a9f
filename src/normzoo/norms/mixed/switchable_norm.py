"""Switchable normalization: the network learns which statistics to normalize by."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normzoo.norms._base import Facts, Paper
from normzoo.norms._checks import require_variance
from normzoo.norms._ops.ranks import Group
from normzoo.norms._ops.scale_shift import about, by_plane
from normzoo.norms._ops.tensors import inverse_root
from normzoo.norms.mixed._mixed import MixedStatistics, OfBatch


class SwitchableNorm(MixedStatistics):
    """Normalizes by learned averages of the statistics of instance, layer and batch norm.

    `y = weight (x - sum_k p_k mean_k) / sqrt(sum_k q_k var_k + eps) + bias` with `p = softmax(mean_weight)` and
    `q = softmax(var_weight)`, k over the positions of a channel (instance), over the channels and positions of a sample
    (layer) and over the samples and positions of a channel (batch)

    All variances are biased, as in the paper; the authors' code takes the unbiased one of the instance and derives the
    others from it. Evaluation uses running averages of the batch's statistics, as in every layer here; the paper
    averages the statistics of some batches after training, which `momentum=None` does during training. On (N, C), where
    an instance is a single value, only layer and batch are averaged, as in the authors' layer for vectors.

    Args:
        num_features: number of channels C of the input (N, C, *).
        eps: added to the variance, in its units.
        momentum: weight of the newest batch in the running statistics, in [0, 1]; None for the average of all batches.
        affine: learn `weight` and `bias`, (C,) each.
        track_running_stats: keep `running_mean` and `running_var` (unbiased), (C,) each, for evaluation.
        sync: take the batch's statistics over the batches of all ranks, weighted by their counts.

    Parameters `mean_weight`, `var_weight`: (3,), the logits of instance, layer and batch, which start at 1.

    Raises:
        InputError: a single value in training, whose variance is 0; an argument out of range; an input that is not
            (N, C, *).

    Reference: Ping Luo, Jiamin Ren, Zhanglin Peng, Ruimao Zhang, Jingyu Li. Differentiable Learning-to-Normalize via
    Switchable Normalization. 2018. arXiv 1806.10779, equations 3 to 5.
    """

    facts = Facts(
        family="mixed",
        formula="y = weight (x - sum_k p_k mean_k) / sqrt(sum_k q_k var_k + eps) + bias, k in instance, layer, batch",
        paper=Paper(
            title="Differentiable Learning-to-Normalize via Switchable Normalization", year=2018, arxiv="1806.10779"
        ),
        axes=("N", "C", "s"),
        centres=True,
        scales=True,
        zero_mean=False,
        unit_square=False,
        stateful=True,
        train_differs=True,
        syncs=True,
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
            num_features, eps=eps, momentum=momentum, affine=affine, track_running_stats=track_running_stats, sync=sync
        )
        self.mean_weight = nn.Parameter(torch.ones(3))
        self.var_weight = nn.Parameter(torch.ones(3))

    def require_values(self, x: Tensor, count: int, group: Group) -> None:
        require_variance(self, x, count * self.num_features, per="batch", remedy="use larger batches")

    def normalize_by(self, x: Tensor, of_batch: OfBatch) -> tuple[Tensor, ...]:
        rule = partial(self.rule, of_batch=of_batch, dense=x.dim() == 2)
        return by_plane(x, rule, self.mean_weight, self.var_weight, weight=self.weight, bias=self.bias)

    def rule(
        self,
        mean: Tensor,
        var: Tensor,
        mean_weight: Tensor,
        var_weight: Tensor,
        of_batch: OfBatch,
        dense: bool,
    ) -> tuple[Tensor, ...]:
        layer_mean = mean.mean(1, keepdim=True)
        layer_var = (var + (mean - layer_mean).square()).mean(1, keepdim=True)
        batch_mean, batch_var = of_batch(mean, var)
        first = 1 if dense else 0
        p, q = mean_weight[first:].softmax(0).unbind(), var_weight[first:].softmax(0).unbind()
        apart = sum(w * (mean - m) for w, m in zip(p, (mean, layer_mean, batch_mean)[first:], strict=True))
        mixed_var: Any = sum(w * v for w, v in zip(q, (var, layer_var, batch_var)[first:], strict=True))
        inv_std = inverse_root(mixed_var + self.eps)
        return *about(mean, inv_std, apart * inv_std), batch_mean, batch_var
