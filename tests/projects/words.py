"""Dictionaries as batches: is there an "x" in a word? Words of unequal length, batches of unequal size."""

from collections.abc import Callable

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from normzoo.norms import BatchNorm, Norm

LETTERS, X = 26, 24


def words(count: int, seed: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randint(1, LETTERS + 1, (3 + i % 17,), generator=g) for i in range(count)]


def collate(batch: list[Tensor]) -> dict[str, Tensor]:
    tokens = pad_sequence(batch, batch_first=True)
    return {"tokens": tokens, "mask": tokens > 0, "label": (tokens == X).any(1).float()}


class Words(LightningDataModule):
    def train_dataloader(self) -> DataLoader:
        return DataLoader(words(1010, seed=0), batch_size=64, shuffle=True, collate_fn=collate)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(words(203, seed=1), batch_size=64, collate_fn=collate)

    test_dataloader = predict_dataloader = val_dataloader


class Finder(LightningModule):
    def __init__(self, width: int = 32, norm: Callable[..., Norm] = BatchNorm) -> None:
        super().__init__()
        self.embed = nn.Embedding(LETTERS + 1, width, padding_idx=0)
        self.mlp = nn.Sequential(nn.Linear(width, width), norm(width, channel_dim=-1), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        scores = self.mlp(self.embed(batch["tokens"])).squeeze(-1)
        return scores.masked_fill(~batch["mask"], -30).amax(1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        return {"loss": binary_cross_entropy_with_logits(self(batch), batch["label"])}

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val/loss", self.training_step(batch, batch_idx)["loss"], batch_size=len(batch["label"]))

    test_step = validation_step

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        return {"score": self(batch).sigmoid(), "label": batch["label"]}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 3e-3)
