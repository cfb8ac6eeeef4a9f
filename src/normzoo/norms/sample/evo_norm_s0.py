"""The evolved normalization-activation layer whose statistics are those of groups within a sample."""

import torch
from torch import Tensor, nn

from normzoo.norms._base import Facts, Norm, Paper
from normzoo.norms._checks import require_eps
from normzoo.norms._ops.blocks import in_blocks
from normzoo.norms._ops.groups import resolve_groups, standardize_groups
from normzoo.norms._ops.scale_shift import by_plane, plane_moments
from normzoo.norms._ops.tensors import per_channel, per_plane, plane_sums


class EvoNormS0(Norm):
    """Divides a gated input by the standard deviation of its group of channels; includes an activation.

    `y = weight x sigmoid(v x) / sqrt(var + eps) + bias`, biased variance over the group's channels and positions

    The variance is the paper's, biased; some ports take the unbiased one. No mean is subtracted in the numerator.
    Without the activation it computes x / sqrt(var + eps); the paper's own code then keeps only weight and bias.

    With std = sqrt(var + eps), s = sigmoid(v x) and u = x s, the gradient is that of a gated unit::

        du = weight dy / std,   dx = du (s + v t),   t = u (1 - s),   dv = sum du x t,   dstd = -sum weight dy u / std^2

    and that of the variance follows from dstd.

    Args:
        num_features: number of channels C of the input (N, C, *).
        num_groups: groups G of C / G neighbouring channels; must divide C. None for the default of `GroupNorm`: the
            most groups up to 32 that have at least 4 channels each.
        eps: added to the variance, in its units.
        affine: learn `weight` and `bias`, (C,) each.

    Parameter `v`, (C,): the slope of each gate, 1 at the start; None after `drop_activation`.

    Raises:
        InputError: num_groups does not divide C; eps below 0; an input that is not (N, C, *).

    Reference: Hanxiao Liu, Andrew Brock, Karen Simonyan, Quoc V. Le. Evolving Normalization-Activation Layers. 2020.
    arXiv 2004.02967, table 2.
    """

    facts = Facts(
        family="sample",
        formula="y = weight x sigmoid(v x) / sqrt(var + eps) + bias",
        paper=Paper(title="Evolving Normalization-Activation Layers", year=2020, arxiv="2004.02967"),
        axes=("C/G", "s"),
        brings_activation=True,
    )

    def __init__(
        self, num_features: int, *, num_groups: int | None = None, eps: float = 1e-5, affine: bool = True
    ) -> None:
        super().__init__(num_features)
        require_eps(self, eps)
        self.num_groups = resolve_groups(self, num_groups)
        self.eps = eps
        self.affine = affine
        self.add_affine(weight=affine, bias=affine)
        self.v: nn.Parameter | None = nn.Parameter(torch.ones(num_features))

    def drop_activation(self) -> None:
        self.v = None

    def normalize(self, x: Tensor) -> Tensor:
        if self.v is None:
            return by_plane(x, self.rule, weight=self.weight, bias=self.bias)[0]
        inv_std, _ = self.rule(*plane_moments(x))
        return in_blocks(gated, x, self.v, self.weight, self.bias, tables=(inv_std,), gradient=gradient_of_gated)

    def rule(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """1 / std of each channel's group, and no shift."""
        inv_std, _ = standardize_groups(mean, var, self.num_groups, self.eps)
        return inv_std, torch.zeros_like(inv_std)


def gated(x: Tensor, inv_std: Tensor, v: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """`weight x sigmoid(v x) inv_std + bias`."""
    scale = inv_std if weight is None else inv_std * weight
    y = x * torch.sigmoid(x * per_channel(v, x)) * per_plane(scale, x)
    return y if bias is None else y + per_channel(bias, x)


def gradient_of_gated(
    dy: Tensor, x: Tensor, inv_std: Tensor, v: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The gradients of x, inv_std, v, weight and bias; see `EvoNormS0`."""
    scale = inv_std if weight is None else inv_std * weight
    s = (x * per_channel(v, x)).sigmoid_()
    u = x * s
    t = torch.addcmul(u, u, s, value=-1)
    d_scale = plane_sums(dy * u)
    d_v = (plane_sums(torch.mul(x, t, out=u).mul_(dy)) * scale).sum(0)
    dx = s.add_(t.mul_(per_channel(v, x))).mul_(dy).mul_(per_plane(scale, x))
    d_weight = None if weight is None else (d_scale * inv_std).sum(0)
    d_bias = None if bias is None else plane_sums(dy).sum(0)
    return dx, d_scale if weight is None else d_scale * weight, d_v, d_weight, d_bias
