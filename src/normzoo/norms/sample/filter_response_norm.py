"""Filter response normalization with its thresholded linear unit."""

from typing import Any

import torch
from torch import Tensor, nn

from normzoo.norms._base import Facts, Norm, Paper
from normzoo.norms._checks import require_positive
from normzoo.norms._ops import cpu as kernels
from normzoo.norms._ops.scale_shift import by_plane
from normzoo.norms._ops.tensors import at_least_float32, per_channel


class FilterResponseNorm(Norm):
    """Divides each channel of each sample by its root mean square over positions; includes an activation.

    `y = max(weight x / sqrt(mean(x^2) + eps) + bias, tau)`, the mean over positions

    The maximum with the learned threshold tau (TLU) replaces the network's activation; where both are equal, the
    gradient goes to tau. eps is not learned: the paper learns it only for inputs of a single position.

    Args:
        num_features: number of channels C of the input (N, C, *).
        eps: added to the mean square, in its units.

    Parameters `weight`, `bias` and `tau`, (C,) each; tau is None after `drop_activation`.

    Raises:
        InputError: an input without positions, (N, C), whose output would be only signs; eps not above 0; an input
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
        dense=False,
        brings_activation=True,
    )

    def __init__(self, num_features: int, *, eps: float = 1e-5) -> None:
        super().__init__(num_features)
        require_positive(self, eps=eps)
        self.eps = eps
        self.add_affine()
        self.tau: nn.Parameter | None = nn.Parameter(torch.zeros(num_features))

    def drop_activation(self) -> None:
        self.tau = None

    def normalize(self, x: Tensor) -> Tensor:
        def rule(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
            square = mean.square() + var
            return (square + self.eps).rsqrt(), torch.zeros_like(mean)

        z, *_ = by_plane(x, rule, weight=self.weight, bias=self.bias)
        return z if self.tau is None else threshold(z, self.tau)


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
    """y = max(z, tau) of a volume: `dz = dy` where y > tau, else 0, and `d_tau = sum dy - dz`. It does not save z.

    At a tie the gradient is that of tau.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, tau: Tensor, dim: int) -> Tensor:
        y = torch.empty_like(z)
        for y_, z_ in kernels.blocks(y, z):
            torch.maximum(z_, kernels.along(tau, dim), out=y_)
        ctx.save_for_backward(y, tau)
        ctx.dim = dim
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (dy,), (y, tau), dim = grad_outputs, ctx.saved_tensors, ctx.dim
        bound = kernels.along(tau, dim)
        if torch.is_grad_enabled():  # this gradient, which is linear in dy, is to be differentiated again
            dz = torch.where(y.detach() > bound, dy, 0)
            return dz, (dy - dz).sum((0, dim)), None
        dy, dz, d_tau = dy.contiguous(), torch.empty_like(y), torch.zeros_like(tau)
        for dz_, dy_, y_ in kernels.blocks(dz, dy, y):
            above = torch.sub(y_, bound, out=kernels.scratch.take("above", y_.shape, y_))
            torch.ops.aten.threshold_backward.grad_input(dy_, above, 0, grad_input=dz_)
            d_tau += torch.sub(dy_, dz_, out=above).sum(dim).sum(0)
        return dz, d_tau, None
