"""Layer, norm and activation, joined as the norm's facts ask."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn
from torch.nn.utils import parametrize

from normzoo.errors import InputError
from normzoo.models.init import Init, Kaiming
from normzoo.norms import GroupNorm, NoNorm, Norm

NormFactory = Callable[[int], Norm]
ActivationFactory = Callable[[], nn.Module]
Position = Literal["before", "after"]
Layer = nn.Linear | nn.Conv2d


class Block(nn.Module):
    """A linear or convolutional layer with its norm and its activation.

    `activation(norm(layer(x)))`, or `norm(activation(layer(x)))` with `norm_position="after"`

    A norm that acts on weights becomes a parametrization of the layer, and sees its input and output if it reads the
    input as well; one that brings its own activation replaces the network's; and where the norm subtracts each
    channel's own mean right behind the layer, the layer has no bias.

    Args:
        layer: the layer, with a bias; the block removes it where the norm cancels it.
        norm: builds the norm from the number of the layer's output features.
        activation: builds the activation; None where the network wants none.
        norm_position: "before" or "after" the activation.
        init: fills the layer, before a norm of weights takes it over; None for `Kaiming()`.

    Raises:
        InputError: the norm has no meaning behind this layer.
    """

    def __init__(
        self,
        layer: Layer,
        norm: NormFactory,
        activation: ActivationFactory | None = nn.ReLU,
        norm_position: Position = "before",
        init: Init | None = None,
    ) -> None:
        super().__init__()
        if norm_position not in ("before", "after"):
            raise InputError(f"norm_position={norm_position!r}: a norm stands 'before' or 'after' the activation.")
        if isinstance(norm, nn.Module) or not callable(norm):
            raise InputError(f"norm={norm!r}: a network builds its norms itself; give the class, as norm=BatchNorm.")
        built = require_norm(norm, norm(layer.weight.shape[0]), layer)
        behind = built if built.facts.acts_on == "activation" else partner_of(built, layer)
        if activation is None:
            behind.drop_activation()
        brings_activation = activation is not None and behind.facts.brings_activation
        # Norm first also where it is the activation itself, and where there is none.
        self.norm_first = norm_position == "before" or brings_activation or activation is None
        if behind.facts.cancels_bias and self.norm_first:
            layer.register_parameter("bias", None)
        (init or Kaiming())(layer)
        if behind is not built:
            parametrize.register_parametrization(layer, "weight", built)
        self.layer = layer
        self.reads_input = built.facts.reads_input
        self.norm = behind
        self.activation = nn.Identity() if activation is None or brings_activation else activation()

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        if self.reads_input:
            y = self.layer.parametrizations.weight[0].of_input(self.layer, x, y)  # type: ignore[index, union-attr]
        return self.activation(self.norm(y)) if self.norm_first else self.norm(self.activation(y))


def require_norm(norm: object, built: object, layer: Layer) -> Norm:
    """What a factory built, if it is a norm that has a meaning on the layer or behind it."""
    if not isinstance(built, Norm):
        raise InputError(
            f"norm={norm!r} built a {type(built).__name__}; a network takes layers of normzoo.norms.Norm: derive "
            f"yours from it (see CONTRIBUTING.md), or wrap what you have in normalize(self, x)."
        )
    if isinstance(layer, nn.Linear) and not built.facts.dense:
        raise InputError(
            f"{type(built).__name__} cannot stand behind a linear layer: its statistics run over the positions of "
            f"a channel, and (N, {built.num_features}) has none. Take LayerNorm, RMSNorm or BatchNorm, or train a "
            f"ConvNet or ResNet."
        )
    return built


def partner_of(built: Norm, layer: Layer) -> Norm:
    """What stands behind a layer whose weight is normalized: the norm's own choice, GroupNorm if it wants one, none."""
    then = getattr(built, "then", None) or (GroupNorm if built.facts.wants_partner else NoNorm)
    partner = require_norm(then, then(built.num_features), layer)
    if partner.facts.acts_on == "weight":
        raise InputError(
            f"{type(built).__name__}(then={type(partner).__name__}): the weights are normalized already; then is a "
            f"norm of what the layer puts out, as GroupNorm."
        )
    return partner
