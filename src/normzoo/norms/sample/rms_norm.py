"""Root-mean-square normalization."""

import torch
import torch.nn.functional as F
from torch import Tensor

from normzoo.norms._base import Facts, Norm, Paper
from normzoo.norms._checks import require_positive
from normzoo.norms._ops import cpu as kernels
from normzoo.norms._ops.scale_shift import by_position
from normzoo.norms._ops.tensors import channels_second, inverse_root, positions_first


class RMSNorm(Norm):
    """Divides each position of each sample by the root mean square of its channels, without subtracting a mean.

    `y = weight x / sqrt(mean(x^2) + eps)`, the mean over channels

    Args:
        num_features: number of channels C of the input (N, C, *).
        eps: added to the mean square, in its units.
        affine: learn `weight`, (C,); there is no bias.

    Raises:
        InputError: eps not above 0; an input that is not (N, C, *).

    Reference: Biao Zhang, Rico Sennrich. Root Mean Square Layer Normalization. 2019. arXiv 1910.07467, equation 4.
    """

    facts = Facts(
        family="sample",
        formula="y = weight x / sqrt(mean(x^2) + eps)",
        paper=Paper(title="Root Mean Square Layer Normalization", year=2019, arxiv="1910.07467"),
        axes=("C",),
        scales=True,
        exceptions={"large-and-small-scales": "torch's kernel for few values cubes 1 / std, which underflows"},
    )

    def __init__(self, num_features: int, *, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__(num_features)
        require_positive(self, eps=eps)
        self.eps = eps
        self.affine = affine
        self.add_affine(weight=affine, bias=False)

    def normalize(self, x: Tensor) -> Tensor:
        if x.dim() == 2 or kernels.stays_plain(x):
            # The kernel warns unless x and the weight have one dtype.
            dtype = x.dtype if self.weight is None else torch.promote_types(x.dtype, self.weight.dtype)
            weight = None if self.weight is None else self.weight.to(dtype)
            y = F.rms_norm(positions_first(x.to(dtype)), (self.num_features,), weight, self.eps)
            return channels_second(y, like=x).to(x.dtype)

        def rule(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
            square = mean.square() + var
            return inverse_root(square + self.eps), torch.zeros_like(mean)

        return by_position(x, rule, weight=self.weight)[0]
