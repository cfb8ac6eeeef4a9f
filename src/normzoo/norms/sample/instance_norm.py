"""Instance normalization."""

import math

from torch import Tensor

from normzoo.norms._base import Facts, Norm, Paper
from normzoo.norms._checks import require_positive, require_variance
from normzoo.norms._ops.groups import group_norm


class InstanceNorm(Norm):
    """Normalizes each channel of each sample by its mean and variance over positions.

    `y = weight (x - mean) / sqrt(var + eps) + bias`, mean and biased variance over positions

    Unlike torch's, it learns a scale and a shift by default, as every layer here does, and keeps channels-last.

    Args:
        num_features: number of channels C of the input (N, C, *).
        eps: added to the variance, in its units.
        affine: learn `weight` and `bias`, (C,) each.

    Raises:
        InputError: an input without positions, (N, C); a single position, whose variance is 0; eps not above 0; an
            input that is not (N, C, *).

    Reference: Dmitry Ulyanov, Andrea Vedaldi, Victor Lempitsky. Instance Normalization: The Missing Ingredient for Fast
    Stylization. 2016. arXiv 1607.08022, equation 4.
    """

    facts = Facts(
        family="sample",
        formula="y = weight (x - mean) / sqrt(var + eps) + bias",
        paper=Paper(
            title="Instance Normalization: The Missing Ingredient for Fast Stylization", year=2016, arxiv="1607.08022"
        ),
        axes=("s",),
        centres=True,
        scales=True,
        dense=False,
    )

    def __init__(self, num_features: int, *, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__(num_features)
        require_positive(self, eps=eps)
        self.eps = eps
        self.affine = affine
        self.add_affine(weight=affine, bias=affine)

    def normalize(self, x: Tensor) -> Tensor:
        require_variance(
            self,
            x,
            math.prod(x.shape[2:]),
            per="channel",
            remedy="use larger images or fewer strides, or take GroupNorm",
        )
        # One group per channel equals F.instance_norm, whose kernel loses channels-last.
        return group_norm(x, self.num_features, self.weight, self.bias, self.eps)
