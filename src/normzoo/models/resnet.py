"""Residual networks."""

from functools import partial
from typing import Literal

from torch import Tensor, nn

from normzoo.errors import InputError
from normzoo.models._base import Network
from normzoo.models.block import ActivationFactory, Block, NormFactory, Position
from normzoo.models.init import Init, Kaiming
from normzoo.norms import BatchNorm


class ResNet(Network):
    """The residual network for small images: 6n + 2 layers in three stages of n basic blocks.

    The stages have width, 2 width and 4 width channels, and the second and third halve the image. Where a block
    changes the shape, the shortcut is a 1 x 1 convolution with norm (option B of the paper).

    Args:
        input_shape: (C, H, W) of one image.
        num_classes: number of logits.
        depth: number of layers, 6n + 2: 8, 14, 20, 32, 44, 56, 110 ...
        width: channels of the first stage.
        stem: "cifar" for one 3 x 3 convolution; "imagenet" for 7 x 7 with stride 2 and a max pooling with stride 2.
        norm: the norm after each convolution.
        activation: the activation in each block, and after each sum.
        norm_position: where the norm is, "before" or "after" the activation.
        init: how weights are initialized; None for `Kaiming(mode="fan_out")`, as in the paper's code.

    Raises:
        InputError: the depth is not 6n + 2, the width is below 1, the stem is unknown, or the image is too small.

    Reference: Kaiming He, Xiangyu Zhang, Shaoqing Ren, Jian Sun. Deep Residual Learning for Image Recognition. 2015.
    arXiv 1512.03385, section 4.2.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        depth: int = 20,
        width: int = 16,
        stem: Literal["cifar", "imagenet"] = "cifar",
        norm: NormFactory = BatchNorm,
        activation: ActivationFactory = nn.ReLU,
        norm_position: Position = "before",
        init: Init | None = None,
    ) -> None:
        super().__init__(input_shape, num_classes)
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            nearest = 6 * max(round((depth - 2) / 6), 1) + 2
            raise InputError(
                f"ResNet(depth={depth}): the depth is 6n + 2 with n of at least 1; the nearest: {nearest}."
            )
        if width < 1:
            raise InputError(f"ResNet(width={width}): the first stage has at least 1 channel; the default is 16.")
        if stem not in ("cifar", "imagenet"):
            raise InputError(f"ResNet(stem={stem!r}): the stems are 'cifar', for small images, and 'imagenet'.")
        self.require_size(halvings=2 if stem == "cifar" else 4)
        init = init or Kaiming(mode="fan_out")
        block = partial(Block, norm=norm, activation=activation, norm_position=norm_position, init=init)
        if stem == "cifar":
            self.stem: nn.Module = block(nn.Conv2d(input_shape[0], width, 3, padding=1))
        else:
            first = block(nn.Conv2d(input_shape[0], width, 7, stride=2, padding=3))
            self.stem = nn.Sequential(first, nn.MaxPool2d(3, stride=2, padding=1))
        stages, channels = [], width
        for stage, stage_width in enumerate((width, 2 * width, 4 * width)):
            for index in range(blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                stages.append(BasicBlock(channels, stage_width, stride, block, activation))
                channels = stage_width
        self.blocks = nn.Sequential(*stages)
        self.head = nn.Linear(channels, num_classes)
        init(self.head)

    def forward(self, images: Tensor) -> Tensor:
        self.check(images, any_size=True)
        return self.head(self.blocks(self.stem(images)).mean((2, 3)))


class BasicBlock(nn.Module):
    """`activation(shortcut(x) + second(first(x)))`, two 3 x 3 convolutions with their norms.

    Args:
        before: channels of the input.
        after: channels of the output.
        stride: of the first convolution.
        block: builds a `Block` around a convolution.
        activation: after the sum.
    """

    def __init__(
        self, before: int, after: int, stride: int, block: "partial[Block]", activation: ActivationFactory
    ) -> None:
        super().__init__()
        self.first = block(nn.Conv2d(before, after, 3, stride=stride, padding=1))
        self.second = block(nn.Conv2d(after, after, 3, padding=1), activation=None)
        same = before == after and stride == 1
        self.shortcut = nn.Identity() if same else block(nn.Conv2d(before, after, 1, stride=stride), activation=None)
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.shortcut(x) + self.second(self.first(x)))
