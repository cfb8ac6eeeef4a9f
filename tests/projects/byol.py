"""Self-supervised (BYOL): a network predicts what its own moving average says of another view of the image."""

import copy
from collections.abc import Callable

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from torch.utils.data import DataLoader

from normzoo.norms import BatchNorm, Norm


class UnlabelledDigits(LightningDataModule):
    def train_dataloader(self) -> DataLoader:
        images = torch.tensor(load_digits().data).float().view(-1, 1, 8, 8) / 16
        return DataLoader(images, batch_size=128, shuffle=True, drop_last=True)


def view(x: Tensor) -> Tensor:
    """Shifted by up to a pixel, lighter or darker, with noise."""
    shift = torch.randint(-1, 2, (2,)).tolist()
    return x.roll(shift, (2, 3)) * (0.6 + 0.8 * torch.rand(len(x), 1, 1, 1)) + 0.1 * torch.randn_like(x)


class BYOL(LightningModule):
    def __init__(self, width: int = 64, decay: float = 0.98, norm: Callable[[int], Norm] = BatchNorm) -> None:
        super().__init__()
        self.save_hyperparameters(ignore="norm")
        self.online = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, 2, 1), norm(16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), norm(32), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(128, width), norm(width), nn.ReLU(), nn.Linear(width, width)),
        )
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.predictor = nn.Sequential(nn.Linear(width, width), norm(width), nn.ReLU(), nn.Linear(width, width))

    def training_step(self, images: Tensor, batch_idx: int) -> Tensor:
        one, other = view(images), view(images)
        with torch.no_grad():
            targets = self.target(other), self.target(one)
        predictions = self.predictor(self.online(one)), self.predictor(self.online(other))
        loss = sum(1 - cosine_similarity(p, t).mean() for p, t in zip(predictions, targets, strict=True))
        self.log("similarity", 1 - loss / 2, prog_bar=True)
        return loss

    @torch.no_grad()
    def on_train_batch_end(self, outputs: object, batch: Tensor, batch_idx: int) -> None:
        for slow, fast in zip(self.target.parameters(), self.online.parameters(), strict=True):
            slow.lerp_(fast, 1 - self.hparams.decay)

    def predict_step(self, images: Tensor, batch_idx: int) -> dict[str, Tensor]:
        return {"embedding": self.online(images)}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=2e-3)
