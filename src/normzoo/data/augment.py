"""Augmentations with one random draw per image, for batches on any device.

The transforms of torchvision draw once per call, so that a whole batch is flipped or none of it. These two do not loop
over images either; they keep shape, dtype and memory format, of uint8 as of float.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import Transform

from normzoo.errors import InputError

# N images of H x W pixels and C channels.


class _PerImage(Transform):  # type: ignore[misc]  # torchvision ships no types
    """A transform of a batch `(N, C, H, W)` that draws its parameters for every image."""

    _transformed_types = (Tensor,)

    def check_inputs(self, flat_inputs: list[Any]) -> None:
        if not isinstance(flat_inputs[0], Tensor) or flat_inputs[0].ndim != 4:
            found = tuple(flat_inputs[0].shape) if isinstance(flat_inputs[0], Tensor) else type(flat_inputs[0]).__name__
            raise InputError(f"{type(self).__name__} got {found}; it takes a batch (N, C, H, W): add the dimension N")


class RandomFlip(_PerImage):
    """Mirror each image left to right with probability p.

    Args:
        p: probability of being mirrored, 0 to 1.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise InputError(f"p={p} is not a probability; give a number from 0 to 1")
        self.p = p

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        (x,) = flat_inputs
        return {"flipped_N": torch.rand(len(x), device=x.device) < self.p}

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        return torch.where(params["flipped_N"].view(-1, 1, 1, 1), inpt.flip(-1), inpt)


class RandomShift(_PerImage):
    """Move each image by up to `padding` pixels along each axis: `y[i, j] = x[i + dy, j + dx]`, and 0 from outside x.

    dy and dx are drawn evenly from -padding, ..., padding. This is the crop of the zero-padded image with which CIFAR
    is usually trained. Zero is black: the shift comes before normalization.

    Args:
        padding: the largest move, in pixels.
    """

    def __init__(self, padding: int = 4) -> None:
        super().__init__()
        if padding < 0:
            raise InputError(f"padding={padding} is negative; give a number of pixels, 0 or more")
        self.padding = padding

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        (x,) = flat_inputs
        row_N, column_N = torch.randint(0, 2 * self.padding + 1, (2, len(x)), device=x.device)
        return {"row_N": row_N, "column_N": column_N}

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        height, width = inpt.shape[-2:]
        padded = functional.pad(inpt, [self.padding] * 4)
        # All crops of all images as a view (N, C, rows, columns, H, W), and of each image the one it drew.
        crops = padded.unfold(2, height, 1).unfold(3, width, 1)
        return crops[torch.arange(len(inpt), device=inpt.device), :, params["row_N"], params["column_N"]]
