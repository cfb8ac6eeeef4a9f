"""Several heads: which digit it is, and how much ink it took, from one image."""

from collections.abc import Callable

import torch
from lightning.pytorch import LightningModule
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanSquaredError
from torchmetrics.classification import MulticlassAccuracy

from normzoo.norms import BatchNorm, Norm


class DigitAndInk(LightningModule):
    def __init__(self, channels: int = 16, weight: float = 0.1, norm: Callable[[int], Norm] = BatchNorm) -> None:
        super().__init__()
        self.save_hyperparameters("channels", "weight")
        layers = [
            layer for c in (1, channels) for layer in (nn.Conv2d(c, channels, 3, 2, 1), norm(channels), nn.ReLU())
        ]
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.heads = nn.ModuleDict({"digit": nn.Linear(4 * channels, 10), "ink": nn.Linear(4 * channels, 1)})
        self.accuracy, self.error = MulticlassAccuracy(10), MeanSquaredError()

    def setup(self, stage: str) -> None:
        images, labels = load_digits(return_X_y=True)
        x = torch.tensor(images).float().view(-1, 1, 8, 8) / 16
        self.data = TensorDataset(x, torch.tensor(labels), x.mean((1, 2, 3)) * 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.body(x)
        return {"digit": self.heads["digit"](features), "ink": self.heads["ink"](features).squeeze(1)}

    def training_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, Tensor]:
        x, digit, ink = batch
        out = self(x)
        losses = {"digit": cross_entropy(out["digit"], digit), "ink": mse_loss(out["ink"], ink)}
        self.log_dict({f"train/{name}": loss for name, loss in losses.items()})
        return {"loss": losses["digit"] + self.hparams.weight * losses["ink"], **out}

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        out = self(batch[0])
        self.accuracy(out["digit"], batch[1])
        self.error(out["ink"], batch[2])
        self.log_dict({"val/accuracy": self.accuracy, "val/error": self.error})

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)}

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.utils.data.Subset(self.data, range(1200)), batch_size=100, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(torch.utils.data.Subset(self.data, range(1200, 1797)), batch_size=100)
