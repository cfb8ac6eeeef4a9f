"""Several ranks train as one: weights, running statistics and metrics, whatever the last batch leaves to each."""

import os
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from normzoo import norms
from normzoo.data import Digits
from normzoo.data._images import Images
from normzoo.models import MLP, ConvNet
from normzoo.norms._base import Norm
from normzoo.ranks import mean_over_ranks
from normzoo.sync import SyncNorms
from normzoo.tasks import Classifier
from ranks import Ranks

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
    """What a rank knows when it has trained: the state of the task, and what was logged."""
    many = {"devices": ranks, "strategy": "ddp", "plugins": [SyncNorms()]}
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(
        accelerator="cpu",
        precision="64-true",
        max_epochs=2,
        enable_checkpointing=False,
        log_every_n_steps=1,
        **quiet,
        **(many if ranks > 1 else {"devices": 1}),  # type: ignore[arg-type]
        **settings,
    )
    trainer.fit(task, data)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return {"state": task.state_dict(), "logged": logged, "curve": getattr(task, "curve", {})}


def on_rank(rank: int, job: Any, *arguments: Any) -> Any:
    """Runs a job as the process that a launcher would have started for this rank."""
    with patch.dict(os.environ, LOCAL_RANK=str(rank)):
        return job(*arguments)


def on_ranks(pool: Ranks, job: Any, *arguments: Any) -> list[Any]:
    size = len(pool.workers)
    return pool.run(on_rank, tuple(range(size)), (job,) * size, *((each,) * size for each in arguments))


# The zoo


def classified(layer: str, train: int, batch_size: int, ranks: int, sync: bool = True) -> dict[str, Any]:
    """A network with a layer behind every weight, trained on some digits."""
    torch.manual_seed(0)
    norm: Any = norms.layers()[layer]
    dense = norm.facts.dense and not norm.facts.axes == ("s",)
    net = MLP((1, 8, 8), 10, hidden=(9, 8), norm=norm) if dense else ConvNet((1, 8, 8), 10, widths=(6, 8), norm=norm)
    task = Classifier(net, optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1))
    data = Few(train, batch_size=batch_size, eval_batch_size=8 // ranks, shuffle_seed=4)
    return fitted(task, data, ranks, **({} if sync or ranks == 1 else {"plugins": []}))


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
