"""Tabular regression: how far a patient's diabetes progresses in a year, from ten measurements."""

from collections.abc import Callable

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from sklearn.datasets import load_diabetes
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset, random_split

from normzoo.norms import BatchNorm, Norm


class Patients(LightningDataModule):
    def setup(self, stage: str) -> None:
        x, y = load_diabetes(return_X_y=True)
        x, y = torch.tensor(x).float(), torch.tensor(y).float()
        data = TensorDataset(x / x.std(0), (y - y.mean()) / y.std())
        self.train, self.val, self.test = random_split(data, [300, 71, 71], torch.Generator().manual_seed(0))

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, batch_size=64, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, batch_size=64)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test, batch_size=64)

    predict_dataloader = test_dataloader


class Progression(LightningModule):
    def __init__(self, width: int = 32, lr: float = 0.003, norm: Callable[[int], Norm] = BatchNorm) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Linear(10, width), norm(width), nn.ReLU()),
            *(nn.Linear(width, width), norm(width), nn.ReLU(), nn.Linear(width, 1)),
        )
        self.lr = lr

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(1)

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return mse_loss(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor]) -> None:
        self.log("val_loss", mse_loss(self(batch[0]), batch[1]))

    def test_step(self, batch: list[Tensor]) -> None:
        self.log("test_loss", mse_loss(self(batch[0]), batch[1]))

    def predict_step(self, batch: list[Tensor]) -> Tensor:
        return self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), self.lr)
