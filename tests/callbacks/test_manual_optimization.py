"""Monitors of tasks that call their optimizers themselves: one optimizer, several, in every order."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from monitored import fit, suite, written
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import mse_loss, softplus
from torch.utils.data import DataLoader, TensorDataset

from normzoo.callbacks import ActivationPercentiles, GradientFlow, InternalCovariateShift, LossLandscape
from normzoo.errors import InputError
from normzoo.norms import BatchNorm


def mlp(*sizes: int) -> nn.Sequential:
    hidden = [(nn.Linear(a, b), BatchNorm(b), nn.Tanh()) for a, b in pairwise(sizes[:-1])]
    return nn.Sequential(*(layer for block in hidden for layer in block), nn.Linear(*sizes[-2:]))


class Task(LightningModule):
    """Regression of noise, with an optimizer and a schedule of its own."""

    def __init__(self, *, manual: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(mlp(3, 6, 5), nn.Tanh(), nn.Linear(5, 1))
        self.automatic_optimization = not manual

    def training_step(self, batch: Any) -> Any:
        loss = mse_loss(self.net(batch[0]), batch[1])
        if self.automatic_optimization:
            return loss
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return None

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)

    def train_dataloader(self) -> Any:
        g = torch.Generator().manual_seed(1)
        return DataLoader(TensorDataset(torch.randn(96, 3, generator=g), torch.randn(96, 1, generator=g)), 16)


class Data(LightningDataModule):
    """Leaves the loader to the task."""

    def train_dataloader(self) -> Any:
        return self.trainer.lightning_module.train_dataloader()


def train(task: LightningModule, monitors: Sequence[Callback], folder: Path | None = None, **settings: Any) -> None:
    fit(task, monitors, folder, Data(), **settings)


def test_one_optimizer_by_hand_shows_what_an_automatic_one_shows(tmp_path: Path) -> None:
    """The same training, in the same numbers."""
    train(Task(manual=False), suite(2), tmp_path / "automatic")
    train(Task(manual=True), suite(2), tmp_path / "manual")
    automatic, manual = written(tmp_path / "automatic"), written(tmp_path / "manual")
    assert manual.monitors() == automatic.monitors()
    assert len(manual.monitors()) == 6
    for monitor in manual.monitors():
        ours, theirs = (one.tables(f"normalization/{monitor}") for one in (manual, automatic))
        assert ours.keys() == theirs.keys()
        for step, table in ours.items():
            assert torch.equal(table.nan_to_num(-1), theirs[step].nan_to_num(-1)), (monitor, step)


class GAN(LightningModule):
    """Two networks; each update in one of the ways in which people write it."""

    def __init__(self, way: str = "toggled") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization = False
        self.way = way
        self.generator, self.critic = mlp(3, 6, 2), mlp(2, 7, 1)

    def losses(self, noise: Tensor, real: Tensor) -> Iterator[Tensor]:
        fake = self.generator(noise)
        yield softplus(-self.critic(real)).mean() + softplus(self.critic(fake.detach())).mean()
        yield softplus(-self.critic(fake)).mean()

    def training_step(self, batch: Any, batch_idx: int) -> None:
        generator, critic = self.optimizers()
        if self.way == "together":
            generator.zero_grad()
            critic.zero_grad()
        for optimizer, loss in zip((critic, generator), self.losses(*batch), strict=True):
            if self.way == "toggled":
                self.toggle_optimizer(optimizer)
            if self.way != "together":
                optimizer.zero_grad()
            if self.way == "autograd":
                loss.backward()
            else:
                self.manual_backward(loss)
            optimizer.step()
            if self.way == "toggled":
                self.untoggle_optimizer(optimizer)
        for schedule in self.lr_schedulers():
            schedule.step()

    def configure_optimizers(self) -> Any:
        made = [torch.optim.SGD(net.parameters(), 0.3) for net in (self.generator, self.critic)]
        return made, [torch.optim.lr_scheduler.ExponentialLR(one, 0.9) for one in made]

    def train_dataloader(self) -> Any:
        g = torch.Generator().manual_seed(1)
        return DataLoader(TensorDataset(torch.randn(160, 3, generator=g), torch.randn(160, 2, generator=g) + 1), 16)


class GeneratorFirst(GAN):
    """Gradients are cleared after the update, as in the examples of Lightning, or by the network, as in torch's."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer, net in zip(self.optimizers(), (self.generator, self.critic), strict=True):
            if self.way == "toggle_optimizer":
                self.toggle_optimizer(optimizer)
            with optimizer.toggle_model() if self.way == "toggle_model" else nullcontext():
                if self.way == "net.zero_grad":
                    net.zero_grad()
                loss_of_critic, loss_of_generator = self.losses(*batch)
                self.manual_backward(loss_of_critic if net is self.critic else loss_of_generator)
                optimizer.step()
                if self.way != "net.zero_grad":
                    optimizer.zero_grad()
            if self.way == "toggle_optimizer":
                self.untoggle_optimizer(optimizer)
        for group in optimizer.param_groups:
            group["lr"] *= 0.9


CRITIC_FIRST = [partial(GAN, way) for way in ("toggled", "plain", "together")]
GENERATOR_FIRST = [partial(GeneratorFirst, way) for way in ("toggle_optimizer", "toggle_model", "net.zero_grad")]
ways = pytest.mark.parametrize("make", [*CRITIC_FIRST, *GENERATOR_FIRST], ids=lambda make: make.args[0])


class Kept(Callback):
    """Keeps the weights before and after each step."""

    def __init__(self) -> None:
        self.steps: list[tuple[Any, dict[str, Tensor], dict[str, Tensor]]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.before = {name: p.detach().clone() for name, p in pl_module.named_parameters()}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.steps.append((batch, self.before, {name: p.detach().clone() for name, p in pl_module.named_parameters()}))


class Losses(nn.Module):
    """The losses of a GAN as the result of a module, for `functional_call`."""

    def __init__(self, task: GAN) -> None:
        super().__init__()
        self.task = deepcopy(task)

    def forward(self, *batch: Tensor) -> list[Tensor]:
        return [*self.task.losses(*batch)]


def plain(task: GAN, batch: Any, weights: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum of both losses, and for each parameter the gradient of its own optimizer's."""
    leaves = {f"task.{name}": p.clone().requires_grad_() for name, p in weights.items()}
    losses = functional_call(Losses(task), leaves, tuple(batch))
    found = {}
    for net, loss in zip(("critic", "generator"), losses, strict=True):
        own = {name: p for name, p in leaves.items() if name.startswith(f"task.{net}.")}
        found |= zip(own, torch.autograd.grad(loss, list(own.values()), retain_graph=True), strict=True)
    return sum(losses).detach(), {name.removeprefix("task."): gradient for name, gradient in found.items()}


@pytest.fixture
def untrained() -> GAN:
    return GAN()


@pytest.mark.filterwarnings("ignore:The Trainer has no logger")
@ways
def test_two_optimizers_are_compared_with_plain_formulas(make: Callable[[], GAN], untrained: GAN) -> None:
    task, kept = make(), Kept()
    shift, landscape = InternalCovariateShift(1, layers="*.3"), LossLandscape(1, steps=(0.1, 0.3))
    train(task, [kept, shift, landscape], max_steps=6)
    batch, before, after = kept.steps[-1]
    loss, gradients = plain(untrained, batch, before)

    # The critic's last layer: below it lie its own first layers, and the whole generator.
    layer = ["critic.3.weight", "critic.3.bias"]
    moved = {name: before[name] if name in layer else after[name] for name in before}
    found = gradients, plain(untrained, batch, moved)[1]
    g, other = (torch.cat([one[name].flatten() for name in layer]) for one in found)
    assert shift.latest["ics_relative"]["critic.3"] == pytest.approx(((g - other).norm() / g.norm()).item(), rel=1e-4)

    values = {metric: rows["landscape"] for metric, rows in landscape.latest.items()}
    assert values["loss"] == pytest.approx(loss.item(), rel=1e-5)
    tried = [plain(untrained, batch, {n: p - eta * gradients[n] for n, p in before.items()}) for eta in (0.1, 0.3)]
    assert values["loss_max"] == pytest.approx(max(one.item() for one, _ in tried), rel=1e-5)
    flat = [torch.cat([one[name].flatten() for name in before]) for one in (gradients, *(g for _, g in tried))]
    changes = [(one - flat[0]).norm().item() for one in flat[1:]]
    assert values["gradient_change_max"] == pytest.approx(max(changes), rel=1e-4)


@pytest.mark.filterwarnings("ignore:The Trainer has no logger")
@ways
def test_training_by_hand_is_left_as_it_is(make: Callable[[], GAN]) -> None:
    """Weights, schedules and what is toggled."""
    off, on = make(), make()
    train(off, [])
    train(on, suite(1))
    assert all(map(torch.equal, off.state_dict().values(), on.state_dict().values()))
    assert all(p.requires_grad for p in on.parameters())
    rates = [[one.param_groups[0]["lr"] for one in task.trainer.optimizers] for task in (off, on)]
    assert rates[0] == rates[1]


@pytest.mark.filterwarnings("ignore:The Trainer has no logger")
def test_a_rate_that_an_automatic_step_sets_is_set_once() -> None:
    class Decaying(Task):
        def training_step(self, batch: Any) -> Any:
            for group in self.optimizers().param_groups:
                group["lr"] *= 0.9
            return super().training_step(batch)

    off, on = Decaying(manual=False), Decaying(manual=False)
    train(off, [])
    train(on, suite(1))
    assert all(map(torch.equal, off.state_dict().values(), on.state_dict().values()))


def test_a_step_that_reads_gradients_is_refused_with_a_remedy(tmp_path: Path) -> None:
    """As long as it does not skip parameters without one, as `clip_grad_norm_` does, without a warning."""

    class Reads(Task):
        def training_step(self, batch: Any) -> Any:
            super().training_step(batch)
            nn.utils.clip_grad_norm_(self.parameters(), 1.0)
            self.log("norm", sum(p.grad.norm() for p in self.parameters() if p.grad is not None or not self.skips))

    task = Reads(manual=True)
    task.skips = True
    train(task, suite(1), tmp_path)
    task.skips = False
    with pytest.raises(InputError, match=r"Reads.training_step fails on a copy .* skip those whose .grad is None"):
        train(task, suite(1), tmp_path)


def test_a_loss_that_monitors_do_not_see_is_one_warning(tmp_path: Path) -> None:
    """`loss.backward()` in place of `self.manual_backward(loss)`; the others continue."""
    with pytest.warns(UserWarning, match="passes no loss") as found:
        train(GAN("autograd"), suite(1), tmp_path)
    messages = [str(one.message) for one in found if "GAN" in str(one.message)]
    assert len(messages) == 1, messages
    assert messages[0].startswith("GAN.training_step passes no loss to self.manual_backward")
    shown = written(tmp_path).monitors()
    assert set(shown) == {"RunningStatistics", "CovariateShift", "GradientFlow", "ActivationPercentiles"}


def test_a_task_that_seldom_updates_is_sampled(tmp_path: Path) -> None:
    class Seldom(GAN):
        """Its generator makes every second update; gradients of the critic accumulate over two batches."""

        def training_step(self, batch: Any, batch_idx: int) -> None:
            generator, critic = self.optimizers()
            self.manual_backward(next(self.losses(*batch)))
            if batch_idx % 2:
                critic.step()
                critic.zero_grad()
            if batch_idx % 4 == 3:
                generator.zero_grad()
                self.manual_backward(list(self.losses(*batch))[1])
                generator.step()

    off, on = Seldom(), Seldom()
    train(off, [])
    train(on, [GradientFlow(1), ActivationPercentiles(1), InternalCovariateShift(1), LossLandscape(1)], tmp_path)
    assert all(map(torch.equal, off.state_dict().values(), on.state_dict().values()))
    assert all(values.isfinite().all() for values in written(tmp_path).values().values())
