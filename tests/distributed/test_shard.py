"""Sharded parameters: checkpoints of FSDP are those of one process, and a run continues from them bit for bit."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning.pytorch as pl
import pytest
import torch
from commands import QUIET
from forks import Forks
from ranks import TwoRanks
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, TensorDataset

from normzoo import norms
from normzoo.distributed import FSDP, shard_network

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD without state": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "SGD with momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
}


class Task(pl.LightningModule):
    """A network whose widths no two ranks can halve, on the same 16 samples on both."""

    def __init__(self, optimizer: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.optimizer = optimizer
        self.net = nn.Sequential(nn.Linear(5, 7), norms.BatchNorm(7), nn.Tanh(), nn.Linear(7, 1))

    def configure_model(self) -> None:
        shard_network(self)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return nn.functional.mse_loss(self.net(x), y)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("loss", self.training_step(batch, batch_idx), sync_dist=True)

    def configure_optimizers(self) -> Any:
        optimizer = OPTIMIZERS[self.optimizer](self.parameters())
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]

    def train_dataloader(self) -> Any:
        x = torch.randn(16, 5, generator=torch.Generator().manual_seed(1))
        return DataLoader(TensorDataset(x, x.sum(1, keepdim=True).sin()), batch_size=4)

    test_dataloader = train_dataloader


def trainer(epochs: int, ranks: int) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    many = {"strategy": FSDP(), "use_distributed_sampler": False} if ranks > 1 else {}
    return pl.Trainer(
        accelerator="cpu",
        devices=ranks,
        max_epochs=epochs,
        enable_checkpointing=False,
        **quiet,
        **many,  # type: ignore[arg-type]
    )


def whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value.clone()


def fitted(optimizer: str, ranks: int, file: Path, resumed: bool) -> dict[str, Any]:
    """Trains for two epochs, at once or continued from a checkpoint after the first; writes a checkpoint at the end."""
    if resumed:
        one = trainer(1, ranks)
        one.fit(Task(optimizer))
        one.save_checkpoint(file)
    task, two = Task(optimizer), trainer(2, ranks)
    two.fit(task, ckpt_path=file if resumed else None)
    two.save_checkpoint(file)
    [metrics] = two.test(task, ckpt_path=file, verbose=False)
    return {"state": {name: whole(v) for name, v in task.state_dict().items()}, "metrics": metrics}


def on_rank(rank: int, *arguments: Any) -> dict[str, Any]:
    with patch.dict(os.environ, LOCAL_RANK=str(rank)):
        return fitted(*arguments)


@pytest.mark.filterwarnings("ignore")  # of Lightning: few workers, an experimental strategy
@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_checkpoint_of_sharded_ranks_continues_exactly(optimizer: str, two_ranks: TwoRanks, tmp_path: Path) -> None:
    """Also where the optimizer has no state; what it holds is what one process would have written."""

    def two(name: str, resumed: bool) -> dict[str, Any]:
        arguments = (optimizer, 2, tmp_path / name, resumed)
        first, second = two_ranks.run(on_rank, (0, 1), *((each, each) for each in arguments))
        assert first["metrics"] == second["metrics"]
        return first  # type: ignore[no-any-return]

    straight, resumed = two("straight", False), two("resumed", True)
    assert straight["metrics"] == resumed["metrics"]
    assert all(torch.equal(straight["state"][name], value) for name, value in resumed["state"].items())
    fitted(optimizer, 1, tmp_path / "one", False)
    one, many = (torch.load(tmp_path / name, weights_only=True) for name in ("one", "resumed"))
    for key in ("state_dict", "optimizer_states"):
        torch.testing.assert_close(many[key], one[key])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_command_line_trains_tests_and_resumes_sharded(tmp_path: Path) -> None:
    """With plain SGD, whose empty state Lightning cannot read back; and with the statistics of all ranks."""
    configs = Path(__file__).parents[2] / "configs"
    flags = (*QUIET, f"-c={configs}/digits_mlp.yaml", f"-c={configs}/fsdp.yaml", "--model.net.hidden=[32,32]")
    flags += ("--model.optimizer.fused=false", "--trainer.devices=2", "--trainer.limit_train_batches=4")
    forks = Forks(tmp_path)
    try:
        one = forks.run("fit", *flags, "--experiment=one", "--trainer.max_epochs=2", cwd=tmp_path)
        assert one.poll() == 0, one.err
        assert "test/accuracy" in one.out
        cut = forks.run("fit", *flags, "--experiment=cut", "--trainer.max_epochs=1", cwd=tmp_path)
        assert cut.poll() == 0, cut.err
        resumed = forks.run("resume", "lightning_logs/cut/000", "--trainer.max_epochs=2", *QUIET, cwd=tmp_path)
        assert resumed.poll() == 0, resumed.err
    finally:
        forks.close()
    files = (tmp_path / f"lightning_logs/{name}/000-BatchNorm-0/checkpoints/last.ckpt" for name in ("one", "cut"))
    straight, continued = (torch.load(file, weights_only=True)["state_dict"] for file in files)
    assert all(torch.equal(straight[name], value) for name, value in continued.items())
