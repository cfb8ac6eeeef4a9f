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

    A norm that acts on weights becomes a parametrization of the layer; one that brings its own activation replaces the
    network's; and where the norm subtracts each channel's own mean right behind the layer, the layer has no bias.

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
        features = layer.weight.shape[0]
        built = norm(features)
        if not isinstance(built, Norm):
            raise InputError(
                f"norm={norm!r} built a {type(built).__name__}; a network takes layers of normzoo.norms.Norm: derive "
                f"yours from it (see CONTRIBUTING.md), or wrap what you have in normalize(self, x)."
            )
        if isinstance(layer, nn.Linear) and not built.facts.dense:
            raise InputError(
                f"{type(built).__name__} cannot stand behind a linear layer: its statistics run over the positions of "
                f"a channel, and (N, {features}) has none. Take LayerNorm, RMSNorm or BatchNorm, or train a ConvNet or "
                f"ResNet."
            )
        if activation is None:
            built.drop_activation()
        brings_activation = activation is not None and built.facts.brings_activation
        # Norm first also where it is the activation itself, and where there is none.
        self.norm_first = norm_position == "before" or brings_activation or activation is None
        if built.facts.cancels_bias and self.norm_first:
            layer.register_parameter("bias", None)
        (init or Kaiming())(layer)
        self.layer = layer
        self.norm = attach(built, layer)
        self.activation = nn.Identity() if activation is None or brings_activation else activation()

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        return self.activation(self.norm(x)) if self.norm_first else self.norm(self.activation(x))  # type: ignore[no-any-return]


def attach(norm: Norm, layer: Layer) -> Norm:
    """Puts a norm of weights on the layer's weight. Returns what stands behind the layer: the norm, or its partner."""
    if norm.facts.acts_on == "activation":
        return norm
    parametrize.register_parametrization(layer, "weight", norm)
    partner = getattr(norm, "then", None) or (GroupNorm if norm.facts.wants_partner else NoNorm)
    return partner(norm.num_features)  # type: ignore[no-any-return]
