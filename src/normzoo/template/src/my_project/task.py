"""The task: loss, metrics and optimizer."""

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn


class Task(LightningModule):
    """Classifies images by a network."""

    monitor, monitor_mode = "val/accuracy", "max"  # the best checkpoint is kept by this

    def __init__(self, net: nn.Module, lr: float = 0.005) -> None:
        super().__init__()
        self.net, self.lr = net, lr

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.net(images), labels)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.evaluate("val", *batch)

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.evaluate("test", *batch)

    def evaluate(self, stage: str, images: Tensor, labels: Tensor) -> None:
        logits = self.net(images)
        accuracy = (logits.argmax(1) == labels).float().mean()
        values = {f"{stage}/loss": F.cross_entropy(logits, labels), f"{stage}/accuracy": accuracy}
        self.log_dict(values, batch_size=len(labels), prog_bar=True, sync_dist=True)

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, Tensor]:
        images, labels = batch
        return {"predicted": self.net(images).argmax(1), "label": labels}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)
