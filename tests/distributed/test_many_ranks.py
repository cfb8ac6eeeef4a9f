"""Several ranks train as one: weights, running statistics and metrics, whatever their shares of the last batch."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning.pytorch as pl
import pytest
import torch
from ranks import Ranks
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, TensorDataset

from normzoo import norms
from normzoo.callbacks import TrainingCurve
from normzoo.data import Digits
from normzoo.data._images import Images
from normzoo.distributed.ranks import mean_over_ranks
from normzoo.distributed.shard import FSDP
from normzoo.distributed.sync import SyncNorms
from normzoo.models import MLP, ConvNet
from normzoo.tasks.classifier import Classifier

SYNCING = [name for name, layer in norms.layers().items() if layer.facts.syncs]


@pytest.fixture(scope="module", params=[2, 3], ids=["two", "three"])
def pool(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    ranks = Ranks(tmp_path_factory.mktemp("ranks"), request.param)
    yield ranks
    ranks.close()


class Few(Digits):
    """A few digits: 22 to validate on, the others to train on, which make no whole number of batches."""

    def __init__(self, train: int, **settings: Any) -> None:
        self.train_size = train + 22
        super().__init__(val_size=22, drop_last=False, **settings)

    def read(self) -> tuple[Images, Images]:
        train, test = super().read()
        return Images(*train[torch.arange(self.train_size)]), test


def fitted(task: pl.LightningModule, data: Any, ranks: int, **settings: Any) -> dict[str, Any]:
    """Trains; returns the state of the task and the logged metrics on this rank."""
    many = {"devices": ranks, "strategy": "ddp", "plugins": [SyncNorms()], **settings}
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    curve = TrainingCurve()
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=[curve],
        max_epochs=2,
        enable_checkpointing=False,
        log_every_n_steps=1,
        **quiet,
        **(many if ranks > 1 else {"devices": 1, **settings}),  # type: ignore[arg-type]
    )
    trainer.fit(task, data)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return {"state": task.state_dict(), "logged": logged, "curve": curve.newest}


def on_rank(rank: int, job: Any, *arguments: Any) -> Any:
    """Runs a job as the process that a launcher would have started for this rank."""
    with patch.dict(os.environ, LOCAL_RANK=str(rank)):
        return job(*arguments)


def on_ranks(pool: Ranks, job: Any, *arguments: Any) -> list[Any]:
    size = len(pool.workers)
    return pool.run(on_rank, tuple(range(size)), (job,) * size, *((each,) * size for each in arguments))


# The zoo


class Classifier64(Classifier):
    """In float64, whatever the strategy's precisions are: FSDP has no such."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.double())


def classifier(layer: str) -> Classifier:
    """A network with a layer behind every weight."""
    torch.manual_seed(0)
    norm: Any = norms.layers()[layer]
    dense = norm.facts.dense
    net = MLP((1, 8, 8), 10, hidden=(9, 8), norm=norm) if dense else ConvNet((1, 8, 8), 10, widths=(6, 8), norm=norm)
    return Classifier64(net, optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9)).double()


def classified(layer: str, train: int, batch_size: int, ranks: int) -> dict[str, Any]:
    data = Few(train, batch_size=batch_size, eval_batch_size=24 // ranks, shuffle_seed=4)
    return fitted(classifier(layer), data, ranks)


def assert_same(one: dict[str, Any], another: dict[str, Any]) -> None:
    """To the rounding of float64; metrics to that of float32, in which torchmetrics keeps them."""
    assert one["state"].keys() == another["state"].keys()
    for name, value in one["state"].items():
        torch.testing.assert_close(
            another["state"][name], value, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert another["logged"] == pytest.approx(one["logged"], rel=1e-6, abs=1e-7)
    assert another["curve"] == pytest.approx(one["curve"], rel=1e-6, abs=1e-7)
    assert len(one["logged"]) == len(another["logged"])


@pytest.mark.slow
@pytest.mark.parametrize("layer", SYNCING)
def test_ranks_train_as_one(layer: str, pool: Ranks) -> None:
    """Twice two full batches and a smaller one, of which no two ranks may have the same share."""
    ranks = len(pool.workers)
    multiple = norms.layers()[layer].facts.batch_multiple
    train = 2 * 4 * ranks + (2 * ranks + 1 if multiple == 1 else 4)
    one = classified(layer, train, 4 * ranks, 1)
    for many in on_ranks(pool, classified, layer, train, 4, ranks):
        assert_same(one, many)


# The pool that these tests run on


@pytest.mark.slow
def test_a_pool_that_timed_out_is_replaced(tmp_path: Path) -> None:
    """A late answer must not be taken for that of the next job."""
    pool = Ranks(tmp_path, 1, seconds=0.5)
    try:
        with pytest.raises(AssertionError, match="rank 0:\nno answer in time"):
            pool.run(time.sleep, (1.0,))
        assert pool.run(abs, (-3,)) == [3]
    finally:
        pool.close()


# A task of one's own


class Own(pl.LightningModule):
    """Eight samples a step; the first rank has `cut` of them, the second the others."""

    def __init__(self, cut: int, weighted: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cut, self.weighted = cut, weighted
        self.net = nn.Sequential(nn.Linear(5, 8), norms.BatchNorm(8), nn.Tanh(), nn.Linear(8, 3)).double()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = nn.functional.cross_entropy(self.net(x), y)
        return mean_over_ranks(loss, len(y)) if self.weighted else loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.3)

    def train_dataloader(self) -> Any:
        x = torch.randn(32, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        low, high = ((0, self.cut), (self.cut, 8))[self.trainer.global_rank] if self.trainer.world_size > 1 else (0, 8)
        rows = [torch.arange(8 * step + low, 8 * step + high) for step in range(4)]
        data = TensorDataset(x, (x.sum(1) > 0).long() + (x[:, 0] > 1).long())
        return DataLoader(data, sampler=rows, batch_size=None)  # type: ignore[arg-type]


def own(cut: int, weighted: bool, ranks: int) -> dict[str, Any]:
    return fitted(Own(cut, weighted), None, ranks, use_distributed_sampler=False)


@pytest.mark.slow
@pytest.mark.parametrize("pool", [2], indirect=True)
@pytest.mark.parametrize("cut", [4, 5, 8, 0])
def test_a_task_of_ones_own_weighs_its_loss(cut: int, pool: Ranks) -> None:
    one = own(8, True, 1)
    for many in on_ranks(pool, own, cut, True, 2):
        assert_same(one, many)
    if cut == 5:
        with pytest.raises(AssertionError):
            assert_same(one, on_ranks(pool, own, cut, False, 2)[0])


# Sharded parameters


def sharded(layer: str, ranks: int) -> dict[str, Any]:
    """As `classified`, with the parameters split over the ranks: the whole state, and how much of it one rank kept."""
    task = classifier(layer)
    data = Few(20, batch_size=8 // ranks, eval_batch_size=8 // ranks, shuffle_seed=4)
    result = fitted(task, data, ranks, **({"strategy": FSDP()} if ranks > 1 else {}))
    whole = {
        name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in result["state"].items()
    }
    kept = [p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in task.parameters()]
    return {**result, "state": whole, "kept": sum(kept), "all": sum(p.numel() for p in task.parameters())}


@pytest.mark.slow
@pytest.mark.parametrize("pool", [2], indirect=True)
@pytest.mark.parametrize("layer", list(norms.layers()))
def test_sharded_ranks_train_as_one(layer: str, pool: Ranks) -> None:
    """Or, where gates open and close on each rank alone, as ranks do whose parameters are whole."""
    facts = norms.layers()[layer].facts
    if facts.gates and not facts.syncs:
        one = on_ranks(pool, classified, layer, 20, 4, 2)[0]
    else:
        one = sharded(layer, 1)
    for many in on_ranks(pool, sharded, layer, 2):
        assert_same(one, many)
        assert many["kept"] < 0.6 * many["all"]
