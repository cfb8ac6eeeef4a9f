"""A normalization layer of your own."""

from normzoo.norms import Facts, Norm
from torch import Tensor, nn


class MyNorm(Norm):
    """Divides each sample by the mean absolute value of its channels and positions.

    `y = weight x / (mean |x| + eps) + bias`
    """

    weight: nn.Parameter
    bias: nn.Parameter
    facts = Facts(axes=("C", "s"), scales=True, unit_square=False)  # what check_norm tests: f(2 x) = f(x)

    def __init__(self, num_features: int, *, eps: float = 1e-5) -> None:
        super().__init__(num_features)
        self.eps = eps
        self.add_affine()

    def normalize(self, x: Tensor) -> Tensor:
        axes, per_channel = tuple(range(1, x.dim())), (-1, *[1] * (x.dim() - 2))
        y = x / (x.abs().mean(axes, keepdim=True) + self.eps)
        return (y * self.weight.view(per_channel) + self.bias.view(per_channel)).to(x.dtype)
