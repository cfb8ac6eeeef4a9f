"""The loops that `train.py` times, each in a process of its own: python arms.py ARM prints milliseconds per step.

Every arm sees random data of the real data set's shape, trains past the start, and reports the median over windows of
WINDOW steps, so that what happens only every so often (logging, the progress bar) counts with its share.
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from normzoo.cli.runtime import share_cores

if "ours" in sys.argv[-1]:  # what the command normzoo does before it imports torch
    share_cores()

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from normzoo.data import FashionMNIST, Images
from normzoo.models import MLP, ResNet
from normzoo.norms import TorchBatchNorm

CONFIGS = Path(__file__).parents[2] / "configs"
WINDOW = 50
WARMUP = 100


class RandomImages(FashionMNIST):
    """Fashion-MNIST in shape and size, random in content."""

    side = 28
    count = 20_000

    def prepare_data(self) -> None:
        """Nothing to fetch."""

    def read(self) -> tuple[Images, Images]:
        generator = torch.Generator().manual_seed(0)

        def some(count: int) -> Images:
            shape = (count, self.side, self.side, self.input_shape[0])
            pixels = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
            return Images(pixels, torch.randint(10, (count,), generator=generator))

        return some(self.count), some(1_000)


class RandomImages32(RandomImages):
    """CIFAR-10 in shape."""

    input_shape = (3, 32, 32)
    mean = (0.49, 0.48, 0.45)
    std = (0.25, 0.24, 0.26)
    side = 32
    count = 4_000


class StepTimer(Callback):
    """Notes when each training step has ended, and stops the run when there are enough."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.ends: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        self.ends.append(time.perf_counter())
        if len(self.ends) == self.steps:
            trainer.should_stop = True

    def on_train_epoch_end(self, *_: object) -> None:
        self.ends.append(float("nan"))  # what lies between epochs is not a step


def per_step(ends: list[float], warmup: int, window: int) -> float:
    """Milliseconds per step: the median over windows that lie within an epoch."""
    ends = ends[warmup:]
    spans = [(b - a) / window for a, b in zip(ends[:-window:window], ends[window::window], strict=False)]
    return 1e3 * median(span for span in spans if span == span)


def fit(config: str, data: str, steps: int, warmup: int, window: int, *flags: str) -> float:
    """Our command line with one of our configs, without monitors, whose cost `scripts/bench monitors` shows."""
    from normzoo.cli.fit import CLI

    timer: list[StepTimer] = []

    class TimedCLI(CLI):
        def instantiate_trainer(self, **kwargs: object) -> Trainer:
            trainer = super().instantiate_trainer(**kwargs)
            timer.append(StepTimer(steps))
            trainer.callbacks.append(timer[0])  # type: ignore[attr-defined]
            return trainer

    endless = ["--trainer.max_epochs=1000", "--data.val_size=0", "--test_after_fit=false", "--trainer.accelerator=cpu"]
    endless.append("--monitors=false")
    with tempfile.TemporaryDirectory() as folder:
        TimedCLI(["fit", "-c", str(CONFIGS / config), f"--data={data}", f"--runs={folder}", *endless, *flags])
    return per_step(timer[0].ends, warmup, window)


def bare(net: nn.Module, images: Tensor, labels: Tensor, batch: int, steps: int, warmup: int, window: int) -> float:
    """The loop that people write, on float images in memory."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    ends: list[float] = []
    while len(ends) < steps:
        order = torch.randperm(len(images))
        for rows in order.split(batch)[:-1]:
            x, y = images[rows], labels[rows]
            loss = F.cross_entropy(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            ends.append(time.perf_counter())
        ends.append(float("nan"))
    return per_step(ends, warmup, window)


def mlp_ours() -> float:
    """784-100-100-100-10 with BatchNorm, batch 64, by `normzoo fit`."""
    return fit("fashion_mlp.yaml", "arms.RandomImages", 1500, 300, WINDOW)


def mlp_bare() -> float:
    """The same network with torch's BatchNorm1d in a bare loop."""
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in ((784, 100), (100, 100), (100, 100)):
        layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Linear(100, 10))
    return bare(net, torch.randn(20_000, 1, 28, 28), torch.randint(10, (20_000,)), 64, 1500, 300, WINDOW)


def mlp_bare_own_norm() -> float:
    """The same network with our BatchNorm in a bare loop: what Lightning and our hooks add, without the layer."""
    net = MLP((1, 28, 28), 10)
    return bare(net, torch.randn(20_000, 1, 28, 28), torch.randint(10, (20_000,)), 64, 1500, 300, WINDOW)


WIDE = ("--model.net.hidden=[64,128,64]", "--data.batch_size=128")


def lightning_ours() -> float:
    """784-64-128-64-10 with BatchNorm, batch 128, by `normzoo fit`."""
    return fit("fashion_mlp.yaml", "arms.RandomImages", 600, 160, WINDOW, *WIDE)


def lightning_torchvision() -> float:
    """The same in Lightning with torchvision's dataset, ToTensor, Normalize and a DataLoader, as templates do it."""
    from torchmetrics import MaxMetric, MeanMetric
    from torchmetrics.classification import MulticlassAccuracy

    class Pixels(datasets.VisionDataset):
        def __init__(self) -> None:
            super().__init__(
                "", transform=transforms.Compose([transforms.ToTensor(), transforms.Normalize(0.1307, 0.3081)])
            )
            self.data = torch.randint(256, (20_000, 28, 28), dtype=torch.uint8)
            self.targets = torch.randint(10, (20_000,)).tolist()

        def __len__(self) -> int:
            return len(self.data)

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            from PIL import Image

            return self.transform(Image.fromarray(self.data[index].numpy(), mode="L")), self.targets[index]

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            layers: list[nn.Module] = [nn.Flatten()]
            for before, after in ((784, 64), (64, 128), (128, 64)):
                layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()]
            self.net = nn.Sequential(*layers, nn.Linear(64, 10))
            self.train_acc, self.train_loss = MulticlassAccuracy(10), MeanMetric()
            self.best = MaxMetric()

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            logits = self.net(batch[0])
            loss = F.cross_entropy(logits, batch[1])
            self.train_loss(loss)
            self.train_acc(logits.argmax(1), batch[1])
            self.log("train/loss", self.train_loss, on_step=False, on_epoch=True, prog_bar=True)
            self.log("train/acc", self.train_acc, on_step=False, on_epoch=True, prog_bar=True)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=1e-3)

    timer = StepTimer(300)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(max_epochs=10, accelerator="cpu", callbacks=[timer], default_root_dir=folder)
        trainer.fit(Module(), DataLoader(Pixels(), batch_size=128, shuffle=True, num_workers=0))
    return per_step(timer.ends, 50, 25)


def resnet_ours() -> float:
    """ResNet-8, 3 x 32 x 32, batch 128, by `normzoo fit` with the ResNet config as it ships."""
    return fit("cifar10_resnet.yaml", "arms.RandomImages32", 90, 10, 10, "--model.net.depth=8")


def resnet_ours_torch_norm() -> float:
    """The same with torch's own batch norm: what of the ratio is the template and what the layer."""
    flags = ("--model.net.depth=8", "--model.net.norm=TorchBatchNorm")
    return fit("cifar10_resnet.yaml", "arms.RandomImages32", 90, 10, 10, *flags)


def resnet_bare() -> float:
    """The same network with torch's batch norm in a bare loop: default allocator, NCHW, no augmentation."""
    net = ResNet((3, 32, 32), 10, depth=8, norm=TorchBatchNorm)
    return bare(net, torch.randn(4_000, 3, 32, 32), torch.randint(10, (4_000,)), 128, 90, 10, 10)


if __name__ == "__main__":
    arm = globals()[sys.argv[1]]
    result = sys.stdout
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the life of the process: the bar and the tables
    milliseconds = arm()
    print(milliseconds, file=result)
