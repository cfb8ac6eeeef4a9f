"""What monitors show: every value beside one computed by hand, in a run of its own."""

import copy
import csv
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from monitored import MONITORS, Written, classifier, fit, suite, written
from tensorboard.plugins.custom_scalar import layout_pb2
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from normzoo import norms
from normzoo.callbacks import (
    ActivationPercentiles,
    CovariateShift,
    Every,
    GradientFlow,
    InternalCovariateShift,
    Logarithmic,
    LossLandscape,
    RunningStatistics,
)
from normzoo.callbacks.activation_percentiles import FLAT, flat_bounds, histograms
from normzoo.data import Digits
from normzoo.errors import InputError
from normzoo.models import MLP, Normal, ResNet
from normzoo.monitoring.layers import norm_name
from normzoo.monitoring.monitor import Monitor
from normzoo.monitoring.overview import BY_LAYER, LAYOUT, OVERVIEWS
from normzoo.monitoring.replica import copied_batch
from normzoo.monitoring.sample import Seen, Step, Table
from normzoo.norms import BatchNorm, LayerNorm, NoNorm

every_monitor = pytest.mark.parametrize("monitor", MONITORS.values(), ids=MONITORS)


# A run of a network that has never heard of this package, recorded by a callback of the test's own.


class Plain(pl.LightningModule):
    """torch's layers and a loss, on fixed data."""

    def __init__(self, net: nn.Module | None = None, lr: float = 0.1, samples: int = 24) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = net or nn.Sequential(
            *(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Sigmoid()),
            *(nn.Linear(8, 7), nn.BatchNorm1d(7), nn.Sigmoid(), nn.Linear(7, 3)),
        )
        self.lr = lr
        g = torch.Generator().manual_seed(1)
        x = torch.randn(samples, 6, generator=g)
        self.set = TensorDataset(x, (x.sum(1) > 0).long() + (x[:, 0] > 1).long())

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        self.net(batch[0])

    def test_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        self.net(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def train_dataloader(self) -> Any:
        return DataLoader(self.set, batch_size=8)

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(2 * self.set.tensors[0] + 1, self.set.tensors[1]), batch_size=10)

    test_dataloader = val_dataloader


class Recorder(pl.Callback):
    """The module before each step, the batch, and the module after."""

    def __init__(self) -> None:
        self.steps: list[tuple[nn.Module, Any, nn.Module]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        self.before = copy.deepcopy(module.net), [t.clone() for t in batch]  # type: ignore[arg-type]

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *unused: Any) -> None:
        self.steps.append((*self.before, copy.deepcopy(module.net)))  # type: ignore[arg-type]


def recorded(monitor: Monitor, folder: Path, task: Plain | None = None, **settings: Any) -> tuple[Recorder, Written]:
    recorder = Recorder()
    fit(task or Plain(), [monitor, recorder], folder, PlainData(), **{"max_steps": 4, **settings})
    return recorder, written(folder)


class PlainData(pl.LightningDataModule):
    """Leaves the loaders to the module."""

    def __init__(self) -> None:
        super().__init__()

    def train_dataloader(self) -> Any:
        return self.trainer.lightning_module.train_dataloader()  # type: ignore[union-attr]

    def val_dataloader(self) -> Any:
        return self.trainer.lightning_module.val_dataloader()  # type: ignore[union-attr]

    def test_dataloader(self) -> Any:
        return self.trainer.lightning_module.test_dataloader()  # type: ignore[union-attr]


def inputs(net: nn.Module, x: Tensor) -> list[Tensor]:
    """What goes into each layer of a Sequential, in float64, in training."""
    net = copy.deepcopy(net).double().train()
    found = []
    x = x.double()
    for layer in net:  # type: ignore[attr-defined]
        found.append(x)
        x = layer(x)
    return [one.detach() for one in [*found, x]]


def test_running_statistics_are_those_before_the_step(tmp_path: Path) -> None:
    recorder, events = recorded(RunningStatistics(1), tmp_path)
    for step, (net, (x, _), _) in enumerate(recorder.steps):
        flowing = inputs(net, x)
        for i in (1, 4):
            layer, batch = net[i], flowing[i]  # type: ignore[index]
            mu, var = batch.mean(0), batch.var(0, correction=1)
            mu_r, var_r = layer.running_mean.double(), layer.running_var.double()
            expected = {
                "running_gap": ((mu - mu_r).abs() / var_r.sqrt()).mean(),
                "running_w2": (((mu - mu_r) ** 2 + (var.sqrt() - var_r.sqrt()) ** 2) / var_r).mean().sqrt(),
                "running_kl": (0.5 * ((var_r / var).log() + (var + (mu - mu_r) ** 2) / var_r - 1)).mean(),
                "gamma_mean": layer.weight.mean(),
                "gamma_std": layer.weight.std(correction=0),
                "beta_mean": layer.bias.mean(),
                "beta_std": layer.bias.std(correction=0),
            }
            for metric, value in expected.items():
                seen = events.scalars(f"{metric}/net.{i}")[step]
                assert seen == pytest.approx(value.item(), rel=2e-5, abs=2e-7), metric


def test_channels_are_written_rarely(tmp_path: Path) -> None:
    fit(Plain(), [RunningStatistics(1, detail_every=5)], tmp_path, PlainData(), max_steps=12)
    events = written(tmp_path)
    tables = events.tables("channels/net.1")
    assert list(tables) == [0, 5, 10]
    told = events.described("channels/net.1")
    assert told["layers"] == [str(i) for i in range(8)]
    assert told["metrics"][2:4] == ["running_mean", "running_var"]
    torch.testing.assert_close(tables[0][:, 2:4], torch.tensor([[0.0, 1.0]]).expand(8, 2))


def gaussian(batch: Tensor) -> tuple[Tensor, Tensor]:
    return batch.mean(0), batch.var(0, correction=0)


def w2_over(p: tuple[Tensor, Tensor], q: tuple[Tensor, Tensor]) -> float:
    (m, v), (n, u) = p, q
    return (((m - n) ** 2 + (v.sqrt() - u.sqrt()) ** 2) / u).mean().sqrt().item()


@pytest.mark.parametrize("reference", [0, 2])
def test_covariate_shift_is_from_the_reference_and_the_last_sample(reference: int, tmp_path: Path) -> None:
    recorder, events = recorded(CovariateShift(1, reference_step=reference), tmp_path)
    flowing = [inputs(net, x) for net, (x, _), _ in recorder.steps]
    for i in (1, 4):
        of_steps = [gaussian(one[i]) for one in flowing]
        drift, step = events.scalars(f"drift_w2/net.{i}"), events.scalars(f"step_w2/net.{i}")
        assert (list(drift), list(step)) == ([0, 1, 2, 3][reference:], [1, 2, 3])
        for t in drift:
            assert drift[t] == pytest.approx(w2_over(of_steps[t], of_steps[reference]), rel=1e-4, abs=1e-6)
        for t in step:
            assert step[t] == pytest.approx(w2_over(of_steps[t], of_steps[t - 1]), rel=1e-4)
        (m, v), (n, u) = of_steps[3], of_steps[reference]
        divergence = (0.5 * ((u / v).log() + (v + (m - n) ** 2) / u - 1)).mean().item()
        assert events.scalars(f"drift_kl/net.{i}")[3] == pytest.approx(divergence, rel=1e-4)
        z = torch.linspace(-8, 8, 20_001, dtype=torch.float64)
        density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
        cost = ((m - n) + (v.sqrt() - u.sqrt()) * z.unsqueeze(1)).abs() * density.unsqueeze(1)
        w1 = (torch.trapezoid(cost, z, dim=0) / u.sqrt()).mean().item()
        assert events.scalars(f"drift_w1/net.{i}")[3] == pytest.approx(w1, rel=1e-4)
        out = gaussian(flowing[3][i + 1])
        assert events.scalars(f"in_out_w2/net.{i}")[3] == pytest.approx(w2_over(out, of_steps[3]), rel=1e-4)
    by_layer = np.array([events.scalars(f"drift_w2/net.{i}")[3] for i in (1, 3, 4, 6)])
    growth = np.polyfit(np.arange(4), np.log10(by_layer), 1)[0]
    assert events.scalars("2_shift/log10_over_time_growth_per_layer")[3] == pytest.approx(growth, rel=1e-4)


@pytest.mark.parametrize("clip", [None, 0.05])
def test_gradient_flow_is_that_of_the_step(clip: float | None, tmp_path: Path) -> None:
    recorder, events = recorded(GradientFlow(1), tmp_path, gradient_clip_val=clip)
    for step, (net, (x, y), after) in enumerate(recorder.steps):
        net = copy.deepcopy(net).train()
        h, outputs = x, {}
        for i, layer in enumerate(net):  # type: ignore[arg-type]
            h = outputs[i] = layer(h)
            h.retain_grad()
        F.cross_entropy(h, y).backward()
        total = torch.stack([p.grad.norm() for p in net.parameters()]).norm().item()  # type: ignore[union-attr]
        for i in (0, 3, 6):
            own = list(net[i].parameters())  # type: ignore[index]
            g = torch.cat([p.grad.flatten() for p in own]).norm().item()  # type: ignore[union-attr]
            w = torch.cat([p.detach().flatten() for p in own])
            moved = torch.cat([p.detach().flatten() for p in after[i].parameters()]) - w  # type: ignore[index]
            expected = {
                "flow_norm": outputs[i].grad.norm().item(),  # type: ignore[union-attr]
                "grad_norm": g,
                "grad_ratio": g / w.norm().item(),
                "update_ratio": (moved.norm() / w.norm()).item(),
            }
            if clip:
                expected["grad_norm_clipped"] = g * min(1, clip / total)
                assert g * 0.99 > expected["grad_norm_clipped"]
            for metric, value in expected.items():
                assert events.scalars(f"{metric}/net.{i}")[step] == pytest.approx(value, rel=1e-4), metric
        flow = [outputs[i].grad.norm().log().item() for i in (0, 3, 6)]  # type: ignore[union-attr]
        assert events.scalars("1_gradient/log10_growth_per_layer")[step] == pytest.approx(
            (flow[0] - flow[2]) / 2 / math.log(10), rel=1e-4
        )
    assert bool(events.scalars("grad_norm_clipped/net.0")) is bool(clip)


def test_percentiles_are_those_of_a_batch_that_stays(tmp_path: Path) -> None:
    monitor = ActivationPercentiles(1, units=(0, 3), q=(10, 50, 90))
    recorder, events = recorded(monitor, tmp_path)
    _, (x, _), _ = recorder.steps[0]
    for step, (net, _, _) in enumerate(recorder.steps):
        flowing = inputs(net, x)
        for i in (2, 5):
            q = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
            whole = torch.quantile(flowing[i], q)
            units = {u: torch.quantile(flowing[i][:, u], q) for u in (0, 3)}
            for j, name in enumerate(("p10", "p50", "p90")):
                assert events.scalars(f"input_{name}/net.{i}")[step] == pytest.approx(
                    whole[j].item(), rel=1e-4, abs=1e-6
                )
                for u, band in units.items():
                    seen = events.scalars(f"unit_{name}/net.{i}/{u}")[step]
                    assert seen == pytest.approx(band[j].item(), rel=1e-4, abs=1e-6)
            flat = (flowing[i].abs() >= 4).double()
            assert events.scalars(f"saturated/net.{i}")[step] == pytest.approx(flat.mean().item())
            assert events.scalars(f"dead/net.{i}")[step] == pytest.approx((flat.mean(0) == 1).double().mean().item())
    assert events.scalars("effective_rank/net.2")


@every_monitor
def test_layers_that_work_in_place_show_the_same(monitor: type[Monitor], tmp_path: Path) -> None:
    """What is noted of a tensor is noted before the next layer writes over it."""

    def shown(inplace: bool) -> Written:
        torch.manual_seed(0)
        net = nn.Sequential(
            *(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(inplace), nn.Linear(8, 7), nn.ELU(inplace=inplace)),
            nn.Linear(7, 3),
        )
        given = {"steps": (0.1,)} if monitor is LossLandscape else {}
        return recorded(monitor(1, **given), tmp_path / str(inplace), Plain(net))[1]

    ours, theirs = shown(False), shown(True)
    assert ours.tags == theirs.tags
    assert ours.tags["scalars"]
    for tag in ours.tags["scalars"]:
        assert theirs.scalars(tag) == pytest.approx(ours.scalars(tag), rel=1e-5, abs=1e-7, nan_ok=True), tag


def test_two_monitors_read_the_same_layer_in_different_ways(tmp_path: Path) -> None:
    """A monitor of one's own: read, merge over ranks, compute, write."""

    def largest(module: nn.Module, x: Tensor) -> Tensor:
        return x.abs().max()

    class Largest(Monitor):
        question = "Largest"
        metrics: Mapping[str, str] = {"largest": "largest absolute value of the input"}

        def readings(self) -> Any:
            return {("input", largest): self.modules}

        def read(self, step: Step, seen: Seen) -> Any:
            return {name: value.item() for name, value in seen["input", largest]}

        def merge(self, parts: Sequence[Any]) -> Any:
            return {name: max(part[name] for part in parts) for name in parts[0]}

        def compute(self, number: int, sample: Any) -> Table:
            return Table(list(sample), {"largest": sample})

    net = nn.Sequential(nn.Linear(6, 8), BatchNorm(8), nn.Linear(8, 3))
    recorder = Recorder()
    monitors = [CovariateShift(1), Largest(1, "net.1", 0), recorder]
    fit(Plain(net), monitors, tmp_path, PlainData(), max_steps=2)
    events = written(tmp_path)
    expected = {t: net[0](x).abs().max().item() for t, (net, (x, _), _) in enumerate(recorder.steps)}  # type: ignore[index]
    assert events.scalars("largest/net.1") == pytest.approx(expected)
    assert list(events.scalars("drift_w2/net.1")) == [0, 1]
    assert events.described("normalization/Largest")["units"] == ["largest absolute value of the input"]


def test_a_probe_batch_of_ones_own(tmp_path: Path) -> None:
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(5))
    monitor = ActivationPercentiles(2, batch=(x, torch.zeros(50, dtype=torch.long)))
    recorder, events = recorded(monitor, tmp_path)
    for step in (0, 2):
        band = torch.quantile(inputs(recorder.steps[step][0], x)[5], 0.5).item()
        assert events.scalars("input_p50/net.5")[step] == pytest.approx(band, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("kind", [*FLAT, nn.Hardtanh, nn.ReLU6, nn.Softplus], ids=lambda kind: kind.__name__)
def test_where_an_activation_is_called_flat_its_slope_is_small(kind: type[nn.Module]) -> None:
    bounds = flat_bounds(kind())
    assert bounds is not None
    low, high = bounds
    x = torch.linspace(-12, 12, 4801, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(kind()(x).sum(), x)
    flat = (x < low) | (x > high)
    assert slope[flat].abs().max() <= 0.11 * slope.abs().max()
    assert flat.any()


def test_internal_covariate_shift_is_its_definition(tmp_path: Path) -> None:
    recorder, events = recorded(InternalCovariateShift(1), tmp_path)
    layers = [0, 3, 6]
    for step in range(len(recorder.steps)):

        def gradient(updated: int, of: int, step: int = step) -> Tensor:
            net, (x, y), after = recorder.steps[step]
            layers = [copy.deepcopy((after if i < updated else net)[i]) for i in range(7)]  # type: ignore[index]
            mixed = nn.Sequential(*layers).double().train()
            loss = F.cross_entropy(mixed(x.double()), y)
            return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(mixed[of].parameters()))])

        for i in layers:
            g, moved = gradient(0, i), gradient(i, i)
            seen = {m: events.scalars(f"ics_{m}/net.{i}")[step] for m in ("l2", "relative", "cosine")}
            if i == 0:
                assert seen == {"l2": 0, "relative": 0, "cosine": 1}
            else:
                assert seen["l2"] == pytest.approx((g - moved).norm().item(), rel=1e-3)
                assert seen["relative"] == pytest.approx(((g - moved).norm() / g.norm()).item(), rel=1e-3)
                assert seen["cosine"] == pytest.approx(torch.cosine_similarity(g, moved, dim=0).item(), rel=1e-5)
                assert seen["l2"] > 0


def test_a_layer_that_learns_no_more_has_no_shift(tmp_path: Path) -> None:
    class Freezes(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
            module.net[0].requires_grad_(trainer.global_step < 2)

    fit(Plain(), [Freezes(), InternalCovariateShift(1, "net.*")], tmp_path, PlainData(), max_steps=4)
    events = written(tmp_path)
    assert list(events.scalars("ics_l2/net.0")) == [0, 1]
    assert list(events.scalars("ics_l2/net.3")) == [0, 1, 2, 3]


def test_the_landscape_is_that_along_the_gradient(tmp_path: Path) -> None:
    etas = (0.1, 0.5, 2.0)
    recorder, events = recorded(LossLandscape(2, steps=etas), tmp_path)
    for step in (0, 2):
        net, (x, y), _ = recorder.steps[step]
        net = copy.deepcopy(net).double().train()
        start = [p.detach().clone() for p in net.parameters()]

        def look(net: nn.Module = net, x: Tensor = x, y: Tensor = y) -> tuple[Tensor, Tensor]:
            loss = F.cross_entropy(net(x.double()), y)
            found = torch.autograd.grad(loss, list(net.parameters()))
            return loss.detach(), torch.cat([g.flatten() for g in found])

        loss, g = look()
        losses, changes = [], []
        for eta in etas:
            with torch.no_grad():
                at = 0
                for p, w in zip(net.parameters(), start, strict=True):
                    p.copy_(w - eta * g[at : at + w.numel()].view_as(w))
                    at += w.numel()
            one, moved = look()
            losses.append(one.item())
            changes.append((moved - g).norm().item())
        expected = {
            "loss": loss.item(),
            "loss_min": min(losses),
            "loss_max": max(losses),
            "loss_range": max(losses) - min(losses),
            "gradient_change_min": min(changes),
            "gradient_change_max": max(changes),
            "smoothness": max(c / (eta * g.norm().item()) for c, eta in zip(changes, etas, strict=True)),
        }
        for name, value in expected.items():
            assert events.scalars(f"landscape/{name}")[step] == pytest.approx(value, rel=1e-3), name


def test_the_whole_curve_of_the_landscape_is_written(tmp_path: Path) -> None:
    etas = (0.05, 0.4, 2.0)
    recorder, events = recorded(LossLandscape(2, steps=etas), tmp_path)
    told = events.described("normalization/LossLandscape/curve")
    assert told["layers"] == ["0.05", "0.4", "2"]
    assert told["metrics"] == ["loss", "gradient_change"]
    for step, curve in events.tables("normalization/LossLandscape/curve").items():
        net, (x, y), _ = recorder.steps[step]
        moved = copy.deepcopy(net).double().train()
        gradient = torch.autograd.grad(F.cross_entropy(moved(x.double()), y), list(moved.parameters()))
        for p, g in zip(moved.parameters(), gradient, strict=True):
            p.data -= 0.4 * g
        loss = F.cross_entropy(moved(x.double()), y)
        there = torch.autograd.grad(loss, list(moved.parameters()))
        change = torch.cat([(a - b).flatten() for a, b in zip(gradient, there, strict=True)]).norm()
        assert curve[1].tolist() == pytest.approx([loss.item(), change.item()], rel=1e-4)
        low, high = (events.scalars(f"loss_{which}/landscape")[step] for which in ("min", "max"))
        assert (low, high) == pytest.approx((curve[:, 0].min().item(), curve[:, 0].max().item()))


def test_histograms_are_of_every_sample(tmp_path: Path) -> None:
    recorder, events = recorded(ActivationPercentiles(1), tmp_path)
    told, tables = (f("normalization/ActivationPercentiles/histogram") for f in (events.described, events.tables))
    assert told["layers"] == ["net.2", "net.5"]
    assert told["metrics"] == ["low", "high", *(f"bin_{i}" for i in range(40))]
    assert list(tables) == [0, 1, 2, 3]
    _, (x, _), _ = recorder.steps[0]
    for step, (net, _, _) in enumerate(recorder.steps):
        for row, i in enumerate((2, 5)):
            values, found = inputs(net, x)[i], tables[step][row]
            assert found[:2].tolist() == pytest.approx([values.min().item(), values.max().item()], rel=1e-5)
            counts, _ = np.histogram(values.float().numpy(), 40)
            assert found[2:].sum() == values.numel()
            assert (found[2:] - torch.from_numpy(counts)).abs().sum() <= 2  # a value may lie on an edge


@pytest.mark.parametrize(
    "values,low,high,first,last",
    [([1.0, 2.0, 3.0], 1, 3, 1, 1), ([2.0, 2.0], 2, 2, 2, 0), ([math.nan, 1.0, math.inf, 5.0], 1, 5, 1, 1)],
)
def test_histograms_of_few_values(values: list[float], low: float, high: float, first: float, last: float) -> None:
    [found] = histograms([torch.tensor(values)], 4).tolist()
    middle = values.count(2.0) if low < high else 0
    assert found == [low, high, first, 0, middle, last]


def test_histograms_of_nothing_have_no_values() -> None:
    assert histograms([torch.tensor([math.nan]), torch.zeros(0)], 3).isnan().all()


# The run


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_run_describes_itself_once_and_with_a_new_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    saver = ModelCheckpoint(tmp_path, filename="half")
    settings = {"max_epochs": 2, "max_steps": -1, "enable_checkpointing": True}
    fit(Plain(), [CovariateShift(1), GradientFlow(2), saver], tmp_path, PlainData(), **settings)
    resumed = {"ckpt_path": str(tmp_path / "half.ckpt"), "weights_only": True}
    fit(Plain(), [CovariateShift(1), GradientFlow(2)], tmp_path, PlainData(), resumed, max_epochs=4, max_steps=-1)
    events = written(tmp_path)
    first, second = events.events.Tensors("normalization/run")
    assert (first.step, [d.size for d in first.tensor_proto.tensor_shape.dim]) == (0, [0])
    assert second.step == 6
    told = events.described("normalization/run")
    layers = [
        *((0, "Linear", "weighted", 8), (1, "BatchNorm1d", "norm", 8), (2, "Sigmoid", "activation", 8)),
        *((3, "Linear", "weighted", 7), (4, "BatchNorm1d", "norm", 7), (5, "Sigmoid", "activation", 7)),
        (6, "Linear", "weighted", 3),
    ]
    network = [{"name": f"net.{i}", "type": t, "role": role, "shape": [8, size]} for i, t, role, size in layers]
    assert told == {"version": 2, "norm": "BatchNorm1d", "seed": 7, "steps": 6, "network": network}


def test_a_run_without_end_or_seed_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)

    class Stops(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *unused: Any) -> None:
            trainer.should_stop = True

    fit(Plain(nn.Linear(6, 3)), [GradientFlow(1), Stops()], tmp_path, PlainData(), max_steps=-1, max_epochs=-1)
    told = written(tmp_path).described("normalization/run")
    assert (told["norm"], told["seed"], told["steps"]) == ("NoNorm", None, None)


@pytest.mark.parametrize(
    "net,name",
    [
        (nn.Sequential(nn.Linear(3, 3), NoNorm(3)), "NoNorm"),
        (nn.Sequential(nn.Linear(3, 3), BatchNorm(3), nn.LayerNorm(3), BatchNorm(3)), "BatchNorm+LayerNorm"),
        (nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))), "WeightNorm"),
        (MLP((1, 8, 8), 10, hidden=(6,), norm=norms.CenteredWeightNorm), "CenteredWeightNorm"),
        (ResNet((1, 8, 8), 10, depth=8, width=4, norm=norms.WeightStandardization), "GroupNorm+WeightStandardization"),
    ],
)
def test_the_norm_of_a_network_has_a_name(net: nn.Module, name: str) -> None:
    assert norm_name(net) == name


# Copies


def strided() -> Tensor:
    return torch.arange(8.0).view(2, 4).T


def with_attribute() -> Tensor:
    made = torch.ones(2)
    made.lengths = [3]
    return made


X = torch.arange(6.0)
BATCHES: dict[str, Any] = {
    "a pair": (torch.ones(2, 3), torch.zeros(2)),
    "a list": [torch.ones(2, 3), torch.zeros(2)],
    "the same twice": (X, X),
    "a view of the other": (X, X[2:]),
    "other strides": (strided(), torch.ones(2)),
    "an attribute": (with_attribute(), torch.zeros(2)),
    "with a gradient": (torch.ones(2, requires_grad=True), torch.zeros(2)),
    "a dictionary": {"x": torch.ones(2), "names": ["a", "b"]},
    "nothing": (),
}


@pytest.mark.parametrize("case", BATCHES)
def test_a_copy_of_a_batch_is_as_a_deep_one(case: str) -> None:
    def described(batch: Any) -> Any:
        parts = list(batch.values() if isinstance(batch, dict) else batch)
        tensors = [one for one in parts if isinstance(one, Tensor)]
        memory = [t.untyped_storage().data_ptr() for t in tensors]
        alike = [[a == b for a in memory] for b in memory]
        return type(batch), alike, [(t.tolist(), t.stride(), t.requires_grad, vars(t)) for t in tensors]

    batch = BATCHES[case]
    found = copied_batch(batch)
    assert described(found) == described(copy.deepcopy(batch)) == described(batch)
    if case != "nothing":
        parts = zip(*((one.values() if isinstance(one, dict) else one) for one in (batch, found)), strict=True)
        assert all(a is not b for a, b in parts)


# Known values


class Recurrent(nn.Module):
    """Two recurrent layers, whose weights torch keeps in a list besides."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LSTM(1, 5, batch_first=True), nn.GRU(5, 4, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x[..., None])[0])[0][:, -1])  # type: ignore[no-any-return, misc]


def test_recurrent_layers_are_looked_at_with_the_weights_that_are_tried(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shift = InternalCovariateShift(1, layers=("net.first", "net.second", "net.head"))
    landscape = LossLandscape(1, steps=(1.0,))
    recorder = Recorder()
    fit(Plain(Recurrent(), lr=1.0), [shift, landscape, recorder], tmp_path, PlainData(), max_steps=1)
    events, (net, (x, y), after) = written(tmp_path), recorder.steps[0]

    def gradients(model: nn.Module) -> dict[str, Tensor]:
        loss = F.cross_entropy(model(x), y)
        found = torch.autograd.grad(loss, list(model.parameters()))
        return dict(zip((name for name, _ in model.named_parameters()), found, strict=True))

    # The whole gradient as one step: where the landscape is tried, the plain SGD of rate 1 has gone.
    assert events.scalars("landscape/loss_max")[0] == pytest.approx(F.cross_entropy(after(x), y).item(), rel=1e-5)
    before, moved = gradients(net), copy.deepcopy(net)
    with torch.no_grad():
        for p, q in zip(moved.first.parameters(), after.first.parameters(), strict=True):  # type: ignore[union-attr, operator]
            p.copy_(q)
    own = [name for name in before if name.startswith("second")]
    there = gradients(moved)
    expected = sum((before[n] - there[n]).square().sum() for n in own).sqrt()  # type: ignore[union-attr]
    assert events.scalars("ics_l2/net.second")[0] == pytest.approx(expected.item(), rel=1e-4)
    assert events.scalars("ics_l2/net.first")[0] == 0


@pytest.mark.parametrize("norm,low,high", [(BatchNorm, 1.17, 1.24), (LayerNorm, 0.97, 1.03), (NoNorm, 0.97, 1.03)])
def test_gradients_grow_as_theory_says(norm: Any, low: float, high: float, tmp_path: Path) -> None:
    """Batch norm with ReLU at initialization: sqrt(pi / (pi - 1)) = 1.21 per layer (Yang et al. 2019)."""
    torch.manual_seed(0)
    net = MLP((1, 8, 8), 10, hidden=[256] * 20, norm=norm)
    monitor = GradientFlow(1, layers="net.hidden.*.layer")
    fit(classifier(net), [monitor], tmp_path, Digits(batch_size=256), max_steps=1)
    assert low <= 10 ** written(tmp_path).scalars("1_gradient/log10_growth_per_layer")[0] <= high


@pytest.mark.slow
@pytest.mark.parametrize("norm,widens", [(NoNorm, (15, math.inf)), (BatchNorm, (0, 6))])
def test_the_band_of_a_sigmoid_network_widens_without_batch_norm(
    norm: Any, widens: tuple[float, float], tmp_path: Path
) -> None:
    """Section 4.1 of the paper: 3 x 100 sigmoids, small Gaussian weights, batches of 60, a rate of 0.1."""
    torch.manual_seed(0)
    net = MLP((1, 8, 8), 10, hidden=[100] * 3, norm=norm, activation=nn.Sigmoid, init=Normal(0.1))
    task = classifier(net)
    task.optimizer_factory = lambda groups: torch.optim.SGD(groups, lr=0.1)
    monitor = ActivationPercentiles(2999, units=range(10))
    fit(task, [monitor], tmp_path, Digits(batch_size=60), max_steps=3000, max_epochs=-1)
    events = written(tmp_path)

    def width(step: int) -> float:
        """Of the last layer's first units, on average; of all units pooled it would hold their distances too."""
        tags = [f"net.hidden.2.activation/{unit}" for unit in range(10)]
        return sum(events.scalars(f"unit_p85/{tag}")[step] - events.scalars(f"unit_p15/{tag}")[step] for tag in tags)

    assert widens[0] <= width(2999) / width(0) <= widens[1]


# TensorBoard


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """The whole suite over two epochs, with validation."""
    folder = tmp_path_factory.mktemp("whole")
    fit(classifier(), suite(), folder, max_steps=-1, max_epochs=1, limit_train_batches=22, limit_val_batches=2)
    return written(folder)


def test_scalars_are_few_and_tell_the_story(whole: Written) -> None:
    seen = {tag for tag in whole.tags["scalars"] if tag[0].isdigit()}
    overall = {one.tag for one in OVERVIEWS}
    by_layer = {f"{group}/{layer}" for group, _, _ in BY_LAYER.values() for layer in layers_of(whole)}
    assert seen <= overall | by_layer
    assert overall - seen == {"2_shift/test", "2_shift/noise_floor_test"}  # it was not tested
    rows = whole.described("normalization/CovariateShift")["layers"]
    drift = [whole.scalars(f"drift_w2/{layer}")[5] for layer in rows[1:]]  # the first layer's input is data
    assert whole.scalars("2_shift/log10_over_time")[5] == pytest.approx(np.log10(np.mean(drift)))
    assert list(whole.scalars("2_shift/log10_over_time")) == [5, 10, 15, 20]  # 0 is the reference


def layers_of(events: Written) -> set[str]:
    tables = [tag for tag in events.tags["tensors"] if tag.startswith("normalization/")]
    return {layer for tag in tables for layer in events.described(tag).get("layers", ())}


@pytest.mark.parametrize("norm", ["BatchNorm", "NoNorm"])
def test_a_deep_network_has_few_scalars(norm: str, tmp_path: Path) -> None:
    net = ResNet((1, 8, 8), 10, depth=20, width=4, norm=getattr(norms, norm))
    fit(classifier(net), suite(1), tmp_path, max_steps=1, limit_train_batches=1)
    assert len(written(tmp_path).tags["scalars"]) <= 65  # of the 80 that are documented, 15 are left for the task's own


def test_tables_name_their_rows_and_columns(whole: Written) -> None:
    for monitor in suite():
        tag = f"normalization/{type(monitor).__name__}"
        told = whole.described(tag)
        assert told["metrics"] == list(monitor.metrics)
        assert told["units"] == list(monitor.metrics.values())
        for table in whole.tables(tag).values():
            assert table.shape == (len(told["layers"]), len(told["metrics"]))


def test_the_custom_scalars_are_the_same_for_every_run(whole: Written) -> None:
    [event] = whole.events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == list(LAYOUT)
    for chart in (chart for category in layout.category for chart in category.chart):
        series = list(chart.margin.series)
        patterns = [*chart.multiline.tag, *(name for s in series for name in (s.value, s.lower, s.upper))]
        assert any(re.search(pattern, tag) for pattern in patterns for tag in whole.tags["scalars"]), chart.title


@pytest.mark.parametrize("steps,every", [(600, 30), (10, 1), (5000, 200), (10**9, 200)])
def test_short_runs_have_twenty_samples(steps: float, every: int) -> None:
    monitor = CovariateShift()
    monitor.set_rates(steps)
    assert repr(monitor.every) == f"Every({every})"
    given = CovariateShift(7)
    given.set_rates(steps)
    assert repr(given.every) == "Every(7)"


def test_a_run_of_unknown_length_is_sampled_from_the_start() -> None:
    """Densely at first, and never more rarely than usual."""
    monitor = CovariateShift()
    monitor.set_rates(math.inf)
    sampled = [step for step in range(1000) if monitor.every(step)]
    assert sampled == [0, 1, 2, 4, 6, 10, 18, 32, 57, 100, 178, 200, 400, 600, 800]
    given = CovariateShift(7)
    given.set_rates(math.inf)
    assert repr(given.every) == "Every(7)"


# When


@pytest.mark.parametrize("steps,start,sampled", [(5, 0, [0, 5, 10]), (4, 3, [3, 7, 11]), (100, 0, [0])])
def test_every_so_many_steps(steps: int, start: int, sampled: list[int], tmp_path: Path) -> None:
    assert [t for t in range(12) if Every(steps, start)(t)] == sampled
    fit(Plain(), [GradientFlow(Every(steps, start))], tmp_path, PlainData())
    assert list(written(tmp_path).scalars("grad_norm/net.0")) == sampled


def test_logarithmic_is_dense_at_first() -> None:
    sampled = [t for t in range(10_001) if Logarithmic(10)(t)]
    assert sampled[:4] == [0, 1, 2, 3]
    counts = [len([t for t in sampled if 10**d <= t < 10 ** (d + 1)]) for d in range(4)]
    assert counts[2] == counts[3] == 10
    assert all(a >= b for a, b in zip(counts[1:], counts[:-1], strict=True)) or counts[0] <= 9


def test_a_schedule_is_any_function_of_the_step(tmp_path: Path) -> None:
    fit(Plain(), [GradientFlow(lambda step: step in (1, 7))], tmp_path, PlainData())
    assert list(written(tmp_path).scalars("grad_norm/net.0")) == [1, 7]


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    task, recorder = Plain(), Recorder()
    monitors = [GradientFlow(1), CovariateShift(1), InternalCovariateShift(1)]
    fit(task, [*monitors, recorder], tmp_path, PlainData(), accumulate_grad_batches=3, max_steps=4)
    events = written(tmp_path)
    assert list(events.scalars("grad_norm/net.0")) == [0, 1, 2, 3]
    assert list(events.scalars("ics_l2/net.6")) == [0, 1, 2, 3]
    assert list(events.scalars("drift_w2/net.1")) == [0, 1, 2, 3]
    net, (x, y), _ = recorder.steps[0]
    h = net[0](x)  # type: ignore[index]
    F.cross_entropy(net[1:](h), y).backward(inputs=h)  # type: ignore[index]
    assert events.scalars("flow_norm/net.0")[0] == pytest.approx(h.grad.norm().item(), rel=1e-4)
    gradients = []
    for net, (x, y), _ in recorder.steps[:3]:
        gradients.append(torch.autograd.grad(F.cross_entropy(net.train()(x), y) / 3, list(net[0].parameters())))  # type: ignore[index]
    summed = torch.cat([torch.stack(list(of_p)).sum(0).flatten() for of_p in zip(*gradients, strict=True)])
    assert events.scalars("grad_norm/net.0")[0] == pytest.approx(summed.norm().item(), rel=1e-4)


# What users may give, and what their networks may do


@every_monitor
def test_a_pattern_that_matches_nothing_is_told_before_training(monitor: type[Monitor], tmp_path: Path) -> None:
    if monitor is LossLandscape:  # looks at the network as a whole
        with pytest.raises(TypeError, match="layers"):
            monitor(layers="net.9*")  # type: ignore[call-arg]
        return
    with pytest.raises(InputError, match=r"layers='net\.9\*' matches none.*there are net"):
        fit(Plain(), [monitor(layers="net.9*")], tmp_path, PlainData())  # type: ignore[call-arg]


REFUSED: dict[str, tuple[Any, str]] = {
    "every 0": (lambda: CovariateShift(0), "every=0.*at least 1"),
    "every True": (lambda: CovariateShift(True), "every=True"),
    "logarithmic 0": (lambda: Logarithmic(0), "per_decade=0"),
    "detail -1": (lambda: RunningStatistics(detail_every=-1), "detail_every=-1.*0 is never"),
    "no layer": (lambda: RunningStatistics(layers=[]), r"layers=\[\].*leave layers out"),
    "falling q": (lambda: ActivationPercentiles(q=(85, 50, 15)), r"q=\(85, 50, 15\).*ascending"),
    "unit -1": (lambda: ActivationPercentiles(units=(-1,)), r"units=\(-1,\)"),
    "few samples": (lambda: ActivationPercentiles(samples=5), "samples=5.*at least 1000"),
    "reference -1": (lambda: CovariateShift(reference_step=-1), "reference_step=-1"),
    "evaluation -1": (lambda: CovariateShift(evaluation_batches=-1), "evaluation_batches=-1"),
    "no eta": (lambda: LossLandscape(steps=()), r"steps=\[\].*above 0"),
    "eta 0": (lambda: LossLandscape(steps=(0.0, 1.0)), r"steps=\[0.0, 1.0\].*above 0"),
}


@pytest.mark.parametrize("given,message", REFUSED.values(), ids=REFUSED)
def test_wrong_arguments_are_refused(given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        given()


def test_a_unit_that_a_layer_has_not_got_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"units=\[0, 7\].*Sigmoid has 7 units"):
        fit(Plain(), [ActivationPercentiles(1, units=(0, 7))], tmp_path, PlainData())


@pytest.mark.parametrize("batch", [torch.zeros(4, 5), (torch.zeros(4, 5), torch.zeros(4).long()), "nonsense", 7])
def test_a_probe_batch_of_another_shape_is_told(batch: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ActivationPercentiles\(batch=.*training_step cannot take it"):
        fit(Plain(), [ActivationPercentiles(1, batch=batch)], tmp_path, PlainData())


class Branching(nn.Module):
    """Runs one layer twice, and another never."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU())
        self.never = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU())
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.twice(self.twice(x)))


def test_layers_that_run_twice_and_never(tmp_path: Path) -> None:
    task, recorder = Plain(Branching()), Recorder()
    with pytest.warns(UserWarning, match="does not run net.never") as caught:
        fit(task, [*suite(1), recorder], tmp_path, PlainData(), max_steps=4)
    told = [str(one.message).split(":")[0] for one in caught if "does not run" in str(one.message)]
    assert sorted(told) == ["ActivationPercentiles", "CovariateShift", "GradientFlow", "RunningStatistics"]
    events = written(tmp_path)
    assert not [tag for tag in events.tags["scalars"] if "never" in tag and not tag.startswith(("gamma", "beta"))]
    net, (x, y), _ = recorder.steps[0]
    twice = net.twice.train()  # type: ignore[union-attr]
    first = twice[0](x)
    second = twice[0](twice[2](twice[1](first)))
    both = torch.cat([first, second]).double()
    mu, var = both.mean(0), both.var(0)
    running_kl = (0.5 * (-var.log() + var + mu**2 - 1)).mean().item()
    assert events.scalars("running_kl/net.twice.1")[0] == pytest.approx(running_kl, rel=1e-4)
    first.retain_grad()
    second.retain_grad()
    F.cross_entropy(net.head(twice[1:](second)), y).backward()  # type: ignore[operator]
    flow = torch.cat([first.grad, second.grad]).norm().item()
    assert events.scalars("flow_norm/net.twice.0")[0] == pytest.approx(flow, rel=1e-4)
    assert "normalization/CovariateShift" in events.tags["tensors"]
    row = events.described("normalization/CovariateShift")["layers"].index("net.never.1")
    assert events.tables("normalization/CovariateShift")[1][row].isnan().all()


def test_what_is_not_finite_is_shown_and_training_goes_on(tmp_path: Path) -> None:
    class Breaks(Plain):
        def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
            if self.global_step == 6:
                batch[0][0] = torch.nan
            return super().training_step(batch, batch_idx)

    trainer = fit(Breaks(), [CovariateShift(2), GradientFlow(2)], tmp_path, PlainData(), max_steps=10)
    assert trainer.global_step == 10
    drift = written(tmp_path).scalars("drift_w2/net.1")
    assert [math.isinf(v) for v in drift.values()] == [False, False, False, True, True]
    assert list(drift) == [0, 2, 4, 6, 8]


@every_monitor
def test_without_a_logger_it_says_so_and_keeps_the_newest_sample(monitor: type[Monitor]) -> None:
    one = monitor(2)  # type: ignore[call-arg]
    with pytest.warns(UserWarning, match="has no logger.*attribute `latest`"):
        fit(Plain(), [one], None, PlainData(), max_steps=3)
    found = {metric for metric, by_layer in one.latest.items() if by_layer}
    assert found
    assert found <= set(one.metrics)


def test_a_logger_that_takes_numbers_gets_the_overview(tmp_path: Path) -> None:
    """What TensorBoard shows in Time Series, at the same steps, and not thousands of curves."""
    logger = CSVLogger(tmp_path, name="", version="rows")
    board = TensorBoardLogger(tmp_path, name="", version="run")
    fit(Plain(), suite(2), None, PlainData(), max_steps=5, logger=[logger, board])
    with (tmp_path / "rows" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    seen = written(tmp_path)
    assert set(rows[0]) - {"step"} == set(seen.tags["scalars"])
    for tag in seen.tags["scalars"]:
        found = {int(row["step"]): float(row[tag]) for row in rows if row[tag]}
        assert found == pytest.approx(seen.scalars(tag)), tag


def test_a_logger_without_tables_is_named(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="CSVLogger receives the overview of the monitors only.*TensorBoardLogger"):
        fit(Plain(), suite(2), None, PlainData(), max_steps=1, logger=CSVLogger(tmp_path))


# Resuming


def test_a_checkpoint_after_a_step_holds_what_was_seen_of_it(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1, filename="{step}")
    settings = {"max_steps": 4, "enable_checkpointing": True}
    fit(Plain(), [saver, CovariateShift(1)], tmp_path, PlainData(), **settings)
    for step in (2, 4):
        states = torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)["callbacks"]
        [seen] = [state for key, state in states.items() if key.startswith("CovariateShift")]
        assert len(seen["batches"]) == step


def test_a_resumed_run_goes_on_with_the_same_references(tmp_path: Path) -> None:
    def monitors() -> list[Monitor]:
        return [CovariateShift(3), ActivationPercentiles(3), RunningStatistics(3), GradientFlow(3)]

    fit(Plain(), monitors(), tmp_path / "whole", PlainData(), max_epochs=4, max_steps=-1)
    half = fit(Plain(), monitors(), tmp_path / "first", PlainData(), max_epochs=2, max_steps=-1)
    half.save_checkpoint(tmp_path / "half.ckpt")
    torch.load(tmp_path / "half.ckpt", weights_only=True)  # tensors and plain data only
    resumed = {"ckpt_path": str(tmp_path / "half.ckpt"), "weights_only": True}
    fit(Plain(), monitors(), tmp_path / "second", PlainData(), resumed, max_epochs=4, max_steps=-1)
    one, two, other = (written(tmp_path / name) for name in ("whole", "first", "second"))
    for tag in ("drift_w2/net.1", "step_w2/net.4", "input_p50/net.5", "running_gap/net.1", "update_ratio/net.0"):
        assert one.scalars(tag) == {**two.scalars(tag), **other.scalars(tag)}, tag
        assert len(other.scalars(tag)) == 2
