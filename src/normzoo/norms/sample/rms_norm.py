"""Root-mean-square normalization."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from normzoo.norms._base import Facts, Paper
from normzoo.norms._checks import require_eps
from normzoo.norms._ops import cpu as kernels
from normzoo.norms._ops.scale_shift import by_position
from normzoo.norms._ops.tensors import channels_second, inverse_root, positions_first
from normzoo.norms.sample._elementwise import ElementwiseNorm


class RMSNorm(ElementwiseNorm):
    """Divides each position of each sample by the root mean square of its channels, without subtracting a mean.

    `y = weight x / sqrt(mean(x^2) + eps)`, the mean over channels

    `RMSNorm(C, channel_dim=-1)` is `torch.nn.RMSNorm(C)`, on (N, L, C), and timm's `RmsNorm`; `RMSNorm(C)` is timm's
    `RmsNorm2d`. The default eps is that of the other layers here; torch's is None.

    Args:
        num_features: number of channels C of the input (N, C, *); or, as in torch, a list or tuple of the
            sizes of the last axes, which are normalized together and have a `weight` of that shape.
        eps: added to the mean square, in its units; None for that of float32, or of float64 if x has it, as in torch.
        affine: learn `weight`, (C,); there is no bias.
        elementwise_affine: torch's name for `affine`, which it overrides.

    Raises:
        InputError: eps below 0; an input that is not (N, C, *).

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

    def __init__(
        self,
        num_features: int | Sequence[int],
        eps: float | None = 1e-5,
        affine: bool = True,
        *,
        elementwise_affine: bool | None = None,
    ) -> None:
        super().__init__(num_features, affine, False, elementwise_affine)
        if eps is not None:
            require_eps(self, eps)
        self.eps = eps

    def normalize(self, x: Tensor) -> Tensor:
        eps = torch.finfo(torch.promote_types(x.dtype, torch.float32)).eps if self.eps is None else self.eps
        if self.over_axes or x.dim() == 2 or kernels.stays_plain(x):
            # The kernel warns unless x and the weight have one dtype.
            dtype = x.dtype if self.weight is None else torch.promote_types(x.dtype, self.weight.dtype)
            weight = None if self.weight is None else self.weight.to(dtype)
            if self.over_axes:
                return F.rms_norm(x.to(dtype), self.normalized_shape, weight, eps).to(x.dtype)
            y = F.rms_norm(positions_first(x.to(dtype)), self.normalized_shape, weight, eps)
            return channels_second(y, like=x).to(x.dtype)

        def rule(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
            square = mean.square() + var
            return inverse_root(square + eps), torch.zeros_like(mean)

        return by_position(x, rule, weight=self.weight)[0]
