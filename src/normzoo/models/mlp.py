"""The multilayer perceptron."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from normzoo.errors import InputError
from normzoo.models._base import Network
from normzoo.models.block import ActivationFactory, Block, NormFactory, Position
from normzoo.models.init import Init, Kaiming
from normzoo.norms import BatchNorm


class MLP(Network):
    """Linear layers with norm and activation, and a linear head.

    Args:
        input_shape: (C, H, W) of one image; its values become one vector.
        num_classes: number of logits.
        hidden: width of each hidden layer; none at all is a linear classifier.
        norm: the norm after each hidden layer.
        activation: the activation after each hidden layer.
        norm_position: where the norm is, "before" or "after" the activation.
        init: how weights are initialized; None for `Kaiming()`.

    Raises:
        InputError: a width below 1; the norm needs positions.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        hidden: Sequence[int] = (100, 100, 100),
        norm: NormFactory = BatchNorm,
        activation: ActivationFactory = nn.ReLU,
        norm_position: Position = "before",
        init: Init | None = None,
    ) -> None:
        super().__init__(input_shape, num_classes)
        if any(width < 1 for width in hidden):
            raise InputError(f"MLP(hidden={list(hidden)}): every layer is at least 1 wide, as in [100, 100, 100].")
        channels, height, width = input_shape
        widths = [channels * height * width, *hidden]
        self.hidden = nn.Sequential(
            *(
                Block(nn.Linear(before, after), norm, activation, norm_position, init)
                for before, after in pairwise(widths)
            )
        )
        self.head = nn.Linear(widths[-1], num_classes)
        (init or Kaiming())(self.head)

    def forward(self, images: Tensor) -> Tensor:
        self.check(images, any_size=False)
        return self.head(self.hidden(images.flatten(1)))
