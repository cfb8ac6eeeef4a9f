"""A step that is not finite never reaches the weights; its first bad layer is named, and the step can be repeated."""

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
from normzoo.callbacks.finite_loss import is_finite
from normzoo.cli.replay import find_steps
from normzoo.data import Digits
from normzoo.errors import InputError
from normzoo.models import MLP

AT = 3
"""The batch that is bad."""


class Bad(nn.Module):
    """Returns its input, but for one batch, where the task sets `is_bad`."""

    is_bad = False

    def forward(self, x: Tensor) -> Tensor:
        return self.spoil(x) if self.is_bad else x

    def spoil(self, x: Tensor) -> Tensor:
        return x / (x - x)


class OneInfinite(Bad):
    def spoil(self, x: Tensor) -> Tensor:
        return torch.where(x == x.max(), torch.inf, x)


class BadGradient(Bad):
    """The gradient of the root at 0 is infinite."""

    def spoil(self, x: Tensor) -> Tensor:
        return x + (x - x.detach()).square().sum().sqrt()


class AlwaysBad(Bad):
    is_bad = property(lambda self: self.training, lambda self, value: None)


class Masked(nn.Module):
    """Infinities on purpose, which the next layer makes finite."""

    def forward(self, x: Tensor) -> Tensor:
        return x.masked_fill(x < -0.5, -torch.inf)


class Between(Bad):
    """Divides by 0 between two of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 12), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x / 0 if self.is_bad else x)


class Branches(nn.Module):
    """Two layers on one input, of which the second has a bad gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(12, 12), BadGradient()

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x) + self.right(x)


class BadBatch(Digits):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        images, labels = super().on_after_batch_transfer(batch, dataloader_idx)
        if self.trainer is not None and self.trainer.training and self.trainer.fit_loop.epoch_loop.batch_idx + 1 == AT:
            images = images.clone()
            images[0, 0, 0, 0] = torch.nan
        return images, labels


def net(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 12), norms.BatchNorm(12), *layers, nn.BatchNorm1d(12), nn.Dropout(0.2),
        nn.Linear(12, 10),
    )  # fmt: skip


class Task(LightningModule):
    """A LightningModule of a user."""

    def __init__(self, network: nn.Module, bad_loss: bool = False) -> None:
        super().__init__()
        self.network = network
        self.bad_loss = bad_loss
        self.outcomes: list[Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        for layer in self.network.modules():
            if isinstance(layer, Bad):
                layer.is_bad = batch_idx == AT
        loss = nn.functional.cross_entropy(self.network(batch[0]), batch[1])
        if self.bad_loss and batch_idx == AT:
            loss = (loss - loss.detach()).abs().log()
        self.outcomes.append(loss.detach())
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.01)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Without it, Lightning warns."""


class Snapshot(Callback):
    """The state of the training before each step."""

    def __init__(self) -> None:
        self.before: dict[int, dict[str, Any]] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.before[trainer.global_step] = state(trainer, pl_module)


def state(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    optimizers = {f"optimizer.{i}": repr(one.state_dict()["state"]) for i, one in enumerate(trainer.optimizers)}
    return {name: value.clone() for name, value in module.state_dict().items()} | optimizers


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(a, b) if isinstance(a := one[name], Tensor) else a == b for name, b in other.items()
    )


def train(task: LightningModule, *callbacks: Callback, data: type[Digits] = Digits, **settings: Any) -> Trainer:
    torch.manual_seed(7)
    loaded = data(batch_size=32, shuffle_seed=0, val_size=0)
    return monitored.fit(task, callbacks, data=loaded, **settings)


# Cause -> the task, its data, the layer to name, and a part of the message.
CASES: dict[str, tuple[Callable[[], Task], type[Digits], str, str]] = {
    "output": (lambda: Task(net(Bad())), Digits, "network.3", "loss is nan"),
    "infinite": (lambda: Task(net(OneInfinite())), Digits, "network.3", "1 infinite"),
    "gradient": (lambda: Task(net(BadGradient())), Digits, "network.3", "the loss is finite, a gradient is not"),
    "branch": (lambda: Task(net(Branches())), Digits, "network.3.right", "the loss is finite, a gradient is not"),
    "between": (lambda: Task(nn.Sequential(nn.Flatten(), Between(), nn.Linear(12, 10))), Digits, "network.1", "itself"),
    "loss": (lambda: Task(net(), bad_loss=True), Digits, "loss", "loss is -inf"),
    "batch": (lambda: Task(net()), BadBatch, "batch", "batch itself"),
    "masked": (lambda: Task(net(Masked(), nn.Sigmoid(), Bad())), Digits, "network.5", "loss is nan"),
}
COMPILED = ("output", "gradient")


@pytest.mark.parametrize(
    ("case", "compiled"), [*((case, False) for case in CASES), *((case, True) for case in COMPILED)]
)
@pytest.mark.parametrize("on_bad", ["stop", "skip"])
def test_a_bad_step_is_not_applied(on_bad: Any, case: str, compiled: bool, tmp_path: Path) -> None:
    """Weights, buffers and optimizer keep their values in the training and in the saved checkpoint; the message names
    step, epoch, batch, learning rate and the first bad layer, and how to get the batch in Python."""
    make, data, offender, says = CASES[case]
    task, snapshot, callback = make(), Snapshot(), FiniteLoss(on_bad, folder=tmp_path)
    if compiled:
        task.network.compile(backend="eager")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            train(task, callback, snapshot, data=data, max_steps=AT + 2)
            message = "\n".join(str(one.message) for one in caught)
        except InputError as error:
            message = str(error)
            assert on_bad == "stop"
    assert f"step {AT}: " in message
    assert f"(epoch 0, batch {AT}, learning rate 0.01)" in message
    assert says in message

    folder = tmp_path / f"{AT:06d}"
    assert BadStep.load(folder / "rank0.pt").offender == offender
    assert "normzoo replay" not in message  # which needs a config
    [line] = re.findall(r"torch\.load\(.*'batch'\]", message)
    images, labels = eval(line, {"torch": torch})
    assert len(images) == len(labels) == 32

    after = state(task.trainer, task) if on_bad == "stop" else snapshot.before[AT + 1]
    assert same(after, snapshot.before[AT])
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(torch.equal(value, snapshot.before[AT][name]) for name, value in saved["state_dict"].items())
    assert saved["global_step"] == AT
    if on_bad == "skip":
        assert f"1 of {AT + 2} steps were skipped, since their loss or gradients were not finite: {AT}." in message
        assert callback.skipped == [AT]


@pytest.mark.filterwarnings("ignore")  # of the skipped step
def test_after_a_skipped_step_training_continues_as_if_it_had_not_been(tmp_path: Path) -> None:
    """The result equals that of a task that returns no loss for the batch and restores its buffers."""

    class Reference(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            if loss.isfinite():
                return loss
            for name, buffer in self.network.named_buffers():
                buffer.copy_(snapshot.before[batch_idx][f"network.{name}"])
            return None

    snapshot, task, reference = Snapshot(), Task(net(Bad())), Reference(net(Bad()))
    trainer = train(task, FiniteLoss("skip", folder=tmp_path))
    train(reference, snapshot)
    assert trainer.global_step == 12
    assert same(state(trainer, task), state(reference.trainer, reference))


def test_too_many_skipped_steps_in_a_row_stop(tmp_path: Path) -> None:
    callback = FiniteLoss("skip", most_in_a_row=4, folder=tmp_path)
    with pytest.raises(InputError, match="step 3.*\n.*\n.*the last of 4 in a row"), pytest.warns(match="was skipped"):
        train(Task(net(AlwaysBad())), callback)
    assert len(list(tmp_path.iterdir())) == 4  # the first three, and the one that stopped


class Vanishing(Task):
    """Adam without eps: at one step the gradient is 0, and the update is 0 / 0."""

    def __init__(self, spoils: int) -> None:
        super().__init__(nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Sigmoid(), nn.Linear(12, 10)))
        self.spoils = spoils

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01, eps=0)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * 0 if self.trainer.global_step == self.spoils else loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self.trainer.global_step == self.spoils:
            for values in optimizer.state.values():
                values["exp_avg"].zero_()
                values["exp_avg_sq"].zero_()


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(
    ("spoils", "says"),
    [
        pytest.param(7, "the update made .* non-finite", id="before a checkpoint"),
        pytest.param(11, "the update made .* non-finite", id="at the end"),
        pytest.param(4, "The update before this step made the weights non-finite", id="by the next step"),
    ],
)
def test_weights_that_an_update_spoiled_replace_no_checkpoint(
    spoils: int, says: str, exact: bool, tmp_path: Path
) -> None:
    """The message names the last checkpoint, whose weights are finite."""
    saver = ModelCheckpoint(tmp_path / "kept", filename="{step}", every_n_train_steps=4, save_top_k=-1)
    callbacks = (FiniteLoss(folder=tmp_path / "bad"), ExactResume(tmp_path / "kept", every_steps=4) if exact else saver)
    with pytest.raises(InputError, match=says) as raised:
        train(Vanishing(spoils), *callbacks, enable_checkpointing=True)
    kept = sorted((tmp_path / "kept").glob("*.ckpt"), key=lambda file: file.stat().st_mtime)
    if not exact:
        assert [file.name for file in kept] == [f"step={n}.ckpt" for n in range(4, spoils + 1, 4)]
    assert str(kept[-1]) in str(raised.value)
    saved = torch.load(kept[-1], weights_only=True)["state_dict"]
    assert all(value.isfinite().all() for value in saved.values())


def test_the_scaler_handles_gradients_that_only_its_scale_makes_infinite(tmp_path: Path) -> None:
    """A loss that is not finite without the scale is stopped or skipped."""

    class Large(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) * 1e34  # overflows when multiplied by 65536

    def half() -> dict[str, Any]:  # Lightning offers it on GPUs only
        return {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))]}

    train(Large(MLP((1, 8, 8), 10, hidden=(12,))), FiniteLoss(folder=tmp_path), max_steps=3, **half())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match=f"step {AT}: the loss is nan"):
        train(Task(net(Bad())), FiniteLoss(folder=tmp_path), **half())
    with pytest.warns(UserWarning, match="step 3: |1 of 12 steps"):
        train(task := Task(net()), FiniteLoss("skip", folder=tmp_path), data=BadBatch, **half())
    assert all(value.isfinite().all() for value in task.state_dict().values())


SETTINGS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"precision": "bf16-mixed"},
    "accumulated": {"accumulate_grad_batches": 3, "max_steps": 5},
    "clipped": {"gradient_clip_val": 0.5},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_training_without_a_bad_step_is_unchanged(setting: str, tmp_path: Path) -> None:
    """Weights, buffers, optimizer, losses and random numbers equal those without the callback, to the bit."""

    def end(*callbacks: Callback) -> tuple[dict[str, Any], list[Tensor], Any]:
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002 - the global one is what libraries draw from
        task = Task(net(Masked(), nn.Sigmoid()))
        trainer = train(task, *callbacks, **SETTINGS[setting])
        drawn = torch.rand(1).item(), random.random(), np.random.rand()  # noqa: NPY002 - as above
        return state(trainer, task), task.outcomes, drawn

    (one, losses, drawn), (other, other_losses, other_drawn) = end(FiniteLoss(folder=tmp_path)), end()
    assert same(one, other)
    assert all(map(torch.equal, losses, other_losses))
    assert drawn == other_drawn
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("layer", [Bad, BadGradient])
def test_of_accumulated_batches_the_bad_one_is_saved(layer: type[Bad], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"step 1: .*batch {AT}, "):
        train(Task(net(layer())), FiniteLoss(folder=tmp_path), accumulate_grad_batches=3, max_steps=2)
    assert BadStep.load(tmp_path / "000001" / "rank0.pt").batch_idx == AT


def test_buffers_that_a_step_replaces_are_restored(tmp_path: Path) -> None:
    class Counting(Task):
        def __init__(self) -> None:
            super().__init__(net(Bad()))
            self.register_buffer("count", torch.zeros(()))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.count = self.count + 1
            return super().training_step(batch, batch_idx)

    with pytest.raises(InputError):
        train(task := Counting(), FiniteLoss(folder=tmp_path))
    assert task.count == AT


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("value", [1e38, torch.nan, -torch.inf])
def test_gradients_are_checked_one_by_one(value: float, sparse: bool) -> None:
    """Finite gradients are finite, whatever their sum."""
    parameters = [torch.zeros(3, requires_grad=True) for _ in range(9)]
    for p in parameters:
        gradient = torch.full((3,), value)
        p.grad = gradient.to_sparse() if sparse else gradient
    assert is_finite(parameters, []) is math.isfinite(value)


@pytest.mark.filterwarnings("ignore")  # monitors warn of bad values
def test_monitors_survive_a_skipped_step(tmp_path: Path) -> None:
    skips = FiniteLoss("skip", folder=tmp_path / "bad")
    trainer = train(Task(net()), skips, *monitored.suite(1), data=BadBatch, folder=tmp_path, max_steps=AT + 2)
    assert (skips.skipped, trainer.global_step) == ([AT], AT + 2)


def test_a_step_that_cannot_be_copied_is_still_reported_and_saved(tmp_path: Path) -> None:
    task = Task(net(Bad()))
    task.stream = (tmp_path / "open").open("w")  # type: ignore[assignment] # an attribute of the user's
    with task.stream, pytest.raises(InputError, match="first layer is not known.*cannot be copied"):  # type: ignore[attr-defined] # as above
        train(task, FiniteLoss(folder=tmp_path / "bad"))
    assert (tmp_path / "bad" / f"{AT:06d}" / "rank0.pt").exists()


def test_a_full_disk_does_not_hide_the_bad_step(tmp_path: Path) -> None:
    (tmp_path / "bad").write_text("a file where a folder should be")
    with pytest.raises(InputError, match=r"the loss is nan[^~]*Nothing was saved: .* could not be written"):
        train(Task(net(Bad())), FiniteLoss(folder=tmp_path / "bad"))


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
        first = nn.Sequential(nn.Flatten(), nn.Dropout())
        layers = [first, nn.Linear(64, width), nn.BatchNorm1d(width), Bad(at), nn.Linear(width, 10)]
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
    """A folder with a task of the user's."""
    (tmp_path / "my_bad_task.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def folder_in(message: str) -> str:
    """The folder that a message says to replay."""
    found = re.search(r"normzoo replay (\S+)", message)
    assert found, message
    return found[1]


DIVERGES = ("--model.optimizer=SGD", "--model.optimizer.lr=1e18")
MINE = ("--model=my_bad_task.Mine", "--data.val_size=0")
FITS = {
    "classifier": DIVERGES,
    "bfloat16": (*DIVERGES, "--trainer.precision=bf16-mixed"),
    "accumulated": (*DIVERGES, "--trainer.accumulate_grad_batches=2"),
    "own": (*MINE, "--model.at=30", "--data.batch_size=64"),  # in the second epoch
}


@pytest.mark.parametrize(
    "case", ["classifier", *(pytest.param(case, marks=pytest.mark.slow) for case in list(FITS)[1:])]
)
def test_replay_reproduces_the_loss_and_the_first_layer(case: str, own: Path) -> None:
    """It writes no files."""
    result = commands.normzoo("fit", "--monitors=false", *commands.QUIET, "--trainer.max_epochs=3", *FITS[case])
    assert result.status == 1
    before = sorted(own.rglob("*"))
    again = commands.normzoo("replay", folder_in(result.err), "--allow=my_bad_task")
    assert again.status == 0, again.out + again.err
    step = BadStep.load(next(own.rglob("rank0.pt")))
    assert f"step {step.step}, epoch {step.epoch}, batch {step.batch_idx}" in again.out
    then, now = re.findall(r"^loss in \S+ +(nan|-?inf|[-\d.e+]+)$", again.out, re.MULTILINE)
    assert then == now
    assert f">{step.offender}" in again.out or step.offender == "loss"
    assert step.summary in again.out
    if case == "own":
        assert f"normzoo replay {folder_in(result.err)} --allow=my_bad_task\n" in result.err
        assert step.epoch == 1
        assert "net.3 (Bad)" in result.err
    assert sorted(own.rglob("*")) == before


def test_replay_reports_what_it_does_not_reproduce(own: Path) -> None:
    result = commands.normzoo("fit", "--monitors=false", *commands.QUIET, "--trainer.max_epochs=3", *FITS["own"])
    file = next(own.rglob("rank0.pt"))
    step = BadStep.load(file)
    step.buffers["net.3.count"] = torch.zeros((), dtype=torch.int64)
    step.save(file)
    again = commands.normzoo("replay", folder_in(result.err), "--allow=my_bad_task")
    assert again.status == 1
    assert "Not reproduced. In training: The first non-finite layer is net.3 (Bad)" in again.out


class Code:
    """Pickled, it makes a folder when it is read."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


def test_replay_runs_no_code_of_a_folder(own: Path) -> None:
    """Neither of the step, nor of the checkpoint, nor of the config."""
    folder = Path(folder_in(commands.normzoo("fit", "--monitors=false", *commands.QUIET, *DIVERGES).err))
    config = folder / "config.yaml"
    step, checkpoint = folder / "rank0.pt", folder / "checkpoints" / "last.ckpt"
    for file, words in ((step, "could run code"), (checkpoint, str(checkpoint))):
        whole = file.read_bytes()
        torch.save({**torch.load(file, weights_only=True), "more": Code()}, file)
        result = commands.normzoo("replay", str(folder))
        assert result.status == 1
        assert words in result.err
        file.write_bytes(whole)
    config.write_text(config.read_text().replace("class_path: torch.optim.SGD", "class_path: os.mkdir"))
    result = commands.normzoo("replay", str(folder))
    assert result.status == 1
    assert "names 'os.mkdir'" in result.err
    assert not (own / "ran").exists()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("unknown", 1, "not a step that FiniteLoss saved"),
        ("batch", Path("a"), "could run code"),
    ],
)
def test_replay_refuses_a_file_that_is_no_step(name: str, value: Any, words: str, tmp_path: Path) -> None:
    step = BadStep((), 0, 0, 0, {}, [], {}, 1.0, "32-true", 1, None)
    (tmp_path / "config.yaml").touch()
    step.save(tmp_path / "rank0.pt")
    assert find_steps(tmp_path) == {"0": step}
    torch.save({**vars(step), name: value}, tmp_path / "rank0.pt")
    with pytest.raises(InputError, match=words):
        find_steps(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give the folder of the step"),
        (("--rank=1",), "give the folder of the step"),
        (("nowhere",), "it has no rank0.pt"),
        (("python",), "torch.load"),
        (("python", "--rank=1"), "no step of rank 1"),
        (("python", "--rank", "1"), "no step of rank 1"),
    ],
)
def test_replay_without_a_step_ends_with_one_message(arguments: tuple[str, ...], words: str, own: Path) -> None:
    """Also for a folder of a training in Python, which has no config."""
    (own / "python").mkdir()
    (own / "python" / "rank0.pt").touch()
    result = commands.normzoo("replay", *arguments)
    assert result.status == 1
    assert words in result.err
    assert len(result.err.splitlines()) == 1


@pytest.mark.filterwarnings("ignore")  # of the skipped step
@pytest.mark.parametrize("on_bad", ["ignore", "skip"])
def test_a_flag_skips_or_ignores(on_bad: str, own: Path) -> None:
    limits = ("--trainer.max_epochs=1", "--trainer.limit_train_batches=4")
    run = commands.fit(*MINE, *limits, f"--on_bad_loss={on_bad}")
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(value.isfinite().all() for value in saved.values()) is (on_bad == "skip")
    assert (run / "bad").exists() is (on_bad == "skip")
    if on_bad == "skip":
        text = (run / "bad" / "000003" / "layers.txt").read_text()
        assert text.startswith("The first non-finite layer is net.3 (Bad)")


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
    """One of two ranks has a bad batch; one process replays it."""
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
    assert "rank 1" in again.out
