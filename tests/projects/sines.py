"""Sequences (N, L, C): a transformer predicts the next value of sums of sines, from a stream of unknown length."""

from collections.abc import Callable, Iterator

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from normzoo.norms import Norm, RMSNorm


class Sines(IterableDataset):
    def __init__(self, seed: int, count: int) -> None:
        self.seed, self.count = seed, count

    def __iter__(self) -> Iterator[Tensor]:
        random = torch.Generator().manual_seed(self.seed)
        for _ in range(self.count):
            rate, phase = torch.rand(2, 3, 1, generator=random)
            yield ((0.1 + rate) * torch.arange(33) + 6.28 * phase).sin().sum(0)


class Block(nn.Module):
    def __init__(self, width: int, norm: Callable[..., Norm]) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(width, channel_dim=-1), norm(width, channel_dim=-1)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        y, mask = self.norm1(x), torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        x = x + self.attention(y, y, y, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class Forecaster(LightningModule):
    def __init__(self, width: int = 32, norm: Callable[..., Norm] = RMSNorm) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(1, width), nn.Parameter(0.02 * torch.randn(32, width))
        self.net = nn.Sequential(Block(width, norm), Block(width, norm), nn.Linear(width, 1))

    def training_step(self, series: Tensor) -> Tensor:
        predicted = self.net(self.embed(series[:, :-1, None]) + self.place).squeeze(-1)
        return (predicted - series[:, 1:]).square().mean()

    def validation_step(self, series: Tensor) -> None:
        self.log("val/loss", self.training_step(series))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-3)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(Sines(0, 2000), batch_size=32)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(Sines(1, 200), batch_size=32)
