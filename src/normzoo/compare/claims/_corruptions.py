"""Ten corruptions of grey images, after those of ImageNet-C: noise, blur, and changes of light."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate
from torchvision.transforms.v2 import functional as F

Corruption = Callable[[Tensor, torch.Generator], Tensor]
"""From images (N, 1, H, W) in [0, 1] to such images, which need not be clipped yet."""

NOISE: dict[str, Corruption] = {
    "Gaussian noise": lambda x, chance: x + 0.2 * torch.randn(x.shape, generator=chance),
    "shot noise": lambda x, chance: torch.poisson(16 * x, chance) / 16,
    "impulse noise": lambda x, chance: salt_and_pepper(x, torch.rand(x.shape, generator=chance), 0.1),
}
BLUR: dict[str, Corruption] = {
    "Gaussian blur": lambda x, _: F.gaussian_blur(x, [7, 7], [1.2, 1.2]),
    "motion blur": lambda x, _: avg_pool2d(x, (1, 7), stride=1, padding=(0, 3), count_include_pad=False),
    "pixelation": lambda x, _: interpolate(avg_pool2d(x, 2), scale_factor=2),
}
LIGHT: dict[str, Corruption] = {
    "contrast": lambda x, _: 0.4 * x + 0.6 * x.mean((1, 2, 3), keepdim=True),
    "brightness": lambda x, _: x + 0.3,
    "fog": lambda x, chance: 0.6 * x + 0.4 * clouds(x, chance),
    "inversion": lambda x, _: 1 - x,
}
CORRUPTIONS = NOISE | BLUR | LIGHT


def salt_and_pepper(x: Tensor, chance: Tensor, share: float) -> Tensor:
    """Makes a share of the pixels black or white."""
    return torch.where(chance < share / 2, 0.0, torch.where(chance > 1 - share / 2, 1.0, x))


def clouds(x: Tensor, chance: torch.Generator) -> Tensor:
    """Smooth random patterns in [0, 1], one per image."""
    coarse = torch.rand(len(x), 1, 4, 4, generator=chance)
    return interpolate(coarse, x.shape[2:], mode="bilinear", align_corners=True)


def corrupt(pixels: Tensor, seed: int) -> dict[str, Tensor]:
    """Each corruption of images, uint8 (N, H, W, 1)."""
    chance = torch.Generator().manual_seed(seed)
    x = pixels.permute(0, 3, 1, 2) / 255
    changed = {name: change(x, chance).clamp(0, 1) for name, change in CORRUPTIONS.items()}
    return {name: (255 * one).round().to(torch.uint8).permute(0, 2, 3, 1) for name, one in changed.items()}
