"""LayerScale."""

import torch
from torch import Tensor, nn

from normzoo.norms._base import Facts, Norm, Paper
from normzoo.norms._checks import require_positive
from normzoo.norms._ops.scale import scale_per_channel


class LayerScale(Norm):
    """Learns one scale per channel, small at the start.

    `y = weight x`

    At the end of a residual branch, it makes a deep network start near the identity. In place of every norm of a
    network, it leaves too little of the signal: ResNet-8 on digits learns nothing at any rate (test accuracy 0.1), and
    reaches 0.96 with init_values=1.

    Args:
        num_features: number of channels C of the input (N, C, *).
        init_values: the weights at the start, above 0. The default 0.1 is the paper's for networks of up to 18 layers;
            it takes 1e-5, timm's default, for transformers of 24 layers, and 1e-6 for deeper ones.

    Parameter `weight`, (C,): the paper's diagonal lambda.

    Raises:
        InputError: init_values not above 0; an input that is not (N, C, *).

    Reference: Hugo Touvron, Matthieu Cord, Alexandre Sablayrolles, Gabriel Synnaeve, Hervé Jégou. Going deeper with
    Image Transformers. 2021. arXiv 2103.17239, equation 4.
    """

    facts = Facts(
        family="pointwise",
        formula="y = weight x",
        paper=Paper(title="Going deeper with Image Transformers", year=2021, arxiv="2103.17239"),
        folds=True,
    )

    def __init__(self, num_features: int, init_values: float = 0.1) -> None:
        super().__init__(num_features)
        require_positive(self, init_values=init_values)
        self.init_values = init_values
        self.weight = nn.Parameter(torch.full((num_features,), float(init_values)))

    def normalize(self, x: Tensor) -> Tensor:
        assert self.weight is not None
        return scale_per_channel(x, self.weight)
