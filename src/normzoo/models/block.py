"""Layer, norm and activation, joined as the norm's facts ask."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn
from torch.nn.utils import parametrize

from normzoo.errors import InputError
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
        layer: builds the layer, given whether it has a bias.
        norm: builds the norm from the number of the layer's output features.
        activation: builds the activation; None where the network wants none.
        norm_position: "before" or "after" the activation.

    Raises:
        InputError: the norm has no meaning behind this layer.
    """

    def __init__(
        self,
        layer: Callable[[bool], Layer],
        norm: NormFactory,
        activation: ActivationFactory | None = nn.ReLU,
        norm_position: Position = "before",
    ) -> None:
        super().__init__()
        with_bias = layer(True)
        features = with_bias.weight.shape[0]
        built = norm(features)
        if not isinstance(built, Norm):
            raise InputError(
                f"norm={norm!r} built a {type(built).__name__}; a network takes layers of normzoo.norms.Norm: derive "
                f"yours from it (see CONTRIBUTING.md), or wrap what you have in normalize(self, x)."
            )
        if isinstance(with_bias, nn.Linear) and not built.facts.dense:
            raise InputError(
                f"{type(built).__name__} cannot stand behind a linear layer: its statistics run over the positions of a "
                f"channel, and (N, {features}) has none. Take LayerNorm, RMSNorm or BatchNorm, or use ConvNet or ResNet."
            )
        if activation is None:
            built.drop_activation()
            norm_position = "before"
        cancels = built.facts.cancels_bias and (norm_position == "before" or built.facts.brings_activation)
        self.layer = layer(False) if cancels else with_bias
        self.norm = attach(built, self.layer)
        wants_activation = activation is not None and not built.facts.brings_activation
        self.activation = activation() if activation is not None and wants_activation else nn.Identity()
        self.norm_position = norm_position

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        if self.norm_position == "before":
            return self.activation(self.norm(x))  # type: ignore[no-any-return]
        return self.norm(self.activation(x))  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return f"norm_position={self.norm_position}"


def attach(norm: Norm, layer: Layer) -> Norm:
    """Puts a norm of weights on the layer's weight. Returns what stands behind the layer: the norm, or its partner."""
    if norm.facts.acts_on == "activation":
        return norm
    parametrize.register_parametrization(layer, "weight", norm)
    partner = getattr(norm, "then", None) or (GroupNorm if norm.facts.wants_partner else NoNorm)
    return partner(norm.num_features)  # type: ignore[no-any-return]
