"""ScaleNorm."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normzoo.norms._base import Facts, Norm, Paper
from normzoo.norms._ops import cpu as kernels
from normzoo.norms._ops.scale_shift import by_position
from normzoo.norms._ops.tensors import at_least_float32, inverse_root

# The lower bound of the norm, as in the authors' code.
SHORTEST = 1e-5


class ScaleNorm(Norm):
    """Divides each position of each sample by the Euclidean norm of its channels, and learns one scale for all.

    `y = weight x / |x|`, the norm over channels

    A position of zeros stays zero: |x| is clamped to at least 1e-5, as in the authors' code.

    Args:
        num_features: number of channels C of the input (N, C, *).

    Parameter `weight`: one number, which starts at sqrt(C); the paper calls it g.

    Raises:
        InputError: an input that is not (N, C, *).

    Reference: Toan Q. Nguyen, Julian Salazar. Transformers without Tears: Improving the Normalization of
    Self-Attention. 2019. arXiv 1910.05895.
    """

    facts = Facts(
        family="sample",
        formula="y = weight x / |x|",
        paper=Paper(
            title="Transformers without Tears: Improving the Normalization of Self-Attention",
            year=2019,
            arxiv="1910.05895",
        ),
        axes=("C",),
        scales=True,
    )

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.weight = nn.Parameter(torch.tensor(num_features**0.5))

    def normalize(self, x: Tensor) -> Tensor:
        assert self.weight is not None
        if x.dim() == 2 or kernels.stays_plain(x):  # fewer calls
            return (self.weight * F.normalize(at_least_float32(x), dim=1, eps=SHORTEST)).to(x.dtype)

        def rule(mean: Tensor, var: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
            square = self.num_features * (mean.square() + var)
            return weight * inverse_root(square.clamp_min(SHORTEST**2)), torch.zeros_like(mean)

        return by_position(x, rule, self.weight)[0]
