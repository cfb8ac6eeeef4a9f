"""Layer normalization."""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from normzoo.norms._base import Facts, Paper
from normzoo.norms._checks import require_eps, require_variance
from normzoo.norms._ops.groups import group_norm
from normzoo.norms._ops.tensors import in_one_precision
from normzoo.norms.sample._elementwise import ElementwiseNorm


class LayerNorm(ElementwiseNorm):
    """Normalizes each sample by the mean and variance over all of its channels and positions.

    `y = weight (x - mean) / sqrt(var + eps) + bias`, mean and biased variance over channels and positions

    On images this is the layer of the paper, with a scale and a shift per channel. What other libraries call LayerNorm:

    - `torch.nn.GroupNorm(1, C)` and timm's `GroupNorm1` on (N, C, *) are this layer.
    - `torch.nn.LayerNorm(C)` on (N, L, C) and (N, H, W, C), as in transformers, is `ChannelLayerNorm(C,
      channel_dim=-1)`: the statistics of each position. So is timm's `LayerNorm`; timm's and torchvision's
      `LayerNorm2d`, on (N, C, H, W), are `ChannelLayerNorm(C)`. On (N, C) all of these are equal.
    - `torch.nn.LayerNorm([C, H, W])`, with a parameter per element, is `LayerNorm([C, H, W])`, and so for every list.

    Args:
        num_features: number of channels C of the input (N, C, *); or, as in torch, a list or tuple of the
            sizes of the last axes, which are normalized together and have a `weight` and a `bias` of that shape.
        eps: added to the variance, in its units.
        affine: learn `weight` and `bias`, (C,) each.
        bias: learn `bias`, too, if `affine`.
        elementwise_affine: torch's name for `affine`, which it overrides.

    Raises:
        InputError: one value per sample, whose variance is 0; eps below 0; an input that is not (N, C, *).

    Reference: Jimmy Lei Ba, Jamie Ryan Kiros, Geoffrey E. Hinton. Layer Normalization. 2016. arXiv 1607.06450,
    equation 3.
    """

    facts = Facts(
        family="sample",
        formula="y = weight (x - mean) / sqrt(var + eps) + bias",
        paper=Paper(title="Layer Normalization", year=2016, arxiv="1607.06450"),
        axes=("C", "s"),
        centres=True,
        scales=True,
    )

    def __init__(
        self,
        num_features: int | Sequence[int],
        eps: float = 1e-5,
        affine: bool = True,
        bias: bool = True,
        *,
        elementwise_affine: bool | None = None,
    ) -> None:
        super().__init__(num_features, affine, bias, elementwise_affine)
        require_eps(self, eps)
        self.eps = eps

    def normalize(self, x: Tensor) -> Tensor:
        values = math.prod(self.normalized_shape if self.over_axes else x.shape[1:])
        require_variance(self, x, values, per="sample", remedy="use more channels, or take NoNorm here")
        if self.over_axes or x.dim() == 2:
            wide, weight, bias = in_one_precision(x, self.weight, self.bias)
            y = F.layer_norm(wide, self.normalized_shape, weight, bias, self.eps)  # type: ignore[arg-type] # x is no None
            return y.to(x.dtype)
        return group_norm(x, 1, self.weight, self.bias, self.eps)
