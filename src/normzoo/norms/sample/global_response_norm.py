"""Global response normalization (GRN)."""

import math

import torch
from torch import Tensor, nn

from normzoo.norms._base import Facts, Norm, Paper
from normzoo.norms._checks import require_eps
from normzoo.norms._ops.scale_shift import by_plane


class GlobalResponseNorm(Norm):
    """Scales each channel of each sample by its Euclidean norm, relative to the mean norm of the sample's channels.

    `y = weight (x n) + bias + x`, `n = |x| / (mean |x| + eps)`, the norm over positions, its mean over channels

    weight and bias start at zero, so the layer starts as the identity. It makes channels compete, but does not
    normalize the scale of activations: a norm before it does. The paper's equation 2 divides by the sum of the norms;
    its algorithm 1 and all code divide by their mean, as here. The authors' eps is 1e-6. The norm of a plane of zeros
    has gradient 0.

    Args:
        num_features: number of channels C of the input (N, C, *).
        eps: added to the mean of the norms, in their units.

    Parameters `weight` and `bias`, (C,) each: the paper's gamma and beta.

    Raises:
        InputError: an input without positions, (N, C); eps below 0; an input that is not (N, C, *).

    Reference: Sanghyun Woo, Shoubhik Debnath, Ronghang Hu, Xinlei Chen, Zhuang Liu, In So Kweon, Saining Xie. ConvNeXt
    V2: Co-designing and Scaling ConvNets with Masked Autoencoders. 2023. arXiv 2301.00808, algorithm 1.
    """

    facts = Facts(
        family="sample",
        formula="y = weight (x n) + bias + x, n = |x| / (mean |x| + eps)",
        paper=Paper(
            title="ConvNeXt V2: Co-designing and Scaling ConvNets with Masked Autoencoders",
            year=2023,
            arxiv="2301.00808",
        ),
        axes=("C", "s"),
        dense=False,
    )

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__(num_features)
        require_eps(self, eps)
        self.eps = eps
        self.add_affine()
        assert self.weight is not None
        nn.init.zeros_(self.weight)

    def normalize(self, x: Tensor) -> Tensor:
        positions = math.prod(x.shape[2:])

        def rule(mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
            length = root(positions * (mean.square() + var))
            response = length / (length.mean(1, keepdim=True) + self.eps)
            return weight * response + 1, bias.expand_as(mean)

        return by_plane(x, rule, self.weight, self.bias)[0]


def root(square: Tensor) -> Tensor:
    """The square root, with gradient 0 instead of infinity at 0."""
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1).sqrt(), 0)
