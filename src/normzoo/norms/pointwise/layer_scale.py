"""LayerScale."""

import torch
from torch import Tensor, nn

from normzoo.norms._base import Facts, Norm, Paper
from normzoo.norms._ops.scale import scale_per_channel


class LayerScale(Norm):
    """Learns one scale per channel, small at the start.

    `y = weight x`

    At the end of a residual branch, it makes a deep network start near the identity. The weights start at 0.1, the
    paper's value for networks of up to 18 layers; it uses 1e-5 for 24 layers and 1e-6 for more.

    Args:
        num_features: number of channels C of the input (N, C, *).

    Parameter `weight`, (C,): the paper's diagonal lambda.

    Raises:
        InputError: an input that is not (N, C, *).

    Reference: Hugo Touvron, Matthieu Cord, Alexandre Sablayrolles, Gabriel Synnaeve, Hervé Jégou. Going deeper with
    Image Transformers. 2021. arXiv 2103.17239, equation 4.
    """

    facts = Facts(
        family="pointwise",
        formula="y = weight x",
        paper=Paper(title="Going deeper with Image Transformers", year=2021, arxiv="2103.17239"),
        folds=True,
    )

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.weight = nn.Parameter(torch.full((num_features,), 0.1))

    def normalize(self, x: Tensor) -> Tensor:
        assert self.weight is not None
        return scale_per_channel(x, self.weight)
