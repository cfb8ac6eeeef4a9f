"""The arguments and the shapes of torch's `LayerNorm` and `RMSNorm`."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from normzoo.errors import InputError
from normzoo.norms._arguments import is_count
from normzoo.norms._base import Norm


class ElementwiseNorm(Norm):
    """Takes (N, C, *) with parameters per channel; or, given a shape, as torch's layer x with these last axes.

    Args:
        num_features: number of channels C, or a list or tuple of the sizes of the last axes of x.
        affine: learn `weight`, and `bias` if that is on.
        bias: learn `bias`, too.
        elementwise_affine: torch's name for `affine`, which it overrides.
    """

    def __init__(
        self, num_features: int | Sequence[int], affine: bool, bias: bool, elementwise_affine: bool | None
    ) -> None:
        over_axes = isinstance(num_features, list | tuple)
        sizes = tuple(num_features) if isinstance(num_features, list | tuple) else (num_features,)
        if over_axes and not (sizes and all(map(is_count, sizes))):
            raise InputError(
                f"{type(self).__name__}(num_features={num_features!r}): num_features must be the number of channels, "
                f"or the sizes of the input's last axes; give for example 64, or (64, 7, 7)."
            )
        super().__init__(sizes[0])
        self.over_axes, self.normalized_shape = over_axes, sizes
        self.affine = affine if elementwise_affine is None else elementwise_affine
        self.weight = nn.Parameter(torch.ones(sizes)) if self.affine else None
        self.bias = nn.Parameter(torch.zeros(sizes)) if self.affine and bias else None

    def extra_repr(self) -> str:
        own = super().extra_repr()
        return own.replace(str(self.num_features), str(self.normalized_shape), 1) if self.over_axes else own

    def check(self, x: Tensor) -> None:
        shape = self.normalized_shape
        if not self.over_axes:
            super().check(x)
        elif self.channel_dim != 1:
            raise InputError(
                f"{type(self).__name__}({shape}, channel_dim={self.channel_dim}): a shape is that of the last axes; "
                f"give the number of channels, or build it without channel_dim."
            )
        elif tuple(x.shape[-len(shape) :]) != shape or not x.is_floating_point():
            raise InputError(
                f"{type(self).__name__}({shape}) got an input of {x.dtype} and shape {tuple(x.shape)}; it takes "
                f"floating point of (*, {', '.join(map(str, shape))}): give the sizes of the input's last axes, or, "
                f"for (N, C, *), the number of channels."
            )
