"""Layer normalization over the channels of every position."""

import torch.nn.functional as F
from torch import Tensor

from normzoo.norms._base import Facts, Norm, Paper
from normzoo.norms._checks import require_eps, require_variance
from normzoo.norms._ops.tensors import channels_second, in_one_precision, positions_first


class ChannelLayerNorm(Norm):
    """Normalizes each position of each sample by the mean and variance over its channels.

    `y = weight (x - mean) / sqrt(var + eps) + bias`, mean and biased variance over channels

    This is what transformers and ConvNeXt call LayerNorm: `ChannelLayerNorm(C, channel_dim=-1)` equals
    `torch.nn.LayerNorm(C)` and timm's `LayerNorm`, and `ChannelLayerNorm(C)` the `LayerNorm2d` of timm and torchvision,
    whose eps is 1e-6. Fastest on channels-last inputs.

    Args:
        num_features: number of channels C of the input (N, C, *).
        eps: added to the variance, in its units.
        affine: learn `weight` and `bias`, (C,) each.
        bias: learn `bias`, too, if `affine`.
        elementwise_affine: torch's name for `affine`, which it overrides.

    Raises:
        InputError: a single channel, whose variance is 0; eps below 0; an input that is not (N, C, *).

    Reference: Zhuang Liu, Hanzi Mao, Chao-Yuan Wu, Christoph Feichtenhofer, Trevor Darrell, Saining Xie. A ConvNet for
    the 2020s. 2022. arXiv 2201.03545, section 2.6; the equation is that of arXiv 1607.06450.
    """

    facts = Facts(
        family="sample",
        formula="y = weight (x - mean) / sqrt(var + eps) + bias",
        paper=Paper(title="A ConvNet for the 2020s", year=2022, arxiv="2201.03545"),
        axes=("C",),
        centres=True,
        scales=True,
    )

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        bias: bool = True,
        *,
        elementwise_affine: bool | None = None,
    ) -> None:
        super().__init__(num_features)
        require_eps(self, eps)
        self.eps = eps
        self.affine = affine if elementwise_affine is None else elementwise_affine
        self.add_affine(weight=self.affine, bias=self.affine and bias)

    def normalize(self, x: Tensor) -> Tensor:
        require_variance(self, x, self.num_features, per="position", remedy="use more channels, or take NoNorm")
        wide, weight, bias = in_one_precision(x, self.weight, self.bias)
        y = F.layer_norm(positions_first(wide), (self.num_features,), weight, bias, self.eps)  # type: ignore[arg-type]
        return channels_second(y, like=x).to(x.dtype)
