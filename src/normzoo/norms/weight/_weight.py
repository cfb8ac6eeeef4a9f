"""What layers that act on a weight share."""

from collections.abc import Callable

from torch import Tensor

from normzoo.errors import InputError
from normzoo.norms._base import Norm


class WeightTransform(Norm):
    """Normalizes the weight (C, I, *) of a linear or convolutional layer with C output channels.

    It takes the weight as `(N, C, *)` layers take an activation; a network attaches it as a parametrization (see
    `normzoo.models.block`), so that the layer always computes with the normalized weight.

    Attributes:
        then: the norm that a network puts behind the layer; None for GroupNorm if the facts ask for a partner, and
            for none if they do not.
    """

    then: Callable[[int], Norm] | None = None

    def check(self, x: Tensor) -> None:
        name, shape = type(self).__name__, tuple(x.shape)
        if not x.is_floating_point():
            raise InputError(f"{name} got a weight of {x.dtype}; it normalizes floating point: convert with .float().")
        if 0 in shape[1:]:
            raise InputError(f"{name} got a weight of shape {shape}, which has no entries; give the layer an input.")
        if len(shape) < 2 or shape[0] != self.num_features:
            raise InputError(
                f"{name}({self.num_features}) got a weight of shape {shape}; it takes ({self.num_features}, I, *), "
                f"output channels first: build it as {name}({shape[0] if shape else 'C'})."
            )


def per_output(v: Tensor, w: Tensor) -> Tensor:
    """Views a vector (C,) such that it broadcasts against a weight (C, I, *)."""
    return v.view(-1, *[1] * (w.dim() - 1))
