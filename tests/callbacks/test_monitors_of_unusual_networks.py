"""Monitors of networks and trainings that change, share, freeze or skip: what they show is what the training does."""

import random
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from monitored import QUIET, Written
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from normzoo.callbacks import (
    ActivationPercentiles,
    CovariateShift,
    FiniteLoss,
    GradientFlow,
    InternalCovariateShift,
    LossLandscape,
    PredictionsCSV,
    RunningStatistics,
)
from normzoo.errors import InputError
from normzoo.monitoring import Every
from normzoo.norms import BatchNorm, NoNorm

pytestmark = pytest.mark.filterwarnings("ignore:The Trainer has no logger")


class Task(pl.LightningModule):
    """A network on fixed data of 6 features and 3 classes."""

    def __init__(self, net: nn.Module, batch_size: int = 8) -> None:
        super().__init__()
        self.net, self.batch_size = net, batch_size
        x = torch.randn(48, 6, generator=torch.Generator().manual_seed(1))
        self.set = TensorDataset(x, (x.sum(1) > 0).long() + (x[:, 0] > 1).long())

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.net(batch[0])

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.net(batch[0]).argmax(1)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def loader(self) -> Any:
        return DataLoader(self.set, batch_size=self.batch_size)

    train_dataloader = test_dataloader = predict_dataloader = loader


def run(task: pl.LightningModule, *callbacks: pl.Callback, steps: int = 6, **settings: Any) -> pl.Trainer:
    trainer = pl.Trainer(
        callbacks=list(callbacks), **{**QUIET, "logger": False, "max_steps": steps, "limit_val_batches": 0, **settings}
    )
    trainer.fit(task)
    return trainer


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


# Copies of the module


class Annealed(Task):
    """The loss has factors that change in every step, kept in attributes of several kinds."""

    def __init__(self) -> None:
        super().__init__(mlp())
        self.plain, self.tensor = 1.0, torch.ones(())
        self.table: dict[str, Any] = {"list": [1.0], "tensor": torch.ones(())}

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.plain, self.tensor = self.plain + 1, self.tensor + 1
        self.table["list"][0] += 1
        self.table["tensor"] += 1

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        factor = self.plain * self.tensor * self.table["list"][0] * self.table["tensor"]
        self.newest = factor * super().training_step(batch, batch_idx)
        return self.newest


class Losses(pl.Callback):
    def __init__(self) -> None:
        self.of_steps: list[float] = []

    def on_before_zero_grad(self, trainer: pl.Trainer, module: Any, optimizer: Any) -> None:
        self.of_steps.append(module.newest.item())


def test_a_copy_has_the_present_attributes() -> None:
    losses, shown = Losses(), []

    class Kept(LossLandscape):
        def compute(self, number: int, sample: Any) -> Any:
            shown.append(sample["loss"])
            return super().compute(number, sample)

    run(Annealed(), losses, Kept(1, steps=(0.1,)), steps=3)
    assert shown == pytest.approx(losses.of_steps, rel=1e-6)
    assert losses.of_steps[2] > 20 * losses.of_steps[0]


def test_the_probe_batch_always_meets_the_same_random_numbers() -> None:
    drawn = []

    class Draws(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if len(batch[0]) == 5:  # the probe batch
                drawn.append((random.random(), np.random.rand(), torch.rand(()).item()))  # noqa: NPY002 - the global generator is meant
            return super().training_step(batch, batch_idx)

    probe = [torch.randn(5, 6), torch.zeros(5).long()]
    run(Draws(mlp()), ActivationPercentiles(1, batch=probe))
    assert len(drawn) == 6
    assert len(set(drawn)) == 1


# Which weights learn


class Unfreezes(pl.Callback):
    """The first layer learns from step 2 on."""

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, *unused: Any) -> None:
        module.net[0].requires_grad_(trainer.global_step >= 2)


def test_a_layer_that_is_unfrozen_is_shown_from_then_on() -> None:
    flow, shift = GradientFlow(1), InternalCovariateShift(1)
    net = mlp()
    net[0].requires_grad_(False)
    run(Task(net), Unfreezes(), flow, shift, steps=2)
    assert list(flow.latest["update_ratio"]) == list(shift.latest["ics_l2"]) == ["net.2", "net.4"]
    run(Task(net), Unfreezes(), flow, shift, steps=4)
    assert list(flow.latest["update_ratio"]) == list(shift.latest["ics_l2"]) == ["net.0", "net.2", "net.4"]
    assert flow.latest["update_ratio"]["net.0"] > 0


class Attention(nn.Module):
    """Attention over the 6 features, and weights that no layer calls."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.attention = nn.Linear(1, 4), nn.MultiheadAttention(4, 2, batch_first=True)
        self.scales, self.last = nn.ParameterList([torch.ones(4)]), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x.unsqueeze(-1))
        return self.last(self.attention(y, y, y)[0].mean(1) * self.scales[0])


def test_all_weights_of_an_attention_layer_count_and_all_weights_below_move() -> None:
    torch.manual_seed(0)
    task, flow, shift = Task(Attention()), GradientFlow(1), InternalCovariateShift(1)
    gradients: dict[str, Tensor] = {}

    class Keeps(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
            self.before, self.batch = {n: p.detach().clone() for n, p in module.named_parameters()}, batch

        def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *unused: Any) -> None:
            after = {n: p.detach().clone() for n, p in module.named_parameters()}
            mixed = {n: self.before[n] if n.startswith("net.last") else after[n] for n in after}
            for when, weights in (("before", self.before), ("mixed", mixed)):
                leaves = {n: p.clone().requires_grad_() for n, p in weights.items()}
                net = {n.removeprefix("net."): p for n, p in leaves.items()}
                loss = F.cross_entropy(torch.func.functional_call(module.net, net, (self.batch[0],)), self.batch[1])
                loss.backward()
                gradients[when] = torch.cat([leaves[f"net.last.{n}"].grad.flatten() for n in ("weight", "bias")])
                if when == "before":
                    own = [p.grad for n, p in leaves.items() if n.startswith("net.attention")]
                    gradients["attention"] = torch.cat([g.flatten() for g in own if g is not None])

    run(task, Keeps(), flow, shift, steps=1)
    assert flow.latest["grad_norm"]["net.attention"] == pytest.approx(gradients["attention"].norm().item(), rel=1e-5)
    distance = (gradients["before"] - gradients["mixed"]).norm().item()
    assert shift.latest["ics_l2"]["net.last"] == pytest.approx(distance, rel=1e-4)


class Recomputed(nn.Sequential):
    """Computes the activations again in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=False)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, BatchNorm, NoNorm])
def test_activations_that_are_computed_again_belong_to_the_weights_that_were_tried(norm: Any) -> None:
    """Checkpointing changes no number: the copy still has the other weights when the backward pass needs them."""
    shown = []
    for kind in (nn.Sequential, Recomputed):
        torch.manual_seed(0)
        net = kind(nn.Linear(6, 8), norm(8), nn.Sigmoid(), nn.Linear(8, 3))
        monitors = [InternalCovariateShift(1), LossLandscape(1), GradientFlow(1)]
        run(Task(net), *monitors, steps=3)
        shown.append([monitor.latest for monitor in monitors])
    assert shown[0] == shown[1]


def test_a_gradient_of_zeros_has_no_share_and_no_angle() -> None:
    net, shift = mlp(), InternalCovariateShift(1)
    nn.init.constant_(net[0].bias, -100.0)  # its units are dead
    run(Task(net), shift, steps=2)
    assert list(shift.latest["ics_l2"]) == ["net.0", "net.2", "net.4"]
    assert list(shift.latest["ics_relative"]) == list(shift.latest["ics_cosine"]) == ["net.2", "net.4"]


class Tied(nn.Module):
    """An embedding whose weight is that of the last layer, too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.out = nn.Embedding(6, 8), BatchNorm(8), nn.Linear(8, 6, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.embed(x.argmax(1))))


def test_layers_that_share_a_weight_are_all_shown() -> None:
    shift, drift = InternalCovariateShift(1), CovariateShift(1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "CovariateShift")
        run(Task(Tied()), shift, drift, steps=2)
    assert list(shift.latest["ics_l2"]) == ["net.embed", "net.out"]
    assert shift.latest["ics_l2"]["net.embed"] == 0 < shift.latest["ics_l2"]["net.out"]
    assert list(drift.latest["mean"]) == ["net.norm", "net.out"]  # the embedding takes indices


# Which layers run


class Shared(nn.Module):
    """One ReLU between all layers, which has more units in its third pass."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.layers = nn.ModuleList([nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 12)])
        self.last = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = self.relu(layer(x) + 100 * (i == 1))
        return self.last(x)


def test_percentiles_are_over_both_passes_of_a_shared_layer() -> None:
    percentiles = ActivationPercentiles(1)
    run(Task(Shared()), percentiles, steps=1)
    assert percentiles.latest["input_p15"]["net.relu"] < 10
    assert percentiles.latest["input_p85"]["net.relu"] > 90
    assert 0.2 < percentiles.latest["saturated"]["net.relu"] < 0.3


class Late(nn.Module):
    """The second norm runs from the third step on; a third one never."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.never = nn.BatchNorm1d(6), nn.BatchNorm1d(6), nn.BatchNorm1d(6)
        self.last, self.calls = nn.Linear(6, 3), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = self.first(x)
        return self.last(self.second(x) if self.calls > 2 else x)


@pytest.mark.filterwarnings("ignore:CovariateShift. the training step does not run")
def test_a_layer_that_runs_later_drifts_from_its_own_first_sample() -> None:
    shift = CovariateShift(1, layers=["net.first", "net.second"])
    run(Task(Late()), shift)
    assert list(shift.latest["drift_w2"]) == ["net.first", "net.second"]
    assert shift.latest["drift_w2"]["net.second"] > 0


@pytest.mark.parametrize("monitor", [CovariateShift, RunningStatistics])
def test_layers_of_which_none_ever_runs_are_named(monitor: Any) -> None:
    with pytest.warns(UserWarning, match=r"does not run net\.never"):
        run(Task(Late()), monitor(1, "net.never"), steps=2)


def test_a_step_that_skips_its_batch_gives_no_warning() -> None:
    class Skips(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx == 0 else super().training_step(batch, batch_idx)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*LeafSpec|The Trainer has no logger|.*training_step` returned `None")
        warnings.filterwarnings("ignore", "does not have many workers|The number of training batches")
        run(Task(mlp()), CovariateShift(1), steps=2)


# Values


def test_a_constant_channel_leaves_the_divergence_of_the_others() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.calls = nn.BatchNorm1d(6), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            x = torch.cat([x[:, :5], x[:, 5:] * (self.calls == 1)], 1)  # a unit that dies
            return self.norm(x)[:, :3]

    shift, statistics = CovariateShift(1), RunningStatistics(1)
    run(Task(Constant()), shift, statistics, steps=3)
    for value in (shift.latest["drift_kl"]["net.norm"], statistics.latest["running_kl"]["net.norm"]):
        assert 0 < value < 100


@pytest.mark.parametrize(
    "activation,saturated",
    [
        (nn.Hardtanh(-3, 3), 0.25),
        (nn.ReLU6(), 0.75),
        (nn.Softplus(beta=10), 0.5),
        (type("Own", (nn.Sigmoid,), {})(), 0.25),
    ],
    ids=repr,
)
def test_where_an_activation_is_flat_depends_on_its_arguments(activation: nn.Module, saturated: float) -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.activation, self.last = activation, nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            inputs = torch.tensor([2.0, -2.0, -0.5, 7.0]).expand(len(x), 4)
            return self.last(self.activation(inputs))

    percentiles = ActivationPercentiles(1)
    run(Task(Fixed()), percentiles, steps=1)
    assert percentiles.latest["saturated"]["net.activation"] == saturated


@pytest.mark.filterwarnings("ignore:.*does not run net.scale")
def test_an_activation_of_a_single_number_is_left_out() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.log_scale, self.scale, self.net = nn.Parameter(torch.zeros(())), nn.Softplus(), mlp()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) * self.scale(self.log_scale)

    percentiles = ActivationPercentiles(1)
    run(Task(Scaled()), percentiles, CovariateShift(1, "*"), GradientFlow(1), steps=2)
    assert list(percentiles.latest["input_p50"]) == ["net.net.1", "net.net.3"]


# Optimizers


class Two(Task):
    """Two optimizers; the first one's loss may be NaN."""

    def __init__(self, bad: bool = False) -> None:
        super().__init__(mlp())
        self.automatic_optimization, self.bad = False, bad

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        for i, optimizer in enumerate(self.optimizers()):
            loss = super().training_step(batch, batch_idx) * (torch.nan if self.bad and i == 0 else 1)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net[0].parameters(), lr=0.1), torch.optim.SGD(self.net[2:].parameters(), lr=0.1)


def test_bad_batches_in_a_row_stop_a_run_of_two_optimizers(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the last of 3 in a row"), pytest.warns(UserWarning, match="was skipped"):
        run(Two(bad=True), FiniteLoss("skip", most_in_a_row=3, folder=tmp_path), steps=40, max_epochs=9)


def test_a_schedule_meets_steps_that_one_batch_makes_together() -> None:
    sampled: list[int] = []

    class Kept(GradientFlow):
        def start(self, step: Any) -> None:
            sampled.append(step.number)
            super().start(step)

    run(Two(), Kept(Every(4, start=1)), steps=12)  # two steps per batch: 0, 2, 4 ...
    assert sampled == [2, 6, 10]


def test_an_optimizer_that_repeats_the_forward_pass_is_sampled_once() -> None:
    class Repeats(Task):
        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.parameters(), max_iter=self.most)

    def flow(most: int) -> dict[str, float]:
        torch.manual_seed(0)
        task, monitor = Repeats(mlp()), GradientFlow(1)
        task.most = most
        run(task, monitor, steps=1)
        return monitor.latest["flow_norm"]

    assert flow(8) == flow(1)


# Several runs


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_the_test_of_a_checkpoint_is_compared_with_its_training(tmp_path: Path) -> None:
    task = Task(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)))
    trained = run(task, CovariateShift(1))
    trained.save_checkpoint(tmp_path / "it.ckpt", weights_only=False)
    shift = CovariateShift(1)
    tester = pl.Trainer(callbacks=[shift], **{**QUIET, "logger": False})
    tester.test(task, ckpt_path=tmp_path / "it.ckpt", weights_only=True, verbose=False)
    assert shift.latest["test_w2"]["net.1"] == pytest.approx(0, abs=1e-9)  # the same data, at the same weights


def test_a_second_fit_of_a_trainer_keeps_the_reference() -> None:
    shift, task = CovariateShift(1), Task(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)))
    trainer = run(task, shift, steps=4)
    reference = shift.reference["net.1"].mean
    trainer.fit_loop.epoch_loop.max_steps = 8
    trainer.fit(task)
    assert trainer.global_step == 8
    assert torch.equal(shift.reference["net.1"].mean, reference)


def test_two_landscapes_have_tags_of_their_own(tmp_path: Path) -> None:
    landscapes = LossLandscape(2, (0.1,)), LossLandscape(2, (0.4,))
    run(Task(mlp()), *landscapes, steps=3, logger=TensorBoardLogger(tmp_path, name="", version="run"))
    written = Written(tmp_path / "run")
    one, other = (written.tables(f"normalization/LossLandscape{further}") for further in ("", "-2"))
    assert one[0][0, 0] == other[0][0, 0]  # the loss at the weights
    assert one[0][0, 1] != other[0][0, 1]  # the least
    assert {"6_landscape/loss_range", "6_landscape/loss_range-2"} <= set(written.tags["scalars"])


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_a_probe_batch_that_a_checkpoint_cannot_hold_is_named_on_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("normzoo.callbacks.activation_percentiles.SAVED_BYTES", 100)
    run(Task(mlp()), ActivationPercentiles(1), steps=2).save_checkpoint(tmp_path / "it.ckpt", weights_only=False)
    again = pl.Trainer(callbacks=[ActivationPercentiles(1)], **{**QUIET, "logger": False, "max_steps": 4})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`, callbacks used to create")
        again.test(Task(mlp()), ckpt_path=tmp_path / "it.ckpt", weights_only=True)  # needs none
    with pytest.warns(UserWarning, match="does not hold the probe batch"):
        again.fit(Task(mlp()), ckpt_path=tmp_path / "it.ckpt", weights_only=True)


def test_a_second_prediction_replaces_the_first(tmp_path: Path) -> None:
    trainer = pl.Trainer(callbacks=[PredictionsCSV(tmp_path / "it.csv")], **{**QUIET, "logger": False})
    for _ in range(2):
        trainer.predict(Task(mlp()), return_predictions=False)
        assert len((tmp_path / "it.csv").read_text().splitlines()) == 49
