"""Trainings as anybody writes them: torchvision's and timm's networks, a LightningModule, a Trainer built in Python."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import lightning.pytorch as pl
import timm
import torch
from monitored import QUIET
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchvision import models

from normzoo.callbacks import MONITORS, Verdicts
from normzoo.monitoring.monitor import Monitor
from normzoo.norms import BatchNorm, ChannelLayerNorm, GroupNorm, RMSNorm
from normzoo.surgery import replace

CLASSES = 5
OF_TOKENS = partial(RMSNorm, channel_dim=-1)

Build = Callable[..., nn.Module]
"""From `norm_layer`, if any, to a network of 3 x 32 x 32 images."""


def convnext(**norm: Any) -> nn.Module:
    blocks = [models.convnext.CNBlockConfig(8, 16, 1), models.convnext.CNBlockConfig(16, None, 1)]
    return models.ConvNeXt(blocks, num_classes=CLASSES, layer_scale=0.1, **norm)


def small(name: str, **settings: Any) -> Build:
    """One of timm's networks."""
    return partial(timm.create_model, name, num_classes=CLASSES, **settings)


def replaced(name: str) -> Build:
    """One whose layers hold the activation: it takes a layer of ours by surgery."""

    def build(norm_layer: Any = None) -> nn.Module:
        net = small(name)()
        if norm_layer is not None:
            replace(net, {"BatchNorm*": norm_layer})
        return net

    return build


TOKENS = {"img_size": 32, "patch_size": 8}
# Network -> how to build it, and layers of ours for `norm_layer`.
NETWORKS: dict[str, tuple[Build, Sequence[Any]]] = {
    "timm-resnet": (small("test_resnet"), [BatchNorm, GroupNorm, ChannelLayerNorm]),
    "timm-vit": (small("test_vit", **TOKENS), [OF_TOKENS]),
    "timm-convnext": (small("test_convnext", conv_mlp=True), [ChannelLayerNorm, GroupNorm]),
    "timm-resnet10t": (small("resnet10t"), [BatchNorm]),
    "timm-convnext_atto": (small("convnext_atto"), [ChannelLayerNorm]),
    "timm-efficientnet_lite0": (replaced("efficientnet_lite0"), [BatchNorm]),
    "timm-regnety_002": (replaced("regnety_002"), [GroupNorm]),
    "timm-vit_tiny": (small("vit_tiny_patch16_224", depth=3, **TOKENS), [OF_TOKENS]),
    "resnet18": (partial(models.resnet18, num_classes=CLASSES), [BatchNorm, GroupNorm]),
    "convnext": (convnext, [ChannelLayerNorm, BatchNorm]),
    "mobilenet_v3": (partial(models.mobilenet_v3_small, num_classes=CLASSES), [BatchNorm]),
    "vit": (partial(models.VisionTransformer, 32, 8, 2, 2, 32, 64, num_classes=CLASSES), [OF_TOKENS]),
}


class Task(pl.LightningModule):
    """A classifier that has never heard of this package."""

    def __init__(self, net: nn.Module, lr: float = 0.01) -> None:
        super().__init__()
        self.net, self.lr = net, lr

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self.net(batch[0]), batch[1]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", F.cross_entropy(self.net(batch[0]), batch[1]))

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.net(batch[0]).argmax(1)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD((p for p in self.parameters() if p.requires_grad), self.lr, momentum=0.9)


def images(count: int = 32, batch_size: int = 8, shuffle: bool = False) -> DataLoader[Any]:
    """Images of noise, some of which are brighter than others."""
    random = torch.Generator().manual_seed(1)
    labels = torch.randint(CLASSES, (count,), generator=random)
    x = torch.randn(count, 3, 32, 32, generator=random) + labels.view(-1, 1, 1, 1)
    return DataLoader(TensorDataset(x, labels), batch_size=batch_size, shuffle=shuffle)


def monitors(every: int | None = None) -> list[Monitor]:
    """All of them."""
    return [one(every) for one in MONITORS]


def trainer(callbacks: Sequence[pl.Callback] = (), **settings: Any) -> pl.Trainer:
    options = {**QUIET, "max_epochs": 1, "log_every_n_steps": 1, "logger": False, **settings}
    return pl.Trainer(callbacks=list(callbacks), **options)


def train(make: Callable[[], pl.LightningModule], callbacks: Sequence[pl.Callback], **settings: Any) -> pl.Trainer:
    """Trains from the same weights, data and random numbers each time."""
    torch.manual_seed(0)
    task = make()
    torch.manual_seed(1)
    made = trainer(callbacks, **settings)
    made.fit(task, images(shuffle=True), images(16))
    return made


def result(made: pl.Trainer) -> dict[str, Tensor]:
    """What a training ends with."""
    momenta = [value for state in made.optimizers[0].state.values() for value in state.values()]
    found = {**made.lightning_module.state_dict(), **{str(i): value for i, value in enumerate(momenta)}}
    return {**found, "random numbers": torch.get_rng_state()}


def found(made: pl.Trainer) -> dict[str, dict[str, float]]:
    """Metric -> layer -> the newest value that a monitor has written."""
    callbacks: list[pl.Callback] = made.callbacks  # set by Lightning, undeclared
    return {metric: of for one in callbacks if isinstance(one, Monitor) for metric, of in one.latest.items()}


def verdicts(made: pl.Trainer) -> Verdicts:
    [one] = [one for one in made.callbacks if isinstance(one, Verdicts)]
    return one
