"""Group normalization."""

import math

from torch import Tensor

from normzoo.norms._base import Facts, Norm, Paper
from normzoo.norms._checks import require_eps, require_variance
from normzoo.norms._ops.groups import group_norm, resolve_groups


class GroupNorm(Norm):
    """Normalizes each group of channels of each sample by the group's mean and variance.

    `y = weight (x - mean) / sqrt(var + eps) + bias`, mean and biased variance over the group's channels and positions

    Args:
        num_features: number of channels C of the input (N, C, *).
        num_groups: groups G of C / G neighbouring channels; must divide C. None for the most groups up to the paper's
            32 that have at least 4 channels each, which works for every C and (N, C): 64 -> 16, 100 -> 25, 256 -> 32.
        eps: added to the variance, in its units.
        affine: learn `weight` and `bias`, (C,) each.
        bias: learn `bias`, too, if `affine`.

    Raises:
        InputError: num_groups does not divide C; one value per group, whose variance is 0; eps below 0; an input
            that is not (N, C, *).

    Reference: Yuxin Wu, Kaiming He. Group Normalization. 2018. arXiv 1803.08494, equation 7.
    """

    facts = Facts(
        family="sample",
        formula="y = weight (x - mean) / sqrt(var + eps) + bias",
        paper=Paper(title="Group Normalization", year=2018, arxiv="1803.08494"),
        axes=("C/G", "s"),
        centres=True,
        scales=True,
    )

    def __init__(
        self,
        num_features: int,
        num_groups: int | None = None,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__(num_features)
        require_eps(self, eps)
        self.num_groups = resolve_groups(self, num_groups)
        self.eps = eps
        self.affine = affine
        self.add_affine(weight=affine, bias=affine and bias)

    def normalize(self, x: Tensor) -> Tensor:
        values = math.prod(x.shape[2:]) * self.num_features // self.num_groups
        fewer = (
            f"take fewer groups than {self.num_groups}" if self.num_groups > 1 else "use more channels, or take NoNorm"
        )
        require_variance(self, x, values, per="group", remedy=fewer)
        return group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
