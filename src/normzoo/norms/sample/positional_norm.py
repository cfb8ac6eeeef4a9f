"""Positional normalization (PONO)."""

from functools import partial

import torch.nn.functional as F
from torch import Tensor

from normzoo.norms._base import Facts, Norm, Paper
from normzoo.norms._checks import require_eps, require_variance
from normzoo.norms._ops import cpu as kernels
from normzoo.norms._ops.scale_shift import by_position, standardize
from normzoo.norms._ops.tensors import channels_second, positions_first


class PositionalNorm(Norm):
    """Normalizes each position of each sample by the mean and variance over its channels, without parameters.

    `y = (x - mean) / sqrt(var + eps)`, mean and biased variance over channels

    The variance is the paper's, biased; the authors' code takes the unbiased one. The paper passes mean and
    deviation to a later layer (its moment shortcut); here they are not returned. With a scale and a shift per channel,
    this is `ChannelLayerNorm`.

    Args:
        num_features: number of channels C of the input (N, C, *).
        eps: added to the variance, in its units.

    Raises:
        InputError: a single channel, whose variance is 0; eps below 0; an input that is not (N, C, *).

    Reference: Boyi Li, Felix Wu, Kilian Q. Weinberger, Serge Belongie. Positional Normalization. 2019.
    arXiv 1907.04312, section 3.
    """

    facts = Facts(
        family="sample",
        formula="y = (x - mean) / sqrt(var + eps)",
        paper=Paper(title="Positional Normalization", year=2019, arxiv="1907.04312"),
        axes=("C",),
        centres=True,
        scales=True,
    )

    def __init__(self, num_features: int, *, eps: float = 1e-5) -> None:
        super().__init__(num_features)
        require_eps(self, eps)
        self.eps = eps

    def normalize(self, x: Tensor) -> Tensor:
        require_variance(self, x, self.num_features, per="position", remedy="use more channels, or take NoNorm")
        rows = positions_first(x)
        if rows.is_contiguous() or kernels.stays_plain(x):
            # The built-in kernel is the fastest if the channels of a position are contiguous.
            return channels_second(F.layer_norm(rows, (self.num_features,), eps=self.eps).to(x.dtype), like=x)
        return by_position(x, partial(standardize, eps=self.eps))[0]
