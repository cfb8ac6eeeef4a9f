"""Layer normalization."""

import math

import torch.nn.functional as F
from torch import Tensor

from normzoo.norms._base import Facts, Norm, Paper
from normzoo.norms._checks import require_positive, require_variance
from normzoo.norms._ops.groups import group_norm
from normzoo.norms._ops.tensors import in_one_precision


class LayerNorm(Norm):
    """Normalizes each sample by the mean and variance over all of its channels and positions.

    `y = weight (x - mean) / sqrt(var + eps) + bias`, mean and biased variance over channels and positions

    On images this is the layer of the paper (`torch.nn.GroupNorm` with one group), with a scale and a shift per
    channel; for statistics of each position use `ChannelLayerNorm`. On (N, C) the two are equal.

    Args:
        num_features: number of channels C of the input (N, C, *).
        eps: added to the variance, in its units.
        affine: learn `weight` and `bias`, (C,) each.

    Raises:
        InputError: one value per sample, whose variance is 0; eps not above 0; an input that is not (N, C, *).

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

    def __init__(self, num_features: int, *, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__(num_features)
        require_positive(self, eps=eps)
        self.eps = eps
        self.affine = affine
        self.add_affine(weight=affine, bias=affine)

    def normalize(self, x: Tensor) -> Tensor:
        require_variance(self, x, math.prod(x.shape[1:]), per="sample", remedy="use more channels, or take NoNorm here")
        if x.dim() == 2:  # the same result, faster
            wide, weight, bias = in_one_precision(x, self.weight, self.bias)
            return F.layer_norm(wide, (self.num_features,), weight, bias, self.eps).to(x.dtype)  # type: ignore[arg-type]
        return group_norm(x, 1, self.weight, self.bias, self.eps)
