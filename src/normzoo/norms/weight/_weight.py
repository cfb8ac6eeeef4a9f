"""The base of layers that act on a weight."""

from collections.abc import Callable

from torch import Tensor, nn

from normzoo.errors import InputError
from normzoo.norms._base import Norm
from normzoo.norms._ops.scale_shift import Rule, by_plane
from normzoo.norms._ops.tensors import at_least_float32


class WeightTransform(Norm):
    """Normalizes the weight (C, I, *) of a linear or convolutional layer with C output channels.

    Its input is the weight. A network registers it as a parametrization (see `normzoo.models.block`), so the layer
    always computes with the normalized weight.

    Args:
        num_features: number of output channels C.
        dim: their axis in the weight; 1 for a transposed convolution.

    Attributes:
        then: the norm that a network adds after the layer; None for GroupNorm if `facts.wants_partner`, else for no
            norm.
    """

    then: Callable[[int], Norm] | None = None
    dim: int | None = 0

    def axes_of_channels(self) -> tuple[int, int]:
        return self.dim or 0, 0

    def rows(self, weight: Tensor) -> Tensor:
        """The weight as a matrix (C, fan_in), in float32 at least; (1, entries) if all outputs share a length."""
        wide = at_least_float32(weight)
        return wide.reshape(1, -1) if self.dim is None else wide.movedim(self.dim, 0).flatten(1)

    def of_input(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Changes `y = layer(x)`, bias included; called if the facts say that the norm reads the input, too."""
        return y

    def check(self, x: Tensor) -> None:
        name, shape = type(self).__name__, tuple(x.shape)
        if not x.is_floating_point():
            raise InputError(f"{name} got a weight of {x.dtype}; it normalizes floating point: convert with .float().")
        if 0 in shape[1:]:
            raise InputError(f"{name} got a weight of shape {shape}, which has no entries; give the layer an input.")
        dim = self.dim or 0
        channels = shape[dim] if -len(shape) <= dim < len(shape) else None
        if len(shape) < 2 or (self.dim is not None and channels != self.num_features):
            takes = f"({self.num_features}, I, *), output channels first"
            takes = takes if dim == 0 else f"{self.num_features} output channels at axis {dim}"
            raise InputError(
                f"{name}({self.num_features}) got a weight of shape {shape}; it takes {takes}: build it as "
                f"{name}({channels or 'C'}), or name the axis of the output channels, for example dim=1."
            )


def by_output(v: Tensor, rule: Rule, *tensors: Tensor | None) -> Tensor:
    """`w = scale v + shift`, the tables (C, 1) from the mean and variance of each output channel's entries.

    Args:
        v: (C, I, *).
        rule: as in `by_plane`; each output channel is a sample of one channel.
        tensors: further arguments of the rule, which get gradients.

    Returns:
        w like v.
    """
    if v.is_contiguous():
        return by_plane(v.unsqueeze(1), rule, *tensors)[0].squeeze(1)
    # In the order of memory: a channels-last weight is not copied.
    return by_plane(v.movedim(1, -1).unsqueeze(1), rule, *tensors)[0].squeeze(1).movedim(-1, 1)


def length(mean: Tensor, var: Tensor, entries: int) -> Tensor:
    """The Euclidean norm of entries with this mean and biased variance; 1e-12 at least, as in `F.normalize`."""
    return (entries * (mean.square() + var)).clamp_min(1e-24).sqrt()
