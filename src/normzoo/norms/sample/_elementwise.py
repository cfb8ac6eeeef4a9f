"""The arguments and the shapes of torch's `LayerNorm` and `RMSNorm`."""

from collections.abc import Sequence

from torch import Tensor

from normzoo.errors import InputError
from normzoo.norms._arguments import is_count
from normzoo.norms._base import Norm


class ElementwiseNorm(Norm):
    """Takes (N, C, *) with parameters per channel; or, given several sizes, as torch's layer x with these last axes.

    Args:
        num_features: number of channels C, or the sizes of the last axes of x.
        affine: learn `weight`, and `bias` if that is on.
        bias: learn `bias`, too.
        elementwise_affine: torch's name for `affine`; overrides it.
    """

    def __init__(
        self, num_features: int | Sequence[int], affine: bool, bias: bool, elementwise_affine: bool | None
    ) -> None:
        sizes = tuple(num_features) if isinstance(num_features, list | tuple) else (num_features,)
        if isinstance(num_features, list | tuple) and not (sizes and all(map(is_count, sizes))):
            raise InputError(
                f"{type(self).__name__}(num_features={num_features!r}): num_features must be the number of channels, "
                f"or the sizes of the input's last axes; give for example 64, or (64, 7, 7)."
            )
        super().__init__(sizes[0])
        self.normalized_shape = sizes
        self.affine = affine if elementwise_affine is None else elementwise_affine
        self.elementwise_affine = self.affine
        self.add_affine(weight=self.affine, bias=self.affine and bias)

    @property
    def over_axes(self) -> bool:
        """Whether several sizes were given."""
        return len(self.normalized_shape) > 1

    def extra_repr(self) -> str:
        own = super().extra_repr()
        return own.replace(str(self.num_features), str(self.normalized_shape), 1) if self.over_axes else own

    def check(self, x: Tensor) -> None:
        if not self.over_axes:
            super().check(x)
        elif tuple(x.shape[1:][-len(self.normalized_shape) :]) != self.normalized_shape or not x.is_floating_point():
            raise InputError(
                f"{type(self).__name__}({self.normalized_shape}) got an input of {x.dtype} and shape {tuple(x.shape)}; "
                f"it takes floating point of (N, *, {', '.join(map(str, self.normalized_shape))}): give the sizes of "
                f"the input's last axes, or the number of channels."
            )
