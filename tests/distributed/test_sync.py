"""Synchronized statistics: what the plugin changes in a network, what it restores, and that two ranks train as one."""

import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
import yaml
from commands import BRIEF, QUIET, SHORT, fit, normzoo, process
from lightning.pytorch.plugins import AsyncCheckpointIO, TorchSyncBatchNorm
from ranks import TwoRanks
from spawned import DDP
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from normzoo import norms
from normzoo.cli import fit as cli
from normzoo.distributed import sync
from normzoo.distributed.sync import SyncNorms
from normzoo.errors import InputError
from normzoo.norms._base import Facts, Norm
from normzoo.norms._ops.running import RunningStatistics
from normzoo.norms.weight._weight import WeightTransform
from normzoo.runs.checkpoint_io import SafeCheckpointIO
from normzoo.tasks.classifier import Classifier

SYNCING = [name for name, layer in norms.layers().items() if layer.facts.syncs]


class BatchMean(Norm):
    """A user's own layer, which subtracts the mean of the batch and cannot synchronize."""

    facts = Facts(axes=("N",), centres=True)

    def normalize(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class OutputMean(WeightTransform):
    """A weight is the same on all ranks: there is nothing to synchronize."""

    facts = Facts(axes=("N",), acts_on="weight")

    def normalize(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class ClaimsToSync(BatchMean):
    """Claims that it can synchronize, without an attribute `sync`."""

    facts = Facts(axes=("N",), centres=True, syncs=True)


def network() -> nn.Module:
    return nn.Sequential(
        register_parametrization(nn.Linear(4, 4), "weight", norms.BatchNorm(4)),
        register_parametrization(nn.Linear(4, 4), "weight", OutputMean(4)),
        nn.ModuleDict({"deep": nn.Sequential(norms.GhostBatchNorm(4, sync=True), norms.LayerNorm(4))}),
        nn.BatchNorm1d(4),
        BatchMean(4),
    )


def syncs(model: nn.Module) -> dict[str, bool]:
    return {name: layer.sync for name, layer in model.named_modules() if isinstance(layer, RunningStatistics)}


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were other ranks."""
    monkeypatch.setattr(sync, "ranks", lambda: "all")


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the model were to be trained on one."""
    monkeypatch.setattr(sync, "device_type", lambda model: "cuda")


# What changes, and comes back


def test_every_layer_that_can_synchronizes_and_then_is_as_before() -> None:
    model, plugin = network(), SyncNorms()
    before, modules = syncs(model), list(model.modules())
    assert sorted(before.values()) == [False, True]
    assert plugin.apply(model) is model
    assert set(syncs(model).values()) == {True}
    assert list(model.modules()) == modules
    assert not hasattr(model[2]["deep"][1], "sync")  # type: ignore[index]  # LayerNorm
    assert plugin.revert(model) is model
    assert syncs(model) == before
    plugin.revert(model)  # Lightning reverts after an error too, wherever that was
    assert syncs(model) == before
    assert list(model.modules()) == modules


def test_a_layer_that_claims_to_synchronize_and_cannot_is_refused() -> None:
    model, plugin = nn.Sequential(norms.BatchNorm(4), ClaimsToSync(4)), SyncNorms()
    with pytest.raises(InputError, match="ClaimsToSync.*syncs=True.*give the layer an argument `sync`"):
        plugin.apply(model)
    assert syncs(model) == {"0": False}, "the error has changed a layer"


def test_a_second_fit_begins_where_the_first_ended() -> None:
    model, plugin = network(), SyncNorms()
    before = syncs(model)
    for _ in range(2):
        plugin.apply(model)
        assert set(syncs(model).values()) == {True}
        plugin.revert(model)
        assert syncs(model) == before


@pytest.mark.usefixtures("on_gpu")
def test_batch_norm_of_torch_is_converted_on_a_gpu_and_comes_back_with_what_it_learned() -> None:
    twice = nn.BatchNorm2d(3, momentum=0.3)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), twice, nn.ReLU(), twice, nn.BatchNorm1d(3, affine=False), norms.NoNorm(3))
    names, modules, keys = [n for n, _ in model.named_modules()], list(model), list(model.state_dict())
    plugin = SyncNorms()
    plugin.apply(model)
    assert [type(layer) for layer in model][1::2] == [nn.SyncBatchNorm, nn.SyncBatchNorm, norms.NoNorm]
    assert model[1] is model[3]
    assert type(model[4]) is nn.SyncBatchNorm
    assert [n for n, _ in model.named_modules()] == names
    assert list(model.state_dict()) == keys
    assert model[1].momentum == 0.3
    assert model[1].weight is twice.weight
    model.double()  # as a move to a GPU does, this makes new buffers
    for buffer in model.buffers():
        buffer.add_(1)
    model[1].weight = nn.Parameter(model[1].weight + 1)
    learned = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = list(model.parameters())
    model.eval()
    plugin.revert(model)
    assert all(a is b for a, b in zip(model, modules, strict=True))
    assert not any(layer.training for layer in model.modules())
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))  # which the optimizer holds
    after = model.state_dict()
    assert list(after) == keys
    assert all(after[key].dtype == value.dtype and torch.equal(after[key], value) for key, value in learned.items())


@pytest.mark.usefixtures("many")
def test_what_cannot_synchronize_is_named_with_a_remedy() -> None:
    model = network()
    with pytest.warns(UserWarning, match="by its own batch alone") as caught:
        SyncNorms().apply(model)
    [torchs, own] = [str(one.message) for one in caught]
    assert "alone in 3 (BatchNorm1d): " in torchs
    assert "normzoo.norms.BatchNorm" in torchs
    assert "alone in 4 (BatchMean): " in own
    assert "syncs=True" in own
    assert type(model[3]) is nn.BatchNorm1d  # type: ignore[index]


@pytest.mark.usefixtures("many", "on_gpu")
def test_on_a_gpu_only_a_layer_of_ones_own_is_named() -> None:
    with pytest.warns(UserWarning, match="BatchMean") as caught:
        SyncNorms().apply(network())
    assert len(caught) == 1


# The zoo


def seen(layer: Norm, x: Tensor, plugin: SyncNorms | None) -> list[Tensor]:
    """The output of a layer for a rank's batch, and its state."""
    if plugin:
        plugin.apply(layer)
    torch.manual_seed(0)
    return [layer(x).detach(), *layer.state_dict().values()]


@pytest.mark.slow
@pytest.mark.parametrize("name", SYNCING)
def test_a_layer_that_was_switched_equals_one_that_was_built_to_synchronize(name: str, two_ranks: TwoRanks) -> None:
    layer = norms.layers()[name]
    x = torch.randn(2, 8, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    halves = (x[0], 2 + 3 * x[1])
    plain, built = layer(4), layer(4, sync=True)  # type: ignore[call-arg]
    built.load_state_dict(plain.state_dict())
    switched = two_ranks.run(seen, (plain, plain), halves, (SyncNorms(), SyncNorms()))
    expected = two_ranks.run(seen, (built, built), halves, (None, None))
    alone = two_ranks.run(seen, (plain, plain), halves, (None, None))
    for rank in range(2):
        assert all(map(torch.equal, switched[rank], expected[rank]))
        assert not all(map(torch.allclose, switched[rank], alone[rank]))


# Anybody's Trainer


class Task(pl.LightningModule):
    """A user's network, on 64 samples: two ranks with batches of 8 see together the batches of one with 16."""

    def __init__(self, norm: Any = norms.BatchNorm) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(5, 8), norm(8), nn.Tanh(), nn.Linear(8, 1)).double()
        self.during: list[dict[str, bool]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.during.append(syncs(self))
        x, y = batch
        return nn.functional.mse_loss(self.net(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.3)

    def train_dataloader(self) -> Any:
        x = torch.randn(64, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        data = TensorDataset(x, x.sum(1, keepdim=True).sin())
        size = self.trainer.world_size
        rows = DistributedSampler(data, num_replicas=size, rank=self.trainer.global_rank, shuffle=False)
        return DataLoader(data, batch_size=16 // size, sampler=rows)


def trained(task: Task, **kwargs: Any) -> dict[str, Tensor]:
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "max_epochs": 2,
    }
    pl.Trainer(**{**quiet, **kwargs}).fit(task)
    return task.state_dict()


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[key].double() - b[key].double()).abs().max()) for key in a)


@pytest.mark.slow
def test_two_ranks_of_a_plain_trainer_train_as_one() -> None:
    one = trained(Task())

    def two(**plugins: Any) -> dict[str, Tensor]:
        return trained(Task(), devices=2, strategy=DDP(), **plugins)

    assert largest_difference(one, two(plugins=[SyncNorms(), SafeCheckpointIO()])) < 1e-12
    assert largest_difference(one, two()) > 1e-3


@pytest.mark.parametrize("norm", [norms.BatchNorm, nn.BatchNorm1d, BatchMean])
def test_one_device_trains_as_without_the_plugin_and_gets_no_warning(norm: Any) -> None:
    assert largest_difference(trained(Task(norm)), trained(Task(norm), plugins=[SyncNorms()])) == 0


def test_one_rank_gets_no_warning_and_lightning_reverts() -> None:
    task, lone = Task(), Task(nn.BatchNorm1d)
    with patch.dict(os.environ):  # where Lightning leaves its address
        try:
            for one in (task, lone):
                trained(one, strategy="ddp", plugins=[SyncNorms()])
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
    assert task.during[0] == {"net.1": True}
    assert syncs(task) == {"net.1": False}
    assert type(lone.net[1]) is nn.BatchNorm1d
    assert largest_difference(task.state_dict(), trained(Task())) == 0


# The command line


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[type, type]]:
    """What synchronizes layers and what writes checkpoints, for each Trainer that the command line sets to work."""
    monkeypatch.chdir(tmp_path)
    seen: list[tuple[type, type]] = []

    def look(self: Classifier) -> None:
        connector = self.trainer._accelerator_connector  # type: ignore[attr-defined]
        seen.append((type(connector._layer_sync), type(self.trainer.strategy.checkpoint_io)))

    monkeypatch.setattr(Classifier, "on_fit_start", look)
    return seen


FLAG = "--trainer.sync_batchnorm=true"


@pytest.mark.parametrize(
    "flags,syncs,saves",
    [
        ([], type(None), SafeCheckpointIO),
        ([FLAG], SyncNorms, SafeCheckpointIO),
        ([FLAG, "--trainer.plugins=AsyncCheckpointIO"], SyncNorms, AsyncCheckpointIO),
        ([FLAG, "--trainer.plugins+=AsyncCheckpointIO"], SyncNorms, AsyncCheckpointIO),
        (["--trainer.plugins=SyncNorms"], SyncNorms, SafeCheckpointIO),
        ([FLAG, "--trainer.plugins=TorchSyncBatchNorm"], TorchSyncBatchNorm, SafeCheckpointIO),
    ],
    ids=str,
)
def test_the_flag_chooses_the_plugin(flags: list[str], syncs: type, saves: type, plugins: list[Any]) -> None:
    result = normzoo("fit", *BRIEF, *flags)
    assert result.status == 0, result.err
    assert plugins == [(syncs, saves)]


def test_the_flag_and_the_plugin_at_once_are_refused(plugins: list[Any]) -> None:
    result = normzoo("fit", *BRIEF, FLAG, "--trainer.plugins=SyncNorms")
    assert result.status != 0
    assert "Choose one" in result.err


def test_the_flag_stays_in_the_config_of_the_run(plugins: list[Any]) -> None:
    run = fit(*SHORT, FLAG)
    config = yaml.safe_load((run / "config.yaml").read_text())["trainer"]
    assert config["sync_batchnorm"] is True
    assert config["plugins"] is None
    fit("-c", str(run / "config.yaml"))
    assert [syncs for syncs, _ in plugins] == [SyncNorms] * 2


def test_only_a_run_with_a_seed_begins_again_at_it(plugins: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[bool] = []
    monkeypatch.setattr(cli, "reset_seed", lambda: begun.append(True))
    fit(*SHORT)
    assert begun == [True]
    fit(*SHORT, "--seed_everything=false")
    assert begun == [True]


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["BatchNorm", "NoisyBatchNorm"])
def test_two_ranks_of_the_command_line_train_as_one(layer: str, tmp_path: Path) -> None:
    """Running statistics and weights, to the rounding of float64; with noise too, which begins at the run's seed."""

    def state(name: str, *flags: str) -> dict[str, Tensor]:
        short = ("--trainer.max_epochs=2", "--trainer.limit_train_batches=3", "--trainer.precision=64-true")
        sgd = ("--model.optimizer=SGD", "--model.optimizer.lr=0.1", f"--model.net.norm={layer}")
        run = process(
            "fit", *QUIET, *short, *sgd, *flags, f"--experiment={name}", "--test_after_fit=false", cwd=tmp_path
        )
        assert run.returncode == 0, run.stderr[-3000:]
        assert "Each rank normalizes" not in run.stderr
        [last] = (tmp_path / "lightning_logs" / name).glob("*/checkpoints/last.ckpt")
        return torch.load(last, weights_only=True)["state_dict"]  # type: ignore[no-any-return]

    two = ("--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=32")
    one = state("one", "--data.batch_size=64")
    assert largest_difference(one, state("synced", *two, FLAG)) < 1e-10
    assert largest_difference(one, state("alone", *two)) > 1e-3
