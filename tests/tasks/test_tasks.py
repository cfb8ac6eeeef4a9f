"""The classifier: what it optimizes and logs, that it learns with every norm, and what its checkpoints hold."""

import math
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import commands
import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from memory import Memory
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, TensorDataset

from normzoo import norms
from normzoo.callbacks import TrainingCurve
from normzoo.data import Digits
from normzoo.errors import InputError
from normzoo.models import MLP, ConvNet, Network, ResNet
from normzoo.norms import BatchNorm, GroupNorm, Norm, WeightNorm
from normzoo.tasks import Classifier, WarmupCosine, parameter_groups

LAYERS = norms.layers()
DENSE = {name: layer for name, layer in LAYERS.items() if layer.facts.dense}


class Noise(LightningDataModule):
    """Random images in batches of uneven size, from a LightningDataModule that is not an `ImageData`."""

    def __init__(self, samples: int = 50, batch_size: int = 8) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.set = TensorDataset(torch.randn(samples, 1, 8, 8, generator=g), torch.arange(samples) % 10)
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.set, batch_size=self.batch_size)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


def trainer(**settings: Any) -> Trainer:
    quiet = {"accelerator": "cpu", "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(**{**quiet, "enable_model_summary": False, "logger": False, **settings})


def digits(**arguments: Any) -> Digits:
    """20 batches of 60 an epoch."""
    return Digits(**{"batch_size": 60, "val_size": 237, **arguments})


def net(network: Callable[..., Network] = MLP, seed: int = 0, **arguments: Any) -> Network:
    torch.manual_seed(seed)
    return network(Digits.input_shape, Digits.num_classes, **arguments)


def train(task: Classifier, data: LightningDataModule | None = None, **settings: Any) -> dict[str, dict[int, float]]:
    """Trains, and returns what was logged."""
    memory = Memory()
    seed_everything(0, verbose=False)
    trainer(logger=memory, callbacks=[TrainingCurve()], **settings).fit(task, data or digits())
    return memory.values


def accuracy(task: Classifier) -> float:
    return trainer().test(task, digits(), verbose=False)[0]["test/accuracy"]


# Parameter groups


class Matrix(Norm):
    """A layer whose parameter has the shape of a weight."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.matrix = nn.Parameter(torch.eye(num_features))

    def normalize(self, x: Tensor) -> Tensor:
        return x.movedim(1, -1).matmul(self.matrix).movedim(-1, 1)


@pytest.mark.parametrize("layer", [*LAYERS.values(), Matrix, partial(norms.WeightStandardization, then=BatchNorm)])
def test_only_weights_decay(layer: Callable[[int], Norm]) -> None:
    network = net(ResNet, depth=8, norm=layer, activation=nn.PReLU)
    decayed, spared = parameter_groups(network)
    assert decayed.get("weight_decay") is None, "the optimizer's own"
    assert spared["weight_decay"] == 0
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    both = [names[id(p)] for group in (decayed, spared) for p in group["params"]]
    assert sorted(both) == sorted(names.values()), "every parameter exactly once"
    of_layers = ("layer.weight", "layer.parametrizations.weight.original", "head.weight")
    assert {names[id(p)] for p in decayed["params"]} == {name for name in names.values() if name.endswith(of_layers)}


def test_frozen_parameters_do_not_change() -> None:
    network = net()
    network.hidden.requires_grad_(False)
    frozen = {id(p) for p in network.hidden.parameters()}
    groups = parameter_groups(network)
    assert [len(group["params"]) for group in groups] == [1, 1]
    assert not frozen & {id(p) for group in groups for p in group["params"]}
    task = Classifier(network, optimizer=partial(SGD, lr=0.1, weight_decay=0.1))
    before = {name: p.clone() for name, p in network.named_parameters()}
    train(task, max_steps=2)
    assert {name for name, p in network.named_parameters() if not torch.equal(p, before[name])} == {
        "head.weight",
        "head.bias",
    }


def test_empty_groups_are_dropped() -> None:
    assert len(parameter_groups(nn.Linear(2, 2, bias=False))) == 1
    shared = nn.Linear(2, 2)
    assert [len(g["params"]) for g in parameter_groups(nn.Sequential(shared, shared))] == [1, 1]


def test_decay_reaches_the_optimizer() -> None:
    """With gradients of zero, weights shrink by lr * decay, and nothing else moves."""
    task = Classifier(net(), optimizer=partial(SGD, lr=0.5, weight_decay=0.1))
    before = {name: p.clone() for name, p in task.net.named_parameters()}
    optimizer = task.configure_optimizers()
    assert isinstance(optimizer, Optimizer)
    for p in task.net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in task.net.named_parameters():
        factor = 1 - 0.5 * 0.1 if p.ndim > 1 else 1
        torch.testing.assert_close(p, before[name] * factor)


# Schedules


def cosine(step: int, total: int, warmup: float, final: float) -> float:
    """The documented formula."""
    warm = round(warmup * total)
    if step < warm:
        return (step + 1) / (warm + 1)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * (step - warm) / (total - warm)))


@pytest.mark.parametrize("total", [1, 7, 48])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.5, 0.99])
@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
def test_warmup_cosine_is_its_formula(total: int, warmup: float, final: float) -> None:
    weights = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = SGD([{"params": weights[:1], "lr": 0.4}, {"params": weights[1:], "lr": 0.02}])
    schedule = WarmupCosine(optimizer, total, warmup=warmup, final=final)
    for step in range(total):
        share = cosine(step, total, warmup, final) if round(warmup * total) < total else (step + 1) / (total + 1)
        assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.4 * share, 0.02 * share])
        optimizer.step()
        schedule.step()
    for _ in range(3):  # after its end, the schedule is constant
        optimizer.step()
        schedule.step()
        assert schedule.get_last_lr() == pytest.approx([0.4 * final, 0.02 * final])


@pytest.mark.parametrize("wrong", [{"warmup": 1.0}, {"warmup": -0.1}, {"final": 1.5}, {"final": -1}])
def test_shares_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    [(name, value)] = wrong.items()
    with pytest.raises(InputError, match=rf"{name}={value}.*shares.*defaults"):
        WarmupCosine(SGD([nn.Parameter(torch.zeros(1))]), 10, **wrong)


SCHEDULES: dict[str, tuple[Callable[[Optimizer], LRScheduler], Callable[[int], float]]] = {
    # 20 steps an epoch, 3 epochs: the rate after each step, as a share of the first
    "WarmupCosine": (partial(WarmupCosine, warmup=0.25, final=0.1), lambda t: cosine(t, 60, 0.25, 0.1)),
    "WarmupCosine-own-length": (partial(WarmupCosine, total_steps=100), lambda t: cosine(t, 100, 0.05, 0)),
    "StepLR": (partial(StepLR, step_size=1, gamma=0.5), lambda t: 0.5 ** (t // 20)),
    "CosineAnnealingLR": (partial(CosineAnnealingLR, T_max=3), lambda t: (1 + math.cos(math.pi * (t // 20) / 3)) / 2),
    # The loss falls, which is no progress when it ought to rise.
    "ReduceLROnPlateau": (partial(ReduceLROnPlateau, mode="max", patience=0), lambda t: 1.0 if t < 40 else 0.1),
    "OneCycleLR": (partial(OneCycleLR, max_lr=0.1, total_steps=60, anneal_strategy="linear"), lambda t: one_cycle(t)),
}


def one_cycle(step: int) -> float:
    """OneCycleLR with its defaults: up from 1/25 over the first 0.3, down to 1/250,000 at the end."""
    points = [(0, 1 / 25), (0.3 * 60 - 1, 1.0), (59, 1 / 25e4)]
    (a, low), (b, high) = points[:2] if step <= points[1][0] else points[1:]
    return low + (high - low) * (step - a) / (b - a)


@pytest.mark.parametrize("schedule,share", SCHEDULES.values(), ids=SCHEDULES)
def test_a_schedule_moves_by_step_or_by_epoch(
    schedule: Callable[[Optimizer], LRScheduler], share: Callable[[int], float]
) -> None:
    task = Classifier(net(hidden=[]), optimizer=partial(SGD, lr=0.1, momentum=0.9), lr_scheduler=schedule)
    rates = train(task, max_epochs=3)["lr"]
    steps = [step for step in range(1, 60) if step % 20]  # at an epoch's end, the point comes before the change
    assert [rates[t] for t in steps] == pytest.approx([0.1 * share(t) for t in steps], abs=1e-9)


def test_a_run_without_end_needs_total_steps() -> None:
    task = Classifier(net(), lr_scheduler=WarmupCosine)
    with pytest.raises(InputError, match="WarmupCosine.*no end.*max_epochs"):
        train(task, max_epochs=-1)


def test_a_resumed_run_continues_the_schedule(tmp_path: Path) -> None:
    """The same rates as without the interruption; and a run made longer follows the longer schedule."""
    optimizer = partial(SGD, lr=0.1)
    build = partial(Classifier, optimizer=optimizer, lr_scheduler=WarmupCosine)
    whole = train(build(net()), max_epochs=4)["lr"]
    first = build(net())
    half = trainer(max_epochs=4)
    half.fit_loop.max_epochs = 2
    half.fit(first, digits())
    half.save_checkpoint(tmp_path / "half.ckpt")

    def resumed(epochs: int) -> dict[int, float]:
        memory = Memory()
        resumed = trainer(max_epochs=epochs, logger=memory, callbacks=[TrainingCurve()])
        resumed.fit(build(net()), digits(), ckpt_path=str(tmp_path / "half.ckpt"))
        return memory.values["lr"]

    assert resumed(4) == pytest.approx({t: whole[t] for t in range(41, 81)})
    longer = resumed(6)
    assert max(longer) == 120
    assert longer == pytest.approx({t: 0.1 * cosine(t, 120, 0.05, 0) for t in longer})


# Evaluation


def test_evaluation_is_over_samples_not_batches() -> None:
    """The means over a last batch of another size, and the calibration error, against the definitions."""
    data, memory = Noise(), Memory()
    task = Classifier(net(), label_smoothing=0.1)
    trainer(logger=memory).validate(task, data, verbose=False)
    images, labels = data.set.tensors
    with torch.no_grad():
        logits = task.net.eval()(images)
    loss = nn.functional.cross_entropy(logits, labels, label_smoothing=0.1).item()
    probability, predicted = logits.softmax(1).max(1)
    right = (predicted == labels).float()
    bins = (probability * 15).ceil()
    error = sum(
        ((right[bins == b].mean() - probability[bins == b].mean()).abs() * (bins == b).float().mean()).item()
        for b in bins.unique()
    )
    logged = {tag: next(iter(values.values())) for tag, values in memory.values.items()}
    assert logged.pop("epoch", 0) == 0
    assert logged == pytest.approx(
        {"val/loss": loss, "val/accuracy": right.mean().item(), "val/calibration_error": error}, rel=1e-4
    )


# Learning


FAST = ("BatchNorm", "LayerNorm", "NoNorm", "WeightNorm", "DynamicTanh", "BatchChannelNorm")


@pytest.mark.parametrize(
    "layer", [pytest.param(one, id=n, marks=() if n in FAST else pytest.mark.slow) for n, one in DENSE.items()]
)
def test_an_mlp_learns_digits_with_every_norm(layer: type[Norm]) -> None:
    task = Classifier(net(norm=layer), optimizer=partial(AdamW, lr=3e-3))
    train(task, max_epochs=4)
    assert accuracy(task) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("network", [partial(ConvNet, widths=(16, 32)), partial(ResNet, depth=8, width=8)])
def test_convolutions_learn_digits_with_every_norm(network: Callable[..., Network], layer: type[Norm]) -> None:
    for epochs in (8, 20):  # 20 for what bounds every layer's gain, as SpectralNorm does
        task = Classifier(net(network, norm=layer), optimizer=partial(AdamW, lr=1e-2))
        train(task, max_epochs=epochs)
        if accuracy(task) > 0.8:
            return
    pytest.fail(f"{accuracy(task):.3f} after {epochs} epochs")


@pytest.mark.parametrize("layer", [BatchNorm, GroupNorm, WeightNorm])
def test_channels_last_is_a_matter_of_rounding(layer: type[Norm]) -> None:
    states = []
    for channels_last in (True, False):
        task = Classifier(
            net(ConvNet, widths=(8, 16), norm=layer), optimizer=partial(SGD, lr=0.05), channels_last=channels_last
        )
        train(task, max_steps=10, num_sanity_val_steps=0)
        weight = task.net.stack[1].layer.weight  # type: ignore[index, union-attr]
        assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last  # type: ignore[operator]
        states.append(task.net.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_compiled_network_trains_as_another() -> None:
    logs = []
    for compiled in (True, False):
        task = Classifier(
            net(ConvNet, widths=(8, 16)), optimizer=partial(SGD, lr=0.05), compile=compiled, channels_last=False
        )
        logs.append(train(task, max_epochs=1)["train/loss"])
        assert bool(task.net._compiled_call_impl) == compiled
    assert logs[0] == pytest.approx(logs[1], rel=1e-3)


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "a net without classes": (lambda: Classifier(nn.Flatten()), "num_classes=None.*Flatten.*pass num_classes"),
    "no classes": (lambda: Classifier(nn.Flatten(), num_classes=-1), "num_classes=-1"),
    "much smoothing": (lambda: Classifier(net(), label_smoothing=1.0), r"label_smoothing=1.0.*\[0, 1\).*0.1"),
    "less than none": (lambda: Classifier(net(), label_smoothing=-0.1), r"label_smoothing=-0.1.*\[0, 1\)"),
}


@pytest.mark.parametrize("given,message", REFUSED.values(), ids=REFUSED)
def test_wrong_arguments_are_refused(given: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=f"(?s){message}"):
        given()


def test_any_network_can_be_trained() -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    task = Classifier(plain, optimizer=partial(SGD, lr=0.1), num_classes=10)
    train(task, max_epochs=2)
    assert accuracy(task) > 0.8


# Checkpoints of the command line


@pytest.mark.parametrize("layer", ["GroupNorm", "WeightStandardization"])
def test_a_checkpoint_rebuilds_its_network(layer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    eps = "--model.net.norm.eps=0.125"
    run = commands.fit(f"--model.net.norm={layer}", eps, "--model.net.hidden=[12]", *commands.SHORT)
    file = run / "checkpoints" / "best.ckpt"
    task = Classifier.load_from_checkpoint(file, weights_only=True)
    network = task.net
    assert isinstance(network, MLP)
    [norm] = [module for module in network.modules() if type(module) is LAYERS[layer]]
    assert (norm.num_features, norm.eps) == (12, 0.125)
    saved = torch.load(file, weights_only=True)["state_dict"]
    assert saved.keys() == task.state_dict().keys()
    assert all(torch.equal(value, saved[name]) for name, value in task.state_dict().items())
    assert isinstance(task.configure_optimizers(), AdamW)


def test_a_task_made_in_python_keeps_its_network_out_of_the_checkpoint(tmp_path: Path) -> None:
    task = Classifier(net())
    one = trainer(max_steps=1)
    one.fit(task, digits())
    one.save_checkpoint(tmp_path / "it.ckpt")
    saved = torch.load(tmp_path / "it.ckpt", weights_only=True)
    assert "hyper_parameters" not in saved
    again = Classifier.load_from_checkpoint(tmp_path / "it.ckpt", net=net(seed=1), weights_only=True)
    assert all(torch.equal(value, saved["state_dict"][name]) for name, value in again.state_dict().items())


# Two ranks


@pytest.mark.slow
def test_two_ranks_are_one_run(tmp_path: Path) -> None:
    """One folder, one curve; and every rank's samples count in it."""
    result = commands.process(
        "fit",
        *commands.QUIET,
        "--trainer.devices=2",
        "--trainer.strategy=ddp",
        "--trainer.max_epochs=2",
        "--model.net.norm.sync=true",
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert [p.name for p in (tmp_path / "lightning_logs" / "default").iterdir()] == ["000-BatchNorm-0"]
    run = tmp_path / "lightning_logs" / "default" / "000-BatchNorm-0"
    assert {p.name for p in run.iterdir()} >= {"config.yaml", "checkpoints"}
    logged = commands.scalars(run)
    assert logged["val/accuracy"][max(logged["val/accuracy"])] > 0.6
    assert len(logged["train/loss"]) == max(logged["train/loss"])  # a short run: a point per step
    assert result.stdout.count("tensorboard --logdir") == 1


def test_a_task_survives_pickle() -> None:
    task = Classifier(net())
    assert pickle.loads(pickle.dumps(task)).state_dict().keys() == task.state_dict().keys()
