"""Volumes (N, C, D, H, W): finds the voxels of a ball in noise. Nothing is logged, nothing is tested."""

from collections.abc import Callable

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader, Dataset

from normzoo.norms import InstanceNorm, Norm


class Balls(Dataset):
    def __init__(self, count: int, size: int = 12) -> None:
        self.count, self.size = count, size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        random = torch.Generator().manual_seed(i)
        place = torch.stack(torch.meshgrid(*[torch.arange(self.size)] * 3, indexing="ij")).float()
        centre, radius = 3 + 6 * torch.rand(3, 1, 1, 1, generator=random), 2 + 2 * torch.rand(1, generator=random)
        inside = ((place - centre).norm(dim=0, keepdim=True) < radius).float()
        return inside + torch.randn(inside.shape, generator=random), inside


class BallsData(LightningDataModule):
    def __init__(self, count: int = 96) -> None:
        super().__init__()
        self.count = count

    def train_dataloader(self) -> DataLoader:
        return DataLoader(Balls(self.count), batch_size=8, shuffle=True)

    def predict_dataloader(self) -> DataLoader:
        return DataLoader(Balls(10), batch_size=4)


class Segmenter(LightningModule):
    def __init__(self, channels: int = 8, norm: Callable[[int], Norm] = InstanceNorm) -> None:
        super().__init__()
        sizes = [(1, channels), (channels, channels)]
        blocks = [(nn.Conv3d(a, b, 3, padding=1), norm(b), nn.LeakyReLU()) for a, b in sizes]
        self.net = nn.Sequential(*(layer for block in blocks for layer in block), nn.Conv3d(channels, 1, 1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return binary_cross_entropy_with_logits(self.net(batch[0]), batch[1])

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, Tensor]:
        inside = self.net(batch[0]) > 0
        return {"volume": inside.sum((1, 2, 3, 4)), "truth": batch[1].sum((1, 2, 3, 4))}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)
