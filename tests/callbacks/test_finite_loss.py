"""What happens when numbers stop being finite: nothing that was learned is lost, and the culprit is named."""

import math
import os
import random
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import commands
import monitored
import numpy as np
import pytest
import torch
from forks import Forks
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

from normzoo import norms
from normzoo.callbacks import ExactResume, FiniteLoss
from normzoo.callbacks._bad_step import BadStep
from normzoo.data import Digits
from normzoo.errors import InputError
from normzoo.models import MLP

AT = 3
"""The batch that is bad."""


class Counting(nn.Module):
    """Lets its input pass, and knows how often it was run in training."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.count += 1
        return self.bad(x) if self.training and int(self.count) == AT + 1 else x

    def bad(self, x: Tensor) -> Tensor:
        return x


class BadOutput(Counting):
    def bad(self, x: Tensor) -> Tensor:
        return x / (x - x)


class Infinite(Counting):
    def bad(self, x: Tensor) -> Tensor:
        return torch.where(x == x.max(), torch.inf, x)


class BadGradient(Counting):
    """Finite forward; the gradient of the root at 0 is infinite."""

    def bad(self, x: Tensor) -> Tensor:
        return x + (x - x.detach()).square().sum().sqrt()


class Masked(nn.Module):
    """Infinities on purpose, which the next layer makes finite: never to blame."""

    def forward(self, x: Tensor) -> Tensor:
        return x.masked_fill(x < -0.5, -torch.inf)


class Between(nn.Module):
    """Makes it by itself, between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(64, 12), Counting(), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(self.first(x))
        return self.last(x / 0 if self.training and int(self.inner.count) == AT + 1 else x)


class BadBatch(Digits):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        images, labels = super().on_after_batch_transfer(batch, dataloader_idx)
        if self.trainer is not None and self.trainer.training and self.trainer.fit_loop.epoch_loop.batch_idx + 1 == AT:
            images = images.clone()
            images[0, 0, 0, 0] = torch.nan
        return images, labels


def bad_batch() -> BadBatch:
    return BadBatch(batch_size=32, shuffle_seed=0, val_size=0)


def net(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 12), norms.BatchNorm(12), *layers, nn.BatchNorm1d(12), nn.Dropout(0.2),
        nn.Linear(12, 10),
    )  # fmt: skip


class Task(LightningModule):
    """A task of somebody's own."""

    def __init__(self, network: nn.Module, bad_loss: bool = False) -> None:
        super().__init__()
        self.network = network
        self.bad_loss = bad_loss
        self.outcomes: list[Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.network(batch[0]), batch[1])
        if self.bad_loss and batch_idx == AT:
            loss = (loss - loss.detach()).abs().log()
        self.outcomes.append(loss.detach())
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.01)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing to see."""


class Snapshot(Callback):
    """All that a training has come to, before each step."""

    def __init__(self) -> None:
        self.before: dict[int, Any] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.before[trainer.global_step] = state(trainer, pl_module)


def state(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    optimizers = [optimizer.state_dict() for optimizer in trainer.optimizers]
    return {
        **{name: value.clone() for name, value in module.state_dict().items()},
        **{f"optimizer.{i}": repr(values) for i, one in enumerate(optimizers) for values in [one["state"]]},
    }


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(a, b) if isinstance(a := one[name], Tensor) else a == b for name, b in other.items()
    )


def train(task: LightningModule, *callbacks: Callback, data: Digits | None = None, **settings: Any) -> Trainer:
    torch.manual_seed(7)
    return monitored.fit(task, callbacks, data=data or Digits(batch_size=32, shuffle_seed=0, val_size=0), **settings)


# Where it arises -> the task, the data, the layer to name, and what the message says of it.
CASES: dict[str, tuple[Callable[[], Task], type[Digits], str, str]] = {
    "output": (lambda: Task(net(BadOutput())), Digits, "network.3", "loss is nan"),
    "infinite": (lambda: Task(net(Infinite())), Digits, "network.3", "1 infinite"),
    "gradient": (lambda: Task(net(BadGradient())), Digits, "network.3", "loss is finite, and its gradients are not"),
    "between": (lambda: Task(nn.Sequential(nn.Flatten(), Between(), nn.Linear(12, 10))), Digits, "network.1", "itself"),
    "loss": (lambda: Task(net(), bad_loss=True), Digits, "loss", "loss is -inf"),
    "batch": (lambda: Task(net()), BadBatch, "batch", "batch itself"),
    "masked": (lambda: Task(net(Masked(), nn.Sigmoid(), BadOutput())), Digits, "network.5", "loss is nan"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_step_is_not_made_and_the_culprit_is_named(case: str, tmp_path: Path) -> None:
    make, data, offender, says = CASES[case]
    task, snapshot = make(), Snapshot()
    with pytest.raises(InputError) as raised:
        train(task, FiniteLoss(folder=tmp_path / "bad"), snapshot, data=data(batch_size=32, shuffle_seed=0, val_size=0))
    message = str(raised.value)
    assert f"step {AT}: " in message
    assert f"(epoch 0, batch {AT}, learning rate 0.01)" in message
    assert says in message
    step = BadStep.load(tmp_path / "bad" / f"{AT:06d}" / "rank0.pt")
    assert step.findings["offender"] == offender
    assert f"replay {tmp_path / 'bad' / f'{AT:06d}'}" in message
    # The weights, the buffers and the optimizer are those from before, on the spot and in the file.
    assert same(state(task.trainer, task), snapshot.before[AT])
    saved = torch.load(tmp_path / "bad" / f"{AT:06d}" / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(torch.equal(saved["state_dict"][name], value) for name, value in task.state_dict().items())
    assert saved["global_step"] == AT


@pytest.mark.filterwarnings("ignore")
def test_a_skipped_step_is_as_if_it_had_not_been(tmp_path: Path) -> None:
    """Against a task that by itself returns no loss for the batch, and touches nothing."""

    class Leaves(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            if loss.isfinite():
                return loss
            for name, buffer in self.network.named_buffers():
                buffer.copy_(snapshot.before[batch_idx][f"network.{name}"])
            return None

    snapshot, skips = Snapshot(), FiniteLoss("skip", folder=tmp_path / "bad")
    counts_on = {"network.3.count"}  # the layer of the test, which would be bad again and again

    class Counts(Snapshot):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *unused: Any) -> None:
            pl_module.network[3].count.fill_(max(trainer.global_step, 0))  # type: ignore[index]

    task, other = Task(net(BadOutput())), Leaves(net(BadOutput()))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        trainer = train(task, skips, Counts())
    told = "\n".join(str(one.message) for one in warned)
    assert f"step {AT}: the loss is nan" in told
    assert f"1 of 12 steps were left out, as their loss or gradients were not finite: {AT}." in told
    train(other, snapshot, Counts())
    assert skips.skipped == [AT]
    assert trainer.global_step == 12
    mine, theirs = state(trainer, task), state(other.trainer, other)
    assert same({k: v for k, v in mine.items() if k not in counts_on}, {k: theirs[k] for k in mine.keys() - counts_on})
    assert all(value.isfinite().all() for value in task.state_dict().values())


class AlwaysBad(Counting):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.nan if self.training else x


def test_too_many_on_end_stop(tmp_path: Path) -> None:
    callback = FiniteLoss("skip", most_in_a_row=4, folder=tmp_path)
    with pytest.raises(InputError, match="step 3.*\n.*\n.*the 4th on end"), pytest.warns(match="left out"):
        train(Task(net(AlwaysBad())), callback)
    assert len(list(tmp_path.iterdir())) == 4  # three that were kept, and the one that stopped


class Vanishing(Task):
    """An eps that vanishes: at one step the gradient is 0, and the update 0 / 0."""

    def __init__(self, spoils: int) -> None:
        super().__init__(nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Sigmoid(), nn.Linear(12, 10)))
        self.spoils = spoils

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01, eps=0)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * 0 if self.trainer.global_step == self.spoils else loss


# Before a checkpoint is written, at the end of training, or by the step that comes after.
@pytest.mark.parametrize(("spoils", "says"), [(7, "after the update"), (11, "after the update"), (4, "update before")])
def test_weights_that_an_update_spoils_are_written_over_nothing(spoils: int, says: str, tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path / "kept", filename="{step}", every_n_train_steps=4, save_top_k=-1)
    callbacks = (FiniteLoss(folder=tmp_path / "bad"), ZeroMoments(spoils), saver)
    with pytest.raises(InputError, match=says) as raised:
        train(Vanishing(spoils), *callbacks, enable_checkpointing=True)
    kept = sorted((tmp_path / "kept").glob("*.ckpt"), key=lambda file: file.stat().st_mtime)
    assert [file.name for file in kept] == [f"step={n}.ckpt" for n in range(4, spoils + 1, 4)]
    assert str(kept[-1]) in str(raised.value)
    for file in kept:
        saved = torch.load(file, weights_only=True)["state_dict"]
        assert all(value.isfinite().all() for value in saved.values())


def test_a_message_names_the_checkpoint_that_a_run_goes_on_from(tmp_path: Path) -> None:
    callbacks = (FiniteLoss(folder=tmp_path / "bad"), ZeroMoments(7), ExactResume(tmp_path, every_steps=4))
    with pytest.raises(InputError, match="after the update") as raised:
        train(Vanishing(7), *callbacks, enable_checkpointing=True)
    assert f"the last checkpoint is {tmp_path / 'last.ckpt'}" in str(raised.value)


class ZeroMoments(Callback):
    """Has Adam forget, so that a gradient of 0 is a moment of 0."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if trainer.global_step == self.at:
            for values in optimizer.state.values():
                values["exp_avg"].zero_()
                values["exp_avg_sq"].zero_()


def test_half_precision_scales_by_itself(tmp_path: Path) -> None:
    """Gradients that overflow only by the scale are left to the scaler; a loss that is not finite is not."""

    class Scaled(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) * 1e34  # times 65536 it overflows

    def half() -> dict[str, Any]:  # Lightning has it for GPUs only
        return {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))]}

    train(Scaled(MLP((1, 8, 8), 10, hidden=(12,))), FiniteLoss(folder=tmp_path), max_steps=3, **half())
    assert list(tmp_path.iterdir()) == []
    task = Task(net(BadOutput()))
    with pytest.raises(InputError, match=f"step {AT}: the loss is nan"):
        train(task, FiniteLoss(folder=tmp_path), **half())
    with pytest.warns(UserWarning, match="step 3: |1 of 12 steps"):
        train(task := Task(net()), FiniteLoss("skip", folder=tmp_path), data=bad_batch(), **half())
    assert all(value.isfinite().all() for value in task.state_dict().values())


SETTINGS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"precision": "bf16-mixed"},
    "accumulated": {"accumulate_grad_batches": 3, "max_steps": 5},
    "clipped": {"gradient_clip_val": 0.5},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_without_a_bad_number_nothing_changes(setting: str, tmp_path: Path) -> None:
    def end(*callbacks: Callback) -> tuple[dict[str, Any], list[Tensor], Any]:
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        task = Task(net(Masked(), nn.Sigmoid()))
        trainer = train(task, *callbacks, **SETTINGS[setting])
        drawn = torch.rand(1).item(), random.random(), np.random.rand()  # noqa: NPY002
        return state(trainer, task), task.outcomes, drawn

    (one, losses, drawn), (other, others, again) = end(FiniteLoss(folder=tmp_path)), end()
    assert same(one, other)
    assert all(map(torch.equal, losses, others))
    assert drawn == again
    assert list(tmp_path.iterdir()) == []


def test_of_accumulated_batches_the_bad_one_is_saved(tmp_path: Path) -> None:
    for layer in (BadOutput(), BadGradient()):
        folder = tmp_path / type(layer).__name__
        with pytest.raises(InputError, match=f"step 1: .*batch {AT}, "):
            train(Task(net(layer)), FiniteLoss(folder=folder), accumulate_grad_batches=3, max_steps=5)
        assert BadStep.load(folder / "000001" / "rank0.pt").batch_idx == AT


@pytest.mark.filterwarnings("ignore")  # monitors warn of what they see
def test_monitors_survive_a_skipped_step(tmp_path: Path) -> None:
    skips = FiniteLoss("skip", folder=tmp_path / "bad")
    trainer = train(Task(net()), skips, *monitored.suite(1), data=bad_batch(), folder=tmp_path)
    assert (skips.skipped, trainer.global_step) == ([AT], 12)


def test_a_step_that_cannot_be_copied_is_still_told_and_saved(tmp_path: Path) -> None:
    task = Task(net(BadOutput()))
    task.stream = (tmp_path / "open").open("w")  # type: ignore[assignment]
    with task.stream, pytest.raises(InputError, match="cannot be told.*cannot be copied"):  # type: ignore[attr-defined]
        train(task, FiniteLoss(folder=tmp_path / "bad"))
    assert (tmp_path / "bad" / f"{AT:06d}" / "rank0.pt").exists()


def test_a_full_disk_does_not_hide_the_bad_number(tmp_path: Path) -> None:
    (tmp_path / "bad").write_text("a file where a folder should be")
    with pytest.raises(InputError, match=r"the loss is nan[^~]*Nothing was saved of it: .* could not be written"):
        train(Task(net(BadOutput())), FiniteLoss(folder=tmp_path / "bad"))


@pytest.mark.parametrize("arguments", [{"on_bad": "stopp"}, {"most_in_a_row": 0}, {"most_in_a_row": True}])
def test_arguments_are_checked(arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(arguments))):
        FiniteLoss(**arguments)


# The command line.

OWN = """
import torch
from lightning.pytorch import LightningModule
from torch import nn
from normzoo.data import Digits

class Bad(nn.Module):
    def __init__(self, at: int):
        super().__init__()
        self.at = at
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.count += self.training
        return x * torch.randn(1) / 0 if self.training and int(self.count) == self.at + 1 else x * torch.rand(1)

class Mine(LightningModule):
    def __init__(self, at: int = 3, width: int = 8):
        super().__init__()
        layers = [nn.Flatten(), nn.Linear(64, width), nn.BatchNorm1d(width), Bad(at), nn.Linear(width, 10)]
        self.net = nn.Sequential(*layers)

    def on_train_epoch_start(self):
        self.weight = 1.0

    def training_step(self, batch, batch_idx):
        return self.weight * nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

class OnlyRankOne(Digits):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        images, labels = super().on_after_batch_transfer(batch, dataloader_idx)
        if self.trainer.training and self.trainer.global_rank == 1 and self.trainer.global_step == 3:
            images = images * float("nan")
        return images, labels
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_bad_task.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def folder_in(message: str) -> str:
    found = re.search(r"normzoo replay (\S+)", message)
    assert found, message
    return found[1]


MINE = ("--model=my_bad_task.Mine", "--data.val_size=0")
FITS = {
    "classifier": ("--model.optimizer=SGD", "--model.optimizer.lr=1e18"),
    "bfloat16": ("--model.optimizer=SGD", "--model.optimizer.lr=1e18", "--trainer.precision=bf16-mixed"),
    "accumulated": ("--model.optimizer=SGD", "--model.optimizer.lr=1e18", "--trainer.accumulate_grad_batches=2"),
    "own": (
        "--model=my_bad_task.Mine",
        "--model.at=30",
        "--data.val_size=0",
        "--data.batch_size=64",
    ),  # in the second epoch
}


@pytest.mark.parametrize("case", FITS)
def test_replay_reproduces(case: str, own: Path) -> None:
    result = commands.normzoo("fit", *commands.QUIET, "--trainer.max_epochs=3", *FITS[case])
    assert result.status == 1
    before = sorted(own.rglob("*"))
    again = commands.normzoo("replay", folder_in(result.err), "--allow=my_bad_task")
    assert again.status == 0, again.out + again.err
    step = BadStep.load(next(own.rglob("rank0.pt")))
    assert f"step {step.step}, epoch {step.epoch}, batch {step.batch_idx}" in again.out
    then, now = re.findall(r"^loss \D*?(nan|-?inf|[-\d.e+]+)$", again.out, re.MULTILINE)
    assert then == now
    assert f">{step.findings['offender']}" in again.out or step.findings["offender"] == "loss"
    assert step.findings["says"] in again.out
    if case == "own":
        assert f"normzoo replay {folder_in(result.err)} --allow=my_bad_task\n" in result.err
        assert step.epoch == 1
        assert "net.3 (Bad)" in result.err
    assert sorted(own.rglob("*")) == before  # it leaves no trace


def test_replay_says_what_it_does_not_reproduce(own: Path) -> None:
    result = commands.normzoo("fit", *commands.QUIET, "--trainer.max_epochs=3", *FITS["own"])
    file = next(own.rglob("rank0.pt"))
    step = BadStep.load(file)
    step.buffers["net.3.count"] = torch.zeros((), dtype=torch.int64)
    step.save(file)
    again = commands.normzoo("replay", folder_in(result.err), "--allow=my_bad_task")
    assert again.status == 1
    assert "Not reproduced. In the training: The first is net.3 (Bad)" in again.out


def test_replay_refuses_a_step_that_is_damaged(own: Path) -> None:
    result = commands.normzoo("fit", *commands.QUIET, "--trainer.max_epochs=3", *FITS["classifier"])
    file = next(own.rglob("rank0.pt"))
    whole = torch.load(file, weights_only=True)
    for name, value, words in (
        ("findings", {}, "no step that normzoo has saved.*findings.loss"),
        ("findings", [1], "no step that normzoo has saved.*findings"),
        ("buffers", [1], "no step that normzoo has saved.*buffers"),
        ("evaluating", None, "no step that normzoo has saved.*evaluating"),
        ("factor", "x", "no step that normzoo has saved.*factor"),
        ("random", {}, "random numbers is damaged"),
        ("random", {**whole["random"], "torch": 3}, "random numbers is damaged"),
        ("random", {**whole["random"], "numpy": ["x"]}, "random numbers is damaged"),
    ):
        torch.save({**whole, name: value}, file)
        again = commands.normzoo("replay", folder_in(result.err))
        assert again.status == 1
        assert re.search(words, again.err), (name, value, again.err)
    torch.save([whole], file)
    assert "no step that normzoo has saved" in commands.normzoo("replay", folder_in(result.err)).err


def test_replay_refuses_what_is_no_step(own: Path) -> None:
    (own / "empty").mkdir()
    assert "holds no rank0.pt" in commands.normzoo("replay", "empty").err
    torch.save({"version": 1}, own / "empty" / "rank0.pt")
    (own / "empty" / "config.yaml").write_text("")
    result = commands.normzoo("replay", "empty")
    assert result.status == 1
    assert "no step that normzoo has saved" in result.err
    torch.save({"version": 1, "batch": Path("a")}, own / "empty" / "rank0.pt")
    assert "could run code" in commands.normzoo("replay", "empty").err


def test_a_bad_number_can_be_ignored(own: Path) -> None:
    run = commands.fit(
        "--model=my_bad_task.Mine", "--data.val_size=0", "--trainer.max_epochs=1", "--on_bad_loss=ignore"
    )
    assert not (run / "bad").exists()
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert not all(math.isfinite(value.double().sum()) for value in saved.values())


def test_a_flag_skips(own: Path) -> None:
    with pytest.warns(UserWarning, match="left out"):
        run = commands.fit(*MINE, "--trainer.max_epochs=1", "--on_bad_loss=skip", "--trainer.limit_train_batches=4")
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(math.isfinite(value.double().sum()) for value in saved.values())
    assert (run / "bad" / "000003" / "layers.txt").read_text().startswith("The first is net.3 (Bad)")


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    made = Forks(tmp_path_factory.mktemp("forks"))
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "synchronized", "ranks"), [("stop", True, "0, 1"), ("stop", False, "1"), ("skip", False, "1")]
)
def test_ranks_decide_together(what: str, synchronized: bool, ranks: str, own: Path, forks: Forks) -> None:
    """One of two ranks has a bad batch; a process of its own replays it."""
    path = f"import sys; sys.path.insert(0, {str(own)!r})"
    two = ("--trainer.devices=2", "--trainer.strategy=ddp", f"--trainer.sync_batchnorm={str(synchronized).lower()}")
    flags = (*commands.QUIET, *two, "--trainer.max_epochs=1", "--data=my_bad_task.OnlyRankOne", f"--on_bad_loss={what}")
    python_path = os.pathsep.join([str(own), os.environ.get("PYTHONPATH", "")])  # of the second rank
    result = forks.run("fit", *flags, cwd=own, before=path, PYTHONPATH=python_path)
    assert (result.poll() == 0) is (what == "skip"), result.err
    assert f"step 3: the loss is nan on rank {ranks} (epoch 0" in result.err
    assert "On rank 1: The batch itself" in result.err
    [run] = (own / "lightning_logs" / "default").iterdir()
    assert {file.name for file in (run / "bad" / "000003").glob("rank*.pt")} == {"rank0.pt", "rank1.pt"}
    if what == "skip":
        saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
        assert all(math.isfinite(value.double().sum()) for value in saved["state_dict"].values())
    again = forks.run("replay", folder_in(result.err), "--allow=my_bad_task", cwd=own, before=path)
    assert again.poll() == 0, again.out + again.err
    assert "rank1" in again.out


@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of what it does itself
def test_a_compiled_network_is_looked_at_eagerly(tmp_path: Path) -> None:
    task = Task(net(BadOutput()))
    task.network.compile(backend="eager")
    with pytest.raises(InputError, match="step 3: the loss is nan[^~]*The first is network.3"):
        train(task, FiniteLoss(folder=tmp_path))
    assert BadStep.load(tmp_path / "000003" / "rank0.pt").compiled
