"""A layer with its norm and activation, combined by the facts of the norm."""

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

    A norm that acts on weights becomes a parametrization of the layer, and also receives its input and output if it
    normalizes the input too. A norm with an activation of its own replaces the network's. If the norm subtracts the
    mean of each channel directly after the layer, the layer has no bias.

    Args:
        layer: the layer, with a bias; the block removes it if the norm cancels it.
        norm: builds the norm from the number of the layer's output features.
        activation: builds the activation; None for no activation.
        norm_position: "before" or "after" the activation.
        init: initializes the layer, before its weight is normalized; None for `Kaiming()`.

    Raises:
        InputError: the norm cannot follow this layer.
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
            raise InputError(f"norm_position={norm_position!r}: the norm is 'before' or 'after' the activation.")
        if isinstance(norm, nn.Module) or not callable(norm):
            raise InputError(f"norm={norm!r}: a network builds its norms; pass the class, such as norm=BatchNorm.")
        built = require_norm(norm, norm(layer.weight.shape[0]), layer)
        following = built if built.facts.acts_on == "activation" else partner_of(built, layer)
        if activation is None:
            following.drop_activation()
        brings_activation = activation is not None and following.facts.brings_activation
        # The norm also comes first if it is the activation, or if there is no activation.
        self.norm_first = norm_position == "before" or brings_activation or activation is None
        if following.facts.cancels_bias and self.norm_first:
            layer.register_parameter("bias", None)
        (init or Kaiming())(layer)
        if following is not built:
            parametrize.register_parametrization(layer, "weight", built)
        self.layer = layer
        self.reads_input = built.facts.reads_input
        self.norm = following
        self.activation = nn.Identity() if activation is None or brings_activation else activation()

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        if self.reads_input:
            y = self.layer.parametrizations.weight[0].of_input(self.layer, x, y)  # type: ignore[index, union-attr]
        return self.activation(self.norm(y)) if self.norm_first else self.norm(self.activation(y))


def require_norm(norm: object, built: object, layer: Layer) -> Norm:
    """Returns what a factory built, if it is a norm that can act on the layer or follow it."""
    if not isinstance(built, Norm):
        raise InputError(
            f"norm={norm!r} built a {type(built).__name__}; a network takes layers of normzoo.norms.Norm: derive "
            f"yours from it (see CONTRIBUTING.md): implement normalize(self, x)."
        )
    if isinstance(layer, nn.Linear) and not built.facts.dense:
        raise InputError(
            f"{type(built).__name__} cannot follow a linear layer: its statistics run over the positions of "
            f"a channel, and (N, {built.num_features}) has none. Use LayerNorm, RMSNorm or BatchNorm, or train a "
            f"ConvNet or ResNet."
        )
    return built


def partner_of(built: Norm, layer: Layer) -> Norm:
    """The norm after a layer with a normalized weight: the norm's own choice, GroupNorm if it needs one, or none."""
    then = getattr(built, "then", None) or (GroupNorm if built.facts.wants_partner else NoNorm)
    partner = require_norm(then, then(built.num_features), layer)
    if partner.facts.acts_on == "weight":
        raise InputError(
            f"{type(built).__name__}(then={type(partner).__name__}): the weights are normalized already; `then` must "
            f"normalize the layer's output, as GroupNorm does."
        )
    return partner
