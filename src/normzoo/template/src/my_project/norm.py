"""A normalization layer of your own."""

from normzoo.norms import Facts, Norm
from torch import Tensor, nn


class MyNorm(Norm):
    """Layer normalization by the mean absolute deviation, to which an outlier adds less than to the variance.

    `y = weight (x - mean) / (mean |x - mean| + eps) + bias`, the means over the channels and positions of each sample
    """

    weight: nn.Parameter
    bias: nn.Parameter
    # What check_norm tests: a constant added to x changes nothing, nor does scaling x.
    facts = Facts(axes=("C", "s"), centres=True, scales=True, unit_square=False)

    def __init__(self, num_features: int, *, eps: float = 1e-5) -> None:
        super().__init__(num_features)
        self.eps = eps
        self.add_affine()

    def normalize(self, x: Tensor) -> Tensor:
        axes, per_channel = tuple(range(1, x.dim())), (-1, *[1] * (x.dim() - 2))
        centred = x - x.mean(axes, keepdim=True)
        y = centred / (centred.abs().mean(axes, keepdim=True) + self.eps)
        return y * self.weight.view(per_channel) + self.bias.view(per_channel)
