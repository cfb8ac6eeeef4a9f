"""The network."""

from collections.abc import Callable, Sequence

from normzoo.models import Block
from normzoo.norms import Norm
from torch import Tensor, nn

from my_project.norm import MyNorm


class Net(nn.Module):
    """Convolutions with norm and ReLU, the mean over positions, and a linear head: images (N, C, H, W) to logits."""

    def __init__(
        self,
        input_shape: tuple[int, int, int],  # this and num_classes come from the data
        num_classes: int,
        widths: Sequence[int] = (32, 64, 64),
        norm: Callable[[int], Norm] = MyNorm,
    ) -> None:
        super().__init__()
        channels = [input_shape[0], *widths]
        convolutions = [nn.Conv2d(before, after, 3, padding=1) for before, after in zip(channels, widths)]
        self.body = nn.Sequential(*[Block(convolution, norm) for convolution in convolutions])
        self.head = nn.Linear(channels[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images).mean((2, 3)))
