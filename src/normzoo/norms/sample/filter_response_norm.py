"""Filter response normalization with its thresholded linear unit."""

from typing import Any

import torch
from torch import Tensor, nn

from normzoo.norms._base import Facts, Norm, Paper
from normzoo.norms._checks import require_eps
from normzoo.norms._ops import cpu as kernels
from normzoo.norms._ops.scale_shift import by_plane
from normzoo.norms._ops.second_derivatives import needs_autograd
from normzoo.norms._ops.tensors import at_least_float32, inverse_root, per_channel


class FilterResponseNorm(Norm):
    """Divides each channel of each sample by its root mean square over positions; includes an activation.

    `y = max(weight x / sqrt(mean(x^2) + eps) + bias, tau)`, the mean over positions

    The maximum with the learned threshold tau (TLU) replaces the network's activation; where both are equal, each gets
    half of the gradient. At the start tau is 0, and the mean square is 1 only after `drop_activation`. eps is not
    learned: the paper learns it only for inputs of a single position.

    Args:
        num_features: number of channels C of the input (N, C, *).
        eps: added to the mean square, in its units.

    Parameters `weight`, `bias` and `tau`, (C,) each; tau is None after `drop_activation`.

    Raises:
        InputError: an input without positions, (N, C), whose output would be only signs; eps below 0; an input
            that is not (N, C, *).

    Reference: Saurabh Singh, Shankar Krishnan. Filter Response Normalization Layer: Eliminating Batch Dependence in the
    Training of Deep Neural Networks. 2019. arXiv 1911.09737, equations 1 to 4.
    """

    facts = Facts(
        family="sample",
        formula="y = max(weight x / sqrt(mean(x^2) + eps) + bias, tau)",
        paper=Paper(
            title="Filter Response Normalization Layer: Eliminating Batch Dependence in the Training of Deep Neural "
            "Networks",
            year=2019,
            arxiv="1911.09737",
        ),
        axes=("s",),
        scales=True,
        unit_square=False,
        dense=False,
        brings_activation=True,
    )

    def __init__(self, num_features: int, *, eps: float = 1e-5) -> None:
        super().__init__(num_features)
        require_eps(self, eps)
        self.eps = eps
        self.add_affine()
        self.tau: nn.Parameter | None = nn.Parameter(torch.zeros(num_features))

    def drop_activation(self) -> None:
        self.tau = None

    def normalize(self, x: Tensor) -> Tensor:
        def rule(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
            square = mean.square() + var
            return inverse_root(square + self.eps), torch.zeros_like(mean)

        # A threshold behind the rounding to a narrow dtype would make ties.
        z, *_ = by_plane(at_least_float32(x), rule, weight=self.weight, bias=self.bias)
        return (z if self.tau is None else threshold(z, self.tau)).to(x.dtype)


def threshold(z: Tensor, tau: Tensor) -> Tensor:
    """max(z, tau) of (N, C, *) and (C,)."""
    wide, tau = at_least_float32(z), at_least_float32(tau)
    if kernels.stays_plain(z):
        return plain_threshold(wide, tau).to(z.dtype)
    volume, last = kernels.as_volume(wide)
    return kernels.restore(Threshold.apply(volume, tau, 1 if last else 2), z, last).to(z.dtype)


def plain_threshold(z: Tensor, tau: Tensor) -> Tensor:
    """`threshold` by autograd, for any shape (N, C, *); at a tie, each gets half of the gradient. NaN stays NaN."""
    return torch.maximum(z, per_channel(tau, z))


class Threshold(torch.autograd.Function):
    """y = max(z, tau) of a volume: `dz = dy` where z > tau, dy / 2 where z = tau, else 0, and `d_tau = sum dy - dz`.

    It saves neither z nor y, which the caller may change in place, but one byte per value: 2 [z > tau] + [z = tau].
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, tau: Tensor, dim: int) -> Tensor:
        y, halves, bound = torch.empty_like(z), torch.empty_like(z, dtype=torch.uint8), kernels.along(tau, dim)
        for y_, halves_, z_ in kernels.blocks(y, halves, z):
            torch.maximum(z_, bound, out=y_)
            torch.ge(z_, bound, out=halves_).add_(z_ > bound)
        ctx.save_for_backward(halves)
        ctx.dim = dim
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (dy,), (halves,), dim = grad_outputs, ctx.saved_tensors, ctx.dim
        if needs_autograd(dy):  # this gradient is linear in dy
            dz = dy * (halves * 0.5)
            return dz, (dy - dz).sum((0, dim)), None
        dy = dy.contiguous()
        dz, d_tau = torch.empty_like(dy), dy.new_zeros(dy.shape[3 - dim])
        for dz_, dy_, halves_ in kernels.blocks(dz, dy, halves):
            torch.mul(dy_, halves_, out=dz_).mul_(0.5)
            d_tau += torch.sub(dy_, dz_, out=kernels.scratch.take("below", dy_.shape, dy_)).sum(dim).sum(0)
        return dz, d_tau, None
