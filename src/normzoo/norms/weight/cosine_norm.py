"""Cosine normalization."""

import torch
from torch import Tensor, nn

from normzoo.norms._base import Facts, Paper
from normzoo.norms._checks import require_eps
from normzoo.norms._ops.tensors import at_least_float32
from normzoo.norms.weight._weight import WeightTransform, by_output, length


class CosineNorm(WeightTransform):
    """Replaces the layer's dot products by cosines, of the weight and of the input that it is multiplied with.

    `w = v / |v|`, the norm over all entries of an output channel, and of the layer `y = w.x / sqrt(|x|^2 + eps) + b`

    x is the input of one dot product: a sample for a linear layer; for a convolution the patch under the kernel,
    including the zeros of the padding, with the channels of one group only. The paper has neither eps nor b; eps bounds
    the gradient near x = 0, where the layer returns its bias. A weight of zeros stays zero: |v| is clamped to at least
    1e-12.

    Outputs are cosines: in a ConvNet of four layers on digits, their standard deviation is 0.05 to 0.2 at the start,
    which b soon exceeds. It learns slowly, to a test accuracy of 0.28 in 6 epochs.

    Args:
        num_features: number of output channels C of the layer whose weight v, (C, I, *), is normalized.
        eps: added to the squared length of the input, in its units.

    Raises:
        InputError: eps below 0; a weight that is not (C, I, *).

    Reference: Chunjie Luo, Jianfeng Zhan, Lei Wang, Qiang Yang. Cosine Normalization: Using Cosine Similarity Instead
    of Dot Product in Neural Networks. 2017. arXiv 1702.05870.
    """

    facts = Facts(
        family="weight",
        formula="w = v / |v|, and the input of unit length",
        paper=Paper(
            title="Cosine Normalization: Using Cosine Similarity Instead of Dot Product in Neural Networks",
            year=2017,
            arxiv="1702.05870",
        ),
        axes=("s",),
        scales=True,
        acts_on="weight",
        reads_input=True,
    )

    def __init__(self, num_features: int, *, eps: float = 1e-5) -> None:
        super().__init__(num_features)
        require_eps(self, eps)
        self.eps = eps

    def normalize(self, x: Tensor) -> Tensor:
        entries = x.shape[1:].numel()
        return by_output(x, lambda mean, var: (1 / length(mean, var, entries), torch.zeros_like(mean)))

    def of_input(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        inv_length = torch.rsqrt(squared_lengths(layer, x) + self.eps)
        bias = layer.bias
        if not isinstance(bias, Tensor):
            return (y * inv_length).to(y.dtype)
        if not isinstance(layer, nn.Linear):
            bias = bias.view(-1, *[1] * (y.dim() - 2))
        product = y.to(inv_length.dtype) - bias.to(y.dtype)  # the layer has added it rounded to the dtype of y
        return (product * inv_length + bias).to(y.dtype)


def squared_lengths(layer: nn.Module, x: Tensor) -> Tensor:
    """|x|^2 of the input of each dot product, in a shape that broadcasts against the layer's output."""
    squares = at_least_float32(x).square()
    if isinstance(layer, nn.Linear):
        return squares.sum(-1, keepdim=True)
    assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    groups = layer.groups
    squares = squares.unflatten(1, (groups, -1)).sum(2)
    with torch.autocast(x.device.type, enabled=False):
        # The layer's own stride, padding and dilation, with a kernel of ones.
        ones = squares.new_ones(groups, 1, *layer.kernel_size)
        sums = layer._conv_forward(squares, ones, None)
    return sums if groups == 1 else sums.repeat_interleave(layer.out_channels // groups, dim=1)
