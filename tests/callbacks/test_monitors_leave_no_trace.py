"""What monitors leave alone: weights, buffers, random numbers, graphs, memory; on one rank and on several."""

import gc
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from commands import BRIEF, SHORT, normzoo, process
from lightning.pytorch.loggers import TensorBoardLogger
from monitored import MONITORS, QUIET, Written, classifier, fit, hooks, suite, written
from spawned import DDP
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from normzoo import norms
from normzoo.callbacks import (
    CovariateShift,
    GradientFlow,
    LossLandscape,
    RunningStatistics,
)
from normzoo.callbacks.running_statistics import keeps_statistics
from normzoo.distributed.sync import SyncNorms
from normzoo.errors import InputError
from normzoo.models import MLP, ConvNet, ResNet
from normzoo.monitoring.overview import OVERVIEWS
from normzoo.monitoring.sampler import Sampler
from normzoo.norms import BatchNorm
from normzoo.tasks.classifier import Classifier

LAYERS = norms.layers()


class WithDropout(nn.Module):
    """A network that draws random numbers."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.drop = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.drop(x))


def outcome(
    net: Callable[[], nn.Module], monitors: Sequence[pl.Callback], folder: Path, **settings: Any
) -> list[Tensor]:
    """What a run ends with: parameters, buffers, momentum, and the state of the random numbers."""
    torch.manual_seed(0)
    own = {name: settings.pop(name) for name in ("compile", "channels_last") if name in settings}
    task = classifier(WithDropout(net()), **own)
    torch.manual_seed(1)
    trainer = fit(task, monitors, folder, **settings)
    momenta = [state["momentum_buffer"] for state in trainer.optimizers[0].state.values()]
    return [*(t.clone() for t in task.state_dict().values()), *momenta, torch.get_rng_state()]


NETS: dict[str, Callable[[], nn.Module]] = {
    "MLP": partial(MLP, (1, 8, 8), 10, hidden=(12, 10)),
    "ResNet": partial(ResNet, (1, 8, 8), 10, depth=8, width=4),
    "MLP-BatchRenorm": partial(MLP, (1, 8, 8), 10, hidden=(12, 10), norm=norms.BatchRenorm),
    "ConvNet-NoisyBatchNorm": partial(ConvNet, (1, 8, 8), 10, widths=(4, 6), norm=norms.NoisyBatchNorm),
    "ConvNet-SpectralNorm": partial(ConvNet, (1, 8, 8), 10, widths=(4, 6), norm=norms.SpectralNorm),
}


@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
def test_the_training_is_the_same_to_the_bit(net: Callable[[], nn.Module], tmp_path: Path) -> None:
    settings = {"max_epochs": 2, "max_steps": -1, "limit_train_batches": 10, "limit_val_batches": 2}
    off = outcome(net, [], tmp_path / "off", **settings)
    on = outcome(net, suite(3), tmp_path / "on", **settings)
    assert len(off) == len(on)
    assert all(map(torch.equal, off, on))


@pytest.mark.parametrize("monitor", MONITORS.values(), ids=MONITORS)
def test_every_monitor_alone_leaves_no_trace(monitor: Any, tmp_path: Path) -> None:
    off = outcome(NETS["MLP"], [], tmp_path / "off")
    assert all(map(torch.equal, off, outcome(NETS["MLP"], [monitor(2)], tmp_path / "on")))


@pytest.mark.slow
@pytest.mark.parametrize("net", ["MLP", "ResNet"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_500_steps_are_the_same_to_the_bit(net: str, compiled: bool, tmp_path: Path) -> None:
    settings = {"max_steps": 500, "max_epochs": -1, "compile": compiled, "limit_val_batches": 1}
    off = outcome(NETS[net], [], tmp_path / "off", **settings)
    on = outcome(NETS[net], suite(10), tmp_path / "on", **settings)
    assert all(map(torch.equal, off, on))
    layer = "drift_w2/net.net.hidden.0.norm" if net == "MLP" else "flow_norm/net.net.head"
    assert len(written(tmp_path / "on").scalars(layer)) == 50


class Hooked(Classifier):
    """Its loss needs what a forward hook stores: a closure, which a copy would share."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.features: list[Tensor] = []
        self.net.hidden[0].register_forward_hook(lambda module, args, y: self.features.append(y))  # type: ignore[operator]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        out = super().training_step(batch, batch_idx)
        out["loss"] = out["loss"] + 1e-2 * sum(y.square().mean() for y in self.features)
        self.features.clear()
        return out


@pytest.mark.filterwarnings("ignore:a copy of Hooked leaves out the hooks of net.hidden.0")
def test_a_hook_that_is_a_closure_stays_with_the_original(tmp_path: Path) -> None:
    trained = []
    for monitors in ([], suite(1)):
        torch.manual_seed(0)
        task = Hooked(MLP((1, 8, 8), 10, hidden=(12, 10)), optimizer=partial(torch.optim.SGD, lr=0.1), num_classes=10)
        fit(task, monitors, tmp_path / str(len(monitors)), max_steps=5)
        trained.append(task.state_dict())
    assert all(map(torch.equal, trained[0].values(), trained[1].values()))


def test_hooks_are_gone_after_training(tmp_path: Path) -> None:
    task = classifier()
    trainer = fit(task, suite(1), tmp_path)
    assert hooks(task) == 0
    [sampler] = [one for one in trainer.callbacks if isinstance(one, Sampler)]  # type: ignore[attr-defined]
    assert sampler.replica is None  # type: ignore[comparison-overlap]


class Failing(pl.Callback):
    """Raises in one of the hooks of the third step."""

    def __init__(self, hook: str) -> None:
        setattr(self, hook, self.fail)
        self.count = 0

    def fail(self, *unused: Any, **keywords: Any) -> None:
        self.count += 1
        if self.count == 3:
            raise ZeroDivisionError("on purpose")


@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_before_backward", "on_before_optimizer_step"])
def test_hooks_are_gone_after_an_exception(hook: str, tmp_path: Path) -> None:
    task = classifier()
    with pytest.raises(ZeroDivisionError):
        fit(task, [*suite(1), Failing(hook)], tmp_path)
    assert hooks(task) == 0
    assert list(written(tmp_path).scalars("grad_norm/net.head")) == [0, 1]  # what was seen until then is written


def test_a_second_fit_begins_anew(tmp_path: Path) -> None:
    task, monitors = classifier(), suite(2)
    for run in ("first", "second"):
        fit(task, monitors, tmp_path / run, max_steps=4)
    assert list(written(tmp_path / "second").scalars("grad_norm/net.head")) == [0, 2]


# Compiled networks


@pytest.mark.slow
def test_a_compiled_network_is_sampled_and_not_compiled_again(tmp_path: Path) -> None:
    from torch._dynamo.utils import counters

    def graphs(monitors: Sequence[pl.Callback], folder: Path) -> tuple[dict[str, int], pl.Trainer]:
        torch._dynamo.reset()
        counters.clear()
        torch.manual_seed(0)
        trainer = fit(classifier(compile=True), monitors, folder, max_steps=40, limit_val_batches=1)
        return dict(counters["stats"]), trainer

    off, _ = graphs([], tmp_path / "off")
    on, _ = graphs(suite(4), tmp_path / "on")
    assert on["unique_graphs"] == off["unique_graphs"] > 0
    events = written(tmp_path / "on")
    for tag in ("running_gap/net.hidden.0.norm", "flow_norm/net.head", "input_p50/net.hidden.1.activation"):
        assert list(events.scalars(tag)) == list(range(0, 40, 4))
    assert list(events.scalars("ics_l2/net.head")) == list(range(0, 40, 6))
    fit(classifier(), suite(4), tmp_path / "eager", max_steps=40, limit_val_batches=1)
    other = written(tmp_path / "eager")
    for tag in ("running_gap/net.hidden.0.norm", "flow_norm/net.head", "val_w2/net.hidden.0.norm"):
        assert events.scalars(tag) == pytest.approx(other.scalars(tag), rel=1e-2, abs=1e-5)


# Every norm of the zoo


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, layer in LAYERS.items() if layer.facts.dense])
def test_the_suite_works_with_every_norm_in_an_mlp(name: str, tmp_path: Path) -> None:
    works_with(MLP((1, 8, 8), 10, hidden=(8, 8), norm=LAYERS[name]), tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*the gradient vanishes at")  # as it does with LayerScale, which is small at first
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("net", [partial(ConvNet, widths=(4, 8)), partial(ResNet, depth=8, width=4)])
def test_the_suite_works_with_every_norm_behind_convolutions(name: str, net: Any, tmp_path: Path) -> None:
    works_with(net((1, 8, 8), 10, norm=LAYERS[name]), tmp_path)


def works_with(net: nn.Module, folder: Path) -> None:
    off = classifier(net)
    start = {name: value.clone() for name, value in off.state_dict().items()}
    fit(off, [], folder / "off", max_steps=3)
    after = {name: value.clone() for name, value in off.state_dict().items()}
    on = classifier(net)
    on.load_state_dict(start)
    torch.manual_seed(0)
    fit(on, suite(1), folder, max_steps=3, limit_val_batches=1)
    if not any(module.facts.random for module in net.modules() if isinstance(module, norms.Norm)):
        assert all(torch.equal(value, after[name]) for name, value in on.state_dict().items())
    events = written(folder)
    values = events.values()
    assert {"drift_w2", "flow_norm", "update_ratio", "ics_cosine", "loss_range"} <= values.keys()
    finite = torch.cat(list(values.values())).isfinite()
    assert finite.double().mean() > 0.95
    per_channel = [m for m in net.modules() if keeps_statistics(m) and m.running_mean.numel() == m.num_features]  # type: ignore[operator, union-attr]
    assert ("running_gap" in values) is bool(per_channel)


# Modules of other kinds


class Odd(pl.LightningModule):
    """Returns a dictionary, skips every third batch, logs, keeps a list, and draws on the logger."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.ReLU(), nn.Linear(5, 2))
        self.losses: list[float] = []
        self.calls = 0

    def training_step(self, batch: Any) -> Any:
        self.calls += 1
        batch["x"].add_(1)  # what a step does to its batch is its own concern
        if self.calls % 3 == 0:
            return None
        loss = F.mse_loss(self.net(batch["x"]), batch["y"])
        self.log("loss", loss)
        self.losses.append(loss.item())
        if isinstance(self.logger, TensorBoardLogger):
            self.logger.experiment.add_scalar("own", loss, self.calls)
        return {"loss": loss, "more": 1}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters())

    def train_dataloader(self) -> Any:
        g = torch.Generator().manual_seed(1)
        rows = [{"x": torch.randn(4, generator=g), "y": torch.randn(2, generator=g)} for _ in range(60)]
        return DataLoader(rows, batch_size=6)  # type: ignore[arg-type]


class Own(pl.LightningDataModule):
    """Leaves the loader to the module."""

    def train_dataloader(self) -> Any:
        return self.trainer.lightning_module.train_dataloader()  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_module_of_another_kind_is_left_alone_too(tmp_path: Path) -> None:
    off, on = Odd(), Odd()
    fit(off, [], tmp_path / "off", Own(), max_epochs=1)
    fit(on, suite(1), tmp_path, Own(), max_epochs=1)
    assert all(map(torch.equal, off.state_dict().values(), on.state_dict().values()))
    assert on.losses == off.losses
    events = written(tmp_path)
    assert list(events.scalars("own")) == [1, 2, 4, 5, 7, 8, 10]
    assert list(events.scalars("drift_w2/net.1")) == [0, 1, 3, 4, 6, 7, 9]
    assert list(events.scalars("landscape/loss")) == [0]  # due at 5 again, a batch that is skipped


class Renamed(Odd):
    """Calls its arguments what it likes."""

    def training_step(self, b: Any, i: int) -> Tensor:  # type: ignore[override]
        return F.mse_loss(self.net(b["x"]), b["y"])


def test_arguments_go_by_position(tmp_path: Path) -> None:
    fit(Renamed(), suite(1), tmp_path, Own(), max_steps=3)
    assert list(written(tmp_path).scalars("flow_norm/net.0")) == [0, 1, 2]


class Penalized(Odd):
    """Differentiates within its step, and clips its weights there, as a critic does."""

    def training_step(self, batch: Any) -> Tensor:
        with torch.no_grad():
            self.net[0].weight.mul_(0.9).clamp_(-0.4, 0.4)  # type: ignore[union-attr, operator]
        x = batch["x"].requires_grad_()
        y = self.net(x)
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return F.mse_loss(y, batch["y"]) + slope.square().mean()


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_step_that_differentiates_and_clips_is_left_alone(tmp_path: Path) -> None:
    off, on = Penalized(), Penalized()
    fit(off, [], tmp_path / "off", Own(), max_epochs=1)
    fit(on, suite(1), tmp_path, Own(), max_epochs=1)
    assert all(map(torch.equal, off.state_dict().values(), on.state_dict().values()))
    assert len(written(tmp_path).scalars("ics_l2/net.3")) == 4


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_two_of_a_kind(tmp_path: Path) -> None:
    monitors = [GradientFlow(2, layers="net.0"), GradientFlow(3, layers=["net.3"])]
    trainer = fit(Odd(), monitors, tmp_path, Own(), max_steps=5)
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    saved = torch.load(tmp_path / "it.ckpt", weights_only=True)["callbacks"]
    assert len([key for key in saved if key.startswith("GradientFlow")]) == 2
    events = written(tmp_path)
    assert events.described("normalization/GradientFlow")["layers"] == ["net.0"]
    assert events.described("normalization/GradientFlow-2")["layers"] == ["net.3"]


def test_the_same_monitor_for_another_network(tmp_path: Path) -> None:
    monitors = suite(2)
    fit(classifier(), monitors, tmp_path / "one", max_steps=5)
    fit(classifier(MLP((1, 8, 8), 10, hidden=(7, 6, 5))), monitors, tmp_path / "two", max_steps=5)
    events = written(tmp_path / "two")
    assert events.scalars("drift_w2/net.hidden.2.norm")[0] == 0
    assert events.tables("normalization/CovariateShift")[0].shape[0] == 3 + 4  # norms, layers with weights


class ByHand(Odd):
    """Moves its weights within its training step."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any) -> None:
        optimizer = self.optimizers()
        loss = F.mse_loss(self.net(batch["x"]), batch["y"])
        optimizer.zero_grad()  # type: ignore[union-attr]
        self.manual_backward(loss)
        optimizer.step()  # type: ignore[union-attr, call-arg]


def test_a_module_that_optimizes_by_hand(tmp_path: Path) -> None:
    task = ByHand()
    fit(task, [RunningStatistics(1), CovariateShift(1), GradientFlow(1)], tmp_path, Own(), max_steps=5)
    events = written(tmp_path)
    assert list(events.scalars("update_ratio/net.0")) == [0, 1, 2, 3, 4]
    assert min(events.scalars("update_ratio/net.0").values()) > 0


def test_a_module_that_cannot_be_copied_is_told(tmp_path: Path) -> None:
    task = Odd()
    task.kept = task.net(torch.randn(2, 4))  # type: ignore[assignment]  # has a graph
    with pytest.raises(InputError, match=r"Odd cannot be copied \(RuntimeError.*store no results of autograd"):
        fit(task, [LossLandscape(1)], tmp_path, Own())


# The command line


@pytest.mark.parametrize("net", ["MLP", *(pytest.param(net, marks=pytest.mark.slow) for net in ("ConvNet", "ResNet"))])
def test_fit_has_all_monitors_unless_it_is_told_not_to(
    net: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    short = ("--trainer.max_epochs=1", "--trainer.limit_train_batches=3", f"--model.net={net}", *BRIEF[:3])
    shown = normzoo("fit", *short)
    assert shown.status == 0, shown.err
    assert "\nverdicts: " in shown.out
    assert f"report {Path('lightning_logs', 'default')} --open" in shown.out
    assert "pinnedCards=" in shown.out
    run = tmp_path / "lightning_logs" / "default" / "000-BatchNorm-0"
    assert json.loads((run / "verdicts.json").read_text()) == []
    events = Written(run)
    assert {one.tag for one in OVERVIEWS} <= set(events.tags["scalars"])
    assert len(events.tags["scalars"]) <= 80
    hidden = normzoo("fit", *short, "--monitors=false")
    assert not any(tag.startswith("normalization") for tag in Written(run.with_name("001-BatchNorm-0")).tags["tensors"])
    assert "verdicts" not in hidden.out


def test_the_config_with_other_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Path(__file__).parents[2] / "configs" / "monitors.yaml"
    monkeypatch.chdir(tmp_path)
    short = ("--trainer.max_epochs=1", "--trainer.limit_train_batches=11", "--test_after_fit=false", *BRIEF[:3])
    result = normzoo("fit", "-c", str(config), *short)
    assert result.status == 0, result.err
    events = Written(tmp_path / "lightning_logs" / "default" / "000-BatchNorm-0")
    assert list(events.scalars("grad_norm/net.head")) == [0, 10]


def test_one_monitor_by_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ("--trainer.callbacks+=GradientFlow", "--trainer.callbacks.every=1", "--trainer.callbacks.layers=net.head")
    assert normzoo("fit", *flags, *BRIEF).status == 0
    short = (*BRIEF[:3], *SHORT, "--test_after_fit=false")
    by_class = normzoo("fit", *flags[:2], "--trainer.callbacks.layers=Linear", *short)
    assert by_class.status == 0, by_class.err
    [run] = (tmp_path / "lightning_logs" / "default").iterdir()
    assert all(Written(run).scalars(f"grad_norm/{layer}") for layer in ("net.hidden.0.layer", "net.head"))
    schedule = ("--trainer.callbacks+=CovariateShift", "--trainer.callbacks.every=normzoo.callbacks.Logarithmic")
    assert normzoo("fit", *schedule, *BRIEF).status == 0
    wrong = normzoo("fit", *flags[:2], "--trainer.callbacks.layers=net.tail", *BRIEF)
    assert wrong.status == 1
    assert "layers='net.tail' matches none" in wrong.err
    assert "net.head" in wrong.err


# Memory


@pytest.mark.slow
def test_memory_stays_flat_over_ten_thousand_samples(tmp_path: Path) -> None:
    """After a thousand samples, nine thousand more take less than 3 MB: a sample keeps nothing."""
    kept: list[float] = []

    class Weigh(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *unused: Any) -> None:
            if trainer.global_step in (1000, 10_000):
                gc.collect()
                kept.append(resident())

    monitors = [RunningStatistics(1), CovariateShift(1), GradientFlow(1)]
    net = MLP((1, 8, 8), 10, hidden=(4,))
    fit(classifier(net), [*monitors, Weigh()], tmp_path, max_steps=10_001, max_epochs=-1)
    assert kept[1] - kept[0] < 3


def resident() -> float:
    """Memory of this process in MB."""
    if sys.platform == "linux":
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


# Ranks


class Shared(pl.LightningModule):
    """Eight samples a step: all on one rank, or on two."""

    def __init__(self, sync: bool = True, cut: int = 5, lr: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lr = lr
        self.cut = cut
        self.net = nn.Sequential(
            *(nn.Linear(6, 8), BatchNorm(8, sync=sync), nn.Sigmoid()),
            *(nn.Linear(8, 7), BatchNorm(7, sync=sync), nn.Sigmoid(), nn.Linear(7, 3)),
        ).double()

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        self.net(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def train_dataloader(self) -> Any:
        return self.shard(0, 4)

    def val_dataloader(self) -> Any:
        return self.shard(9, 1 + self.trainer.global_rank)  # the second rank has a batch more

    def shard(self, seed: int, steps: int) -> Any:
        g = torch.Generator().manual_seed(seed)
        x = torch.randn(steps * 8, 6, generator=g, dtype=torch.float64) * 3 + 1
        y = (x.sum(1) > 6).long() + (x[:, 0] > 1).long()
        rank, many = self.trainer.global_rank, self.trainer.world_size > 1
        low, high = ((0, self.cut), (self.cut, 8))[rank] if many else (0, 8)
        rows = [list(range(8 * t + low, 8 * t + high)) for t in range(steps)]
        return DataLoader(TensorDataset(x, y), batch_sampler=rows)


def on_ranks(ranks: int, folder: Path, task: Shared, **settings: Any) -> None:
    two = {"devices": 2, "strategy": DDP()} if ranks == 2 else {"devices": 1}
    trainer = pl.Trainer(
        **{**QUIET, "max_epochs": 2, "limit_val_batches": 0, **settings},
        **two,  # type: ignore[arg-type]
        callbacks=suite(1),  # type: ignore[arg-type]
        use_distributed_sampler=False,
        logger=TensorBoardLogger(folder, name="", version="run"),
        plugins=[SyncNorms()],
    )
    trainer.fit(task)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cut,lr", [(5, 0.0), (4, 0.3)], ids=["uneven", "even"])
def test_two_ranks_show_what_one_does(cut: int, lr: float, tmp_path: Path) -> None:
    """To 1e-6 of everything; with uneven shards but for the step's own gradients, in which ranks count the same."""
    for ranks in (1, 2):
        on_ranks(ranks, tmp_path / str(ranks), Shared(cut=cut, lr=lr))
    one, two = written(tmp_path / "1"), written(tmp_path / "2")
    assert len(list((tmp_path / "2" / "run").glob("events*"))) == 1
    assert set(one.tags["scalars"]) == set(two.tags["scalars"])
    own = ("flow_norm", "grad_norm", "grad_ratio", "update_ratio", "turn") if cut == 5 else ()
    tags = [
        tag for tag in one.tags["tensors"] if tag.startswith("normalization/") and one.described(tag).get("metrics")
    ]
    compared = 0
    for tag in tags:
        metrics, tables = one.described(tag)["metrics"], two.tables(tag)
        for step, table in one.tables(tag).items():
            for i, metric in enumerate(metrics):
                if metric not in own:
                    torch.testing.assert_close(
                        tables[step][:, i], table[:, i], rtol=1e-5, atol=1e-6, equal_nan=True, msg=f"{tag} {metric}"
                    )
                    compared += 1
    assert compared > 200


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_ranks_train_the_same_with_and_without(tmp_path: Path) -> None:
    settings = ("--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_epochs=3", *BRIEF[:3])
    config = Path(__file__).parents[2] / "configs" / "monitors.yaml"
    states = []
    for name, more in (("off", ()), ("on", ("-c", str(config)))):
        result = process("fit", *more, *settings, f"--experiment={name}", cwd=tmp_path)
        assert result.returncode == 0, result.stderr[-3000:]
        last = tmp_path / "lightning_logs" / name / "000-BatchNorm-0" / "checkpoints" / "last.ckpt"
        states.append(torch.load(last, weights_only=True)["state_dict"])
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


SCRIPT = """
import sys
import lightning.pytorch as pl
import torch
from monitored import QUIET, suite
from test_monitors_leave_no_trace import Shared
from lightning.pytorch.loggers import TensorBoardLogger

class Fails(pl.Callback):
    def on_train_batch_end(self, trainer, module, *unused):
        if trainer.global_rank == 1 and trainer.global_step == 2:
            raise ZeroDivisionError("on purpose")

class EndsEarly(Shared):
    def train_dataloader(self):
        return self.shard(0, 4 - self.trainer.global_rank)

if __name__ == "__main__":
    fails = sys.argv[1] == "fails"
    trainer = pl.Trainer(
        **{**QUIET, "max_epochs": 2, "limit_val_batches": 0}, devices=2, strategy="ddp", use_distributed_sampler=False,
        callbacks=[Fails(), *suite(1)] if fails else suite(1),
        logger=TensorBoardLogger(sys.argv[2], name="", version="run"),
    )
    trainer.fit(Shared(sync=False) if fails else EndsEarly(sync=False))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fails", "ends"])
def test_a_rank_that_raises_or_ends_early_hangs_nobody(how: str, tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    paths = (Path(__file__).parent, Path(__file__).parents[1] / "helpers", os.environ.get("PYTHONPATH", ""))
    done = subprocess.run(
        [sys.executable, str(script), how, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, map(str, paths)))},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    if how == "fails":
        assert done.returncode != 0
        assert "on purpose" in done.stderr
