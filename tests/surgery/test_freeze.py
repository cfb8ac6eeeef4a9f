"""`freeze` and `FreezeNorms`: statistics that stay, in training, in copies and after a resume."""

import copy
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torchvision.ops import FrozenBatchNorm2d

from normzoo import norms
from normzoo.callbacks import ExactResume, FreezeNorms
from normzoo.data import Digits
from normzoo.errors import InputError
from normzoo.monitoring.layers import unwrapped
from normzoo.surgery import freeze, recalibrate, undo

IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 + 1
LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "BatchNorm2d": nn.BatchNorm2d,
    "InstanceNorm2d": partial(nn.InstanceNorm2d, affine=True, track_running_stats=True),
    "BatchNormAct2d": BatchNormAct2d,
    "BatchNorm": norms.BatchNorm,
    "SplitBatchNorm": norms.SplitBatchNorm,
    "EvoNormB0": norms.EvoNormB0,
    "IterativeNorm": norms.IterativeNorm,
}
over_layers = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)


def network(layer: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Sequential:
    """A network with statistics that are not those of the start."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), layer(8), nn.Conv2d(8, 8, 3), layer(8), nn.GroupNorm(2, 8), nn.Dropout(0.5), nn.Flatten(1)
    )
    net.train()(IMAGES)
    return net


def copied(net: nn.Module) -> nn.Module:
    return copy.deepcopy(net)


def pickled(net: nn.Module) -> nn.Module:
    torch.save(net, file := io.BytesIO())
    file.seek(0)
    return torch.load(file, weights_only=False)


@over_layers
@pytest.mark.parametrize(
    "after",
    [nn.Module.train, copied, pickled, pytest.param(partial(torch.compile, backend="eager"), marks=pytest.mark.slow)],
)
def test_training_changes_no_statistics_and_uses_them(layer: Any, after: Any) -> None:
    net = network(layer)
    wanted = copy.deepcopy(net).eval()
    keys = list(net.state_dict())
    freeze(net)
    net = after(net.eval().train())
    inner = unwrapped(net)
    inner[5].eval()  # no dropout
    assert torch.equal(net(IMAGES), wanted(IMAGES))
    net(IMAGES).sum().backward()
    wanted(IMAGES)  # torch 2.8's InstanceNorm rounds its statistics at each pass, in evaluation too
    for name, buffer in net.named_buffers():
        assert torch.equal(buffer, wanted.get_buffer(name.removeprefix("_orig_mod."))), name
    assert [name.removeprefix("_orig_mod.") for name in net.state_dict()] == keys
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad and p.dim() > 1)
    net.train()
    assert inner[5].training is True  # the rest follows the network


@over_layers
@pytest.mark.parametrize("parameters", [False, True])
def test_undo_makes_the_network_what_it_was(layer: Any, parameters: bool) -> None:
    net = network(layer)
    net[1].requires_grad_(False)
    twin = copy.deepcopy(net)
    report = freeze(net, parameters=parameters)
    assert [p.requires_grad for p in net[3].parameters()] == [not parameters for _ in net[3].parameters()]
    assert net[4].weight.requires_grad is not parameters
    undo(report)
    assert [type(m) for m in net.modules()] == [type(m) for m in twin.modules()]
    assert [m.training for m in net.modules()] == [m.training for m in twin.modules()]
    assert [p.requires_grad for p in net.parameters()] == [p.requires_grad for p in twin.parameters()]
    torch.manual_seed(0)
    output = net(IMAGES)
    torch.manual_seed(0)
    assert torch.equal(output, twin(IMAGES))
    for name, buffer in net.named_buffers():  # both were trained
        assert torch.equal(buffer, twin.get_buffer(name)), name


def test_a_part_of_a_network() -> None:
    net = nn.Sequential(network(), network())
    report = freeze(net, "1", parameters=True)
    assert [row["layer"] for row in report.rows] == ["1.1", "1.3", "1.4"]
    assert [row["frozen"] for row in report.rows] == ["running statistics, weight, bias"] * 2 + ["weight, bias"]
    net.train()
    assert [net[i][1].training for i in range(2)] == [True, False]
    freeze(net)
    undo(freeze(net))
    assert net.train()[0][1].training is False


@over_layers
def test_two_freezes_are_undone_in_any_order(layer: Any) -> None:
    for order in ((0, 1), (1, 0)):
        net = network(layer)
        kinds = [type(m) for m in net.modules()]
        reports = freeze(net, "1", parameters=True), freeze(net, parameters=True)
        for i in order:
            undo(reports[i])
        assert [type(m) for m in net.modules()] == kinds
        assert all(p.requires_grad for p in net.parameters())
        assert not any(getattr(m, "frozen", False) for m in net.modules())


def test_a_shared_layer_is_frozen_once() -> None:
    norm = nn.BatchNorm2d(8)
    assert [row["layer"] for row in freeze(nn.Sequential(norm, nn.ReLU(), norm)).rows] == ["0, 2"]


def test_a_parametrized_layer() -> None:
    net = network()
    parametrize.register_parametrization(net[1], "weight", nn.Softplus())
    freeze(net)
    before = net[1].running_mean.clone()
    copy.deepcopy(net).train()(IMAGES)
    net.train()(IMAGES)
    assert torch.equal(net[1].running_mean, before)


def test_recalibrate_leaves_frozen_layers() -> None:
    net = network()
    freeze(net, "1")
    first, second = net[1].running_mean.clone(), net[3].running_mean.clone()
    recalibrate(net, [IMAGES])
    assert torch.equal(net[1].running_mean, first)
    assert not torch.equal(net[3].running_mean, second)


@pytest.mark.parametrize("net", [nn.Sequential(nn.GroupNorm(2, 8)), nn.Sequential(FrozenBatchNorm2d(8)), nn.ReLU()])
def test_nothing_to_freeze_is_an_error(net: nn.Module) -> None:
    with pytest.raises(InputError, match=r"no layer there keeps running statistics|matches none"):
        freeze(net)


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(InputError, match="where='bakbone' matches none"):
        freeze(network(), "bakbone")


# The callback.


class Killed(Exception):
    pass


class Task(LightningModule):
    def __init__(self, layer: Any = nn.BatchNorm2d, dies_at: int = -1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3), layer(4), nn.Flatten(), nn.Linear(144, 10))
        self.counts: list[int] = []
        self.dies_at = dies_at

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        if self.global_step == self.dies_at:
            raise Killed
        x, y = batch
        self.counts.append(int(self.net[1].num_batches_tracked))
        return nn.functional.cross_entropy(self.net(x), y)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.net(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(folder: Path, task: LightningModule, freezer: FreezeNorms) -> None:
    """Eleven steps in epochs of 3 batches, from the newest checkpoint on."""
    exact = ExactResume(folder, every_steps=1, every_minutes=0)
    trainer = Trainer(
        callbacks=[freezer, exact], max_epochs=-1, max_steps=11, logger=False, accelerator="cpu",
        limit_train_batches=3, limit_val_batches=1, num_sanity_val_steps=0,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    seed_everything(0, verbose=False)
    trainer.fit(task, Digits(), ckpt_path=exact.file if exact.file.is_file() else None, weights_only=True)


@pytest.mark.parametrize("layer", [nn.BatchNorm2d, norms.BatchNorm], ids=["torch", "ours"])
def test_statistics_are_fixed_from_an_epoch_on(layer: Any, tmp_path: Path) -> None:
    """Also in a run that is killed amid an epoch or between two, before the layers are frozen or after, and resumed."""
    train(tmp_path / "whole", whole := Task(layer), FreezeNorms(from_epoch=2))
    assert whole.counts == [0, 1, 2, 3, 4, 5, 6, 6, 6, 6, 6]
    for dies_at in (2, 6, 8, 9):
        with pytest.raises(Killed):
            train(tmp_path / str(dies_at), Task(layer, dies_at), FreezeNorms(2))
        train(tmp_path / str(dies_at), resumed := Task(layer), FreezeNorms(2))
        assert whole.counts[dies_at:] == resumed.counts
        for name, value in whole.state_dict().items():
            assert torch.equal(resumed.state_dict()[name], value), (dies_at, name)


def test_wrong_arguments_of_the_callback(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="from_epoch=-1"):
        FreezeNorms(-1)
    with pytest.raises(InputError, match="where='backbone' matches none"):
        train(tmp_path, Task(), FreezeNorms(3, "backbone"))
    with pytest.raises(InputError, match="keeps running statistics"):
        train(tmp_path, Task(norms.GroupNorm), FreezeNorms(3))
