"""A plain stack of convolutions."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from normzoo.errors import InputError
from normzoo.models._base import Network
from normzoo.models.block import ActivationFactory, Block, NormFactory, Position
from normzoo.models.init import Init, Kaiming
from normzoo.norms import BatchNorm


class ConvNet(Network):
    """3 x 3 convolutions with norm and activation, the mean over positions, and a linear head.

    The image is halved (stride 2) wherever the width grows.

    Args:
        input_shape: (C, H, W) of one image.
        num_classes: number of logits.
        widths: channels of each convolution, first to last.
        norm: the norm after each convolution.
        activation: the activation after each convolution.
        norm_position: where the norm is, "before" or "after" the activation.
        init: how weights are initialized; None for `Kaiming()`.

    Raises:
        InputError: there is no width, or one is below 1; the image is too small for the halvings.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        widths: Sequence[int] = (32, 32, 64, 64, 128, 128),
        norm: NormFactory = BatchNorm,
        activation: ActivationFactory = nn.ReLU,
        norm_position: Position = "before",
        init: Init | None = None,
    ) -> None:
        super().__init__(input_shape, num_classes)
        if not widths or any(width < 1 for width in widths):
            raise InputError(
                f"ConvNet(widths={list(widths)}): at least one convolution, each at least 1 wide, as in [32, 64, 128]."
            )
        strides = [1] + [2 if after > before else 1 for before, after in pairwise(widths)]
        self.require_size(halvings=strides.count(2))
        channels = [input_shape[0], *widths]
        self.stack = nn.Sequential(
            *(
                Block(
                    nn.Conv2d(before, after, kernel_size=3, stride=stride, padding=1),
                    norm,
                    activation,
                    norm_position,
                    init,
                )
                for before, after, stride in zip(channels[:-1], widths, strides, strict=True)
            )
        )
        self.head = nn.Linear(widths[-1], num_classes)
        (init or Kaiming())(self.head)

    def forward(self, images: Tensor) -> Tensor:
        self.check(images, any_size=True)
        return self.head(self.stack(images).mean((2, 3)))
