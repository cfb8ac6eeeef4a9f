"""Tools of other libraries on networks with our layers: statistics of averaged weights, freezing, conversion, timm."""

import copy
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import torch
from laws import assert_close, assert_same_buffers, law, on_activations, on_images
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning, StochasticWeightAveraging
from subjects import Subject
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader

from normzoo import norms
from normzoo.errors import InputError
from normzoo.norms import Norm
from normzoo.norms._arguments import keyword_defaults
from normzoo.surgery import recalibrate, undo
from normzoo.surgery._moments import running_buffers

BATCH_NORMS = (norms.BatchNorm, norms.TorchBatchNorm)
BATCHES = [torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(i)) + i for i in range(4)]


def network(norm: type[nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), norm(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2))


class Task(LightningModule):
    """Minimizes the mean square of a network's output."""

    def __init__(self, norm: type[nn.Module]) -> None:
        super().__init__()
        self.net = network(norm)

    def training_step(self, batch: Tensor) -> Tensor:
        return self.net(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(filter(lambda p: p.requires_grad, self.parameters()), 0.05)


def fit(task: Task, callback: Any, folder: Any) -> Task:
    trainer = Trainer(
        max_epochs=4,
        accelerator="cpu",
        callbacks=[callback],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, DataLoader(BATCHES, batch_size=None))  # type: ignore[arg-type] # a list is a data set, too
    return task


def assert_same_state(net: nn.Module, other: nn.Module, tolerance: float = 1e-5) -> None:
    expected = other.state_dict()
    for name, value in net.state_dict().items():
        assert_close(value, expected[name], name, tolerance)


@pytest.mark.parametrize("norm", BATCH_NORMS)
def test_update_bn(norm: type[Norm]) -> None:
    """The statistics of the averaged network are those that torch's layer has."""
    net, theirs = network(norm), network(nn.BatchNorm2d)
    for one in (net, theirs):
        one(BATCHES[0])
        update_bn(BATCHES, one)
    assert_same_state(net, theirs)
    assert net[1].momentum == 0.1


def has_momentum(subject: Subject) -> bool:
    return on_images(subject) and "momentum" in keyword_defaults(subject.layer)


def averaging(subject: Subject) -> dict[str, Any]:
    """Arguments with which the layer keeps running statistics."""
    return {} if subject.layer(8).num_batches_tracked is not None else {"track_running_stats": True}


@law(when=has_momentum)
def test_recalibrate(subject: Subject) -> None:
    """On one batch each layer gets the running statistics that it computes itself, and `undo` restores the old ones."""
    layer, expected = subject.experienced(averaging(subject)), subject.build({**averaging(subject), "momentum": None})
    net, before = nn.Sequential(layer).eval(), copy.deepcopy(layer)
    x = subject.input(seed=3)
    if not layer.averages_batches:
        with pytest.raises(InputError, match="no average over batches"):
            recalibrate(net, [x])
        return
    expected(torch.cat([x] * getattr(layer, "num_splits", 1)))  # each part is the batch
    report = recalibrate(net, [x])
    for name, value in running_buffers(layer).items():
        assert_close(value, getattr(expected, name), name)
    assert layer.momentum == before.momentum
    undo(report)
    assert_same_buffers(layer, before, 0)


@law(when=has_momentum)
def test_recalibrate_keeps_a_frozen_layer(subject: Subject) -> None:
    """Its statistics stay."""
    layer = subject.experienced(
        {} if subject.layer(8).num_batches_tracked is not None else {"track_running_stats": True}
    )
    before = copy.deepcopy(layer.freeze())
    with suppress(InputError):  # there is nothing else to recalibrate
        recalibrate(nn.Sequential(layer).eval(), [subject.input(seed=3)])
    assert_same_buffers(layer, before, 0)


@pytest.mark.parametrize("norm", BATCH_NORMS)
def test_stochastic_weight_averaging(norm: type[Norm], tmp_path: Any) -> None:
    """Lightning's callback computes the statistics of the averaged weights."""
    ours, theirs = (fit(Task(n), StochasticWeightAveraging(0.05, 2, 1), tmp_path) for n in (norm, nn.BatchNorm2d))
    assert_same_state(ours.net, theirs.net)


class Finetuning(BaseFinetuning):
    """Freezes the first two layers, and trains them from epoch 2."""

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        self.freeze(pl_module.net[:2], train_bn=False)

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        if epoch == 2:
            self.unfreeze_and_add_param_group(pl_module.net[:2], optimizer, lr=0.05)


@pytest.mark.parametrize("norm", BATCH_NORMS)
def test_finetuning(norm: type[Norm], tmp_path: Any) -> None:
    """Frozen by Lightning's callback, the layer keeps its statistics, and updates them again afterwards."""
    ours, theirs = (fit(Task(n), Finetuning(), tmp_path) for n in (norm, nn.BatchNorm2d))
    assert_same_state(ours.net, theirs.net)
    frozen = network(norm)
    BaseFinetuning.freeze(frozen[1], train_bn=False)
    before = copy.deepcopy(frozen)
    frozen(BATCHES[1])
    assert_same_state(frozen, before, 0)


@pytest.mark.parametrize("norm", BATCH_NORMS)
def test_convert_sync_batchnorm(norm: type[Norm]) -> None:
    """torch's conversion replaces the layer by SyncBatchNorm with the same state; a layer of another formula stays."""
    net = nn.Sequential(network(norm), norms.GhostBatchNorm(8))
    net[0](BATCHES[0])
    before = copy.deepcopy(net[0])
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    assert isinstance(converted[0][1], nn.SyncBatchNorm)
    assert_same_state(converted[0], before)
    assert type(converted[1]) is norms.GhostBatchNorm


@pytest.mark.parametrize("norm", BATCH_NORMS)
def test_timm_freezes(norm: type[Norm]) -> None:
    """timm's `freeze_batch_norm_2d` makes constants of the layer."""
    utils = pytest.importorskip("timm.utils.model")
    net = network(norm)
    net(BATCHES[0])
    expected = copy.deepcopy(net).eval()(BATCHES[1])
    frozen = utils.freeze_batch_norm_2d(net)
    assert type(frozen[1]).__name__ == "FrozenBatchNorm2d"
    assert_close(frozen.train()(BATCHES[1]), expected, tolerance=1e-5)


SWIN = {"img_size": 56, "depths": (1, 1), "num_heads": (2, 4), "embed_dim": 16}
NETWORKS: dict[str, tuple[str, dict[str, Any], int]] = {
    "resnet": ("resnet18", {}, 1),
    "convnext": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16), "conv_mlp": True}, 1),
    "vit": ("vit_tiny_patch16_224", {"img_size": 64, "depth": 2}, -1),
    "swin": ("swin_tiny_patch4_window7_224", SWIN, -1),
}
FAST = (norms.BatchNorm, norms.ChannelLayerNorm, norms.RMSNorm)


def trains(norm: type[Norm], network: str) -> None:
    """Builds a network of timm with a norm, and trains two steps."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    name, settings, axis = NETWORKS[network]
    # ConvNeXt moves the channels for its own norm only: timm asks for conv_mlp=True beside a norm_layer.
    norm_layer = norm if axis == 1 else partial(norm, channel_dim=axis)
    net = timm.create_model(name, norm_layer=norm_layer, num_classes=3, **settings)
    assert any(isinstance(module, norm) for module in net.modules())
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    size = settings.get("img_size", 64)
    for seed in range(2):
        loss = net(torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(seed))).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert loss.isfinite()


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("norm", FAST)
def test_timm_networks(norm: type[Norm], network: str) -> None:
    """Networks of timm build and train with `norm_layer=` our layer."""
    trains(norm, network)


@pytest.mark.slow
@law(when=on_activations, per_class=True)
def test_timm_networks_with_every_norm(subject: Subject) -> None:
    """Networks of timm build and train with every layer that has what they need of a norm.

    Swin reads the weight of its norms, for its device; ConvNeXt normalizes (N, C, 1, 1), of which no channel of a
    sample has a variance.
    """
    works = {
        "swin": getattr(subject.layer(8), "weight", None) is not None,
        "convnext": subject.layer.facts.dense or not subject.layer.facts.centres,
    }
    for network in NETWORKS:
        if works.get(network, True):
            trains(subject.layer, network)
