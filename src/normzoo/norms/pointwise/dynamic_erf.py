"""Dynamic erf (Derf)."""

import math

import torch
from torch import Tensor, nn

from normzoo.norms._base import Facts, Norm, Paper
from normzoo.norms._checks import require_positive
from normzoo.norms.pointwise._squash import Curve, squash

# erf'(u) = 2 / sqrt(pi) exp(-u^2)
ERF = Curve(torch.erf, torch.erf_, lambda u, z: u.square_().neg_().exp_().mul_(2 / math.sqrt(math.pi)))


class DynamicErf(Norm):
    """Squashes each value by the Gaussian error function, with a learned steepness and shift.

    `y = weight erf(alpha x + shift) + bias`, alpha and shift one learned number each

    Train a deep network with a larger alpha, or with an optimizer that scales each parameter's step, as the authors do
    with AdamW. The gradient of shift is a sum over all values, and each layer multiplies small inputs by 0.56 at the
    start. In the last block of ResNet-8 on digits, five steps of SGD move shift to -0.06, where alpha x has a standard
    deviation of 0.02: the ReLU behind it passes zeros only. With two of three seeds the network learns nothing at any
    rate (test accuracy 0.1). With all three it reaches 0.94 with shift fixed at 0, 0.95 with alpha=1.77, 0.98 by AdamW.

    Args:
        num_features: number of channels C of the input (N, C, *).
        alpha: steepness at the start; the paper's default is 0.5, and 1 in its language models.

    Parameters `alpha` and `shift` (1,), `weight` and `bias` (C,); shift starts at 0.

    Raises:
        InputError: alpha not above 0; an input that is not (N, C, *).

    Reference: Mingzhi Chen, Taiming Lu, Jiachen Zhu, Mingjie Sun, Zhuang Liu. Stronger Normalization-Free
    Transformers. 2025. arXiv 2512.10938, equation 10.
    """

    facts = Facts(
        family="pointwise",
        formula="y = weight erf(alpha x + shift) + bias",
        paper=Paper(title="Stronger Normalization-Free Transformers", year=2025, arxiv="2512.10938"),
    )

    def __init__(self, num_features: int, *, alpha: float = 0.5) -> None:
        super().__init__(num_features)
        require_positive(self, alpha=alpha)
        self.alpha = nn.Parameter(torch.full((1,), float(alpha)))
        self.shift = nn.Parameter(torch.zeros(1))
        self.add_affine()

    def normalize(self, x: Tensor) -> Tensor:
        assert self.weight is not None
        assert self.bias is not None
        return squash(x, ERF, self.alpha, self.shift, self.weight, self.bias)
