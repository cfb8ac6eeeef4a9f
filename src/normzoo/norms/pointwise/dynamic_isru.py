"""Dynamic inverse square root unit (DyISRU)."""

import torch
from torch import Tensor, nn

from normzoo.norms._base import Facts, Norm, Paper
from normzoo.norms._checks import require_positive
from normzoo.norms._ops.tensors import at_least_float32
from normzoo.norms.pointwise._squash import Curve, squash


def isru(u: Tensor) -> Tensor:
    """u / sqrt(1 + u^2)."""
    return u * (1 + u.square()).rsqrt()


# isru'(u) = (1 + u^2)^(-3/2)
ISRU = Curve(
    isru,
    lambda u: u.mul_(torch.mul(u, u).add_(1).rsqrt_()),
    lambda u, z: u.square_().add_(1).rsqrt_().pow_(3),
)


class DynamicISRU(Norm):
    """Squashes each value as layer norm does if the sum of squares of the other channels is a constant.

    `y = weight x / sqrt(beta + x^2) + bias`, beta one learned number

    The paper's equation has a factor sqrt(C), which is part of the weight here, as in its experiments. beta starts at
    4, where the slope at 0 is the 0.5 of `DynamicTanh`; the paper's language models start at 100. The layer uses the
    absolute value of beta, clamped to at least 1e-5; below that, beta has no gradient and does not change any more.

    Small inputs are divided by sqrt(beta). Without residual connections, little is left after a few layers: a ConvNet
    of four layers on digits reaches a test accuracy of 0.13, and with beta=1 of 0.82.

    Args:
        num_features: number of channels C of the input (N, C, *).
        beta: the initial value, which sets where the curve bends, in squared units of x.

    Parameters `beta` (1,), `weight` and `bias` (C,).

    Raises:
        InputError: beta not above 0; an input that is not (N, C, *).

    Reference: Felix Stollenwerk. On the Mathematical Relationship Between Layer Normalization and Dynamic Activation
    Functions. 2025. arXiv 2503.21708.
    """

    facts = Facts(
        family="pointwise",
        formula="y = weight x / sqrt(beta + x^2) + bias",
        paper=Paper(
            title="On the Mathematical Relationship Between Layer Normalization and Dynamic Activation Functions",
            year=2025,
            arxiv="2503.21708",
        ),
    )

    def __init__(self, num_features: int, *, beta: float = 4.0) -> None:
        super().__init__(num_features)
        require_positive(self, beta=beta)
        self.beta = nn.Parameter(torch.full((1,), float(beta)))
        self.add_affine()

    def normalize(self, x: Tensor) -> Tensor:
        assert self.weight is not None
        assert self.bias is not None
        # x / sqrt(beta + x^2) = isru(x / sqrt(beta))
        alpha = at_least_float32(self.beta).abs().clamp_min(1e-5).rsqrt()
        return squash(x, ISRU, alpha, None, self.weight, self.bias)
