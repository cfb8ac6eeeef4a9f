"""Covariate shift: evaluation against training at equal weights, over depth, and of sequences, beside plain hooks."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from monitored import QUIET, Written, classifier, fit, hooks, written
from spawned import DDP
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from normzoo import norms
from normzoo.callbacks import ActivationPercentiles, CovariateShift
from normzoo.callbacks.covariate_shift import UNCERTAIN
from normzoo.data import Digits
from normzoo.models import MLP
from normzoo.norms import BatchNorm, LayerNorm, NoNorm

pytestmark = pytest.mark.filterwarnings("ignore:The Trainer has no logger")


class Task(pl.LightningModule):
    """A network on fixed data of 6 features; validation and test are another distribution."""

    def __init__(self, net: nn.Module | None = None, lr: float = 0.1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = net or nn.Sequential(
            *(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Sigmoid(), nn.Dropout(0.2)),
            *(nn.Linear(8, 7), nn.BatchNorm1d(7), nn.Sigmoid(), nn.Linear(7, 3)),
        )
        self.lr = lr
        x = torch.randn(52, 6, generator=torch.Generator().manual_seed(1))
        self.set = TensorDataset(x, (x.sum(1) > 0).long() + (x[:, 0] > 1).long())
        self.new = TensorDataset(2 * x + 1, self.set.tensors[1])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.net(batch[0])

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def train_dataloader(self) -> Any:
        return DataLoader(self.set, batch_size=16)

    def val_dataloader(self) -> Any:
        return DataLoader(self.new, batch_size=20)

    test_dataloader = val_dataloader


class Own(pl.LightningDataModule):
    """Leaves the loaders to the module."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("train_dataloader", "val_dataloader", "test_dataloader"):
            return getattr(self.trainer.lightning_module, name)  # type: ignore[union-attr]
        return super().__getattribute__(name)


LAYERS = ["net.0", "net.1", "net.4", "net.5", "net.7"]


def run(task: pl.LightningModule, *callbacks: pl.Callback, folder: Path | None = None, **settings: Any) -> pl.Trainer:
    given = {"max_epochs": 2, "max_steps": -1, "limit_val_batches": 2, **settings}
    return fit(task, callbacks, folder, Own(), **given)


def rows_of(net: nn.Module, x: Tensor) -> list[Tensor]:
    """The inputs of the layers of a Sequential in evaluation mode, in float64."""
    net, found, x = copy.deepcopy(net).double().eval(), [], x.double()
    with torch.no_grad():
        for layer in net:  # type: ignore[attr-defined]
            found.append(x)
            x = layer(x)
    return found


def expected(net: nn.Module, place: int, trained: Sequence[Tensor], evaluated: Sequence[Tensor]) -> dict[str, float]:
    """Distance, floor, and that of two single batches, by the formulas of the docstring."""
    q, p = ([rows_of(net, x)[place] for x in batches] for batches in (trained, evaluated))
    whole_q, whole_p = torch.cat(q), torch.cat(p)
    mu, sigma = whole_q.mean(0), whole_q.std(0, correction=0)
    w2 = ((whole_p.mean(0) - mu) ** 2 + (whole_p.std(0, correction=0) - sigma) ** 2) / sigma**2
    n = torch.tensor([float(len(one)) for one in q], dtype=torch.float64).unsqueeze(1)
    spread = torch.zeros_like(mu)
    for value in (torch.stack([one.mean(0) for one in q]), torch.stack([one.std(0, correction=0) for one in q])):
        spread += (n * (value - (n * value).sum(0) / n.sum()) ** 2).sum(0) / (len(q) - 1)
    spread /= sigma**2
    known = spread / len(whole_q) <= UNCERTAIN
    return {
        "w2": w2[known].mean().sqrt().item(),
        "w2_floor": (spread[known].mean() * (1 / len(whole_p) + 1 / len(whole_q))).sqrt().item(),
        "drift_w2_floor": (spread[known].mean() * 2 * len(q) / len(whole_q)).sqrt().item(),
    }


def test_evaluation_is_compared_with_batches_of_training_at_its_own_weights(tmp_path: Path) -> None:
    task, monitor = Task(), CovariateShift(1, evaluation_batches=2)
    trainer = run(task, monitor, folder=tmp_path)
    trained = [x for _ in range(2) for x in task.set.tensors[0].split(16)]  # two epochs of 4 batches, the last is small
    evaluated = list(task.new.tensors[0].split(20))[:2]
    by_kind = {"val": copy.deepcopy(task.net)}
    with torch.no_grad():
        for p in task.net.parameters():
            p.mul_(1.1)  # other weights, as those of the best checkpoint
    trainer.test(task, Own(), verbose=False)
    by_kind["test"] = task.net
    events = written(tmp_path)
    for kind, net in by_kind.items():
        for name in LAYERS:
            of_all = evaluated if kind == "val" else list(task.new.tensors[0].split(20))[:2]
            values = expected(net, int(name[4:]), trained, of_all)
            assert values["w2"] > 0.5
            assert events.scalars(f"{kind}_w2/{name}")[8] == pytest.approx(values["w2"], rel=5e-5)
            assert events.scalars(f"{kind}_w2_floor/{name}")[8] == pytest.approx(values["w2_floor"], rel=5e-5)
            assert monitor.latest[f"{kind}_w2"][name] == pytest.approx(values["w2"], rel=5e-5)
    assert monitor.latest["drift_w2_floor"][name] == pytest.approx(values["drift_w2_floor"], rel=5e-5)
    assert hooks(task) == 0


@pytest.mark.parametrize("first", [True, False])
def test_averaged_weights_are_compared_where_they_are_evaluated(first: bool) -> None:
    task, monitor, averaging = Task(), CovariateShift(1), WeightAveraging()
    run(task, *((monitor, averaging) if first else (averaging, monitor)))
    trained = [x for _ in range(2) for x in task.set.tensors[0].split(16)]
    values = expected(task.net, 7, trained, list(task.new.tensors[0].split(20))[:2])  # training ends with the average
    assert monitor.latest["val_w2"]["net.7"] == pytest.approx(values["w2"], rel=5e-5)


def test_another_module_is_compared_at_its_own_weights() -> None:
    task, other, monitor = Task(), Task(), CovariateShift(1)
    trainer = run(task, monitor, limit_val_batches=0)
    trainer.test(other, Own(), verbose=False)
    trained = [x for _ in range(2) for x in task.set.tensors[0].split(16)]
    values = expected(other.net, 5, trained, list(task.new.tensors[0].split(20)))
    assert monitor.latest["test_w2"]["net.5"] == pytest.approx(values["w2"], rel=5e-5)


@pytest.mark.parametrize("epochs,compared", [(4, 4), (30, 11)])
def test_validations_are_compared_ten_times_in_a_run_and_at_its_end(epochs: int, compared: int, tmp_path: Path) -> None:
    run(Task(), CovariateShift(8), folder=tmp_path, max_epochs=epochs)
    steps = list(written(tmp_path).scalars("val_w2/net.0"))
    assert len(steps) == compared
    assert steps[-1] == 4 * epochs


def test_a_resumed_run_compares_with_the_same_batches(tmp_path: Path) -> None:
    def task() -> Task:
        torch.manual_seed(0)
        return Task(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)))

    run(task(), CovariateShift(1), folder=tmp_path / "whole", max_epochs=3)
    half = run(task(), CovariateShift(1), folder=tmp_path / "first", max_epochs=2)
    half.save_checkpoint(tmp_path / "half.ckpt")
    logger = TensorBoardLogger(tmp_path / "second", name="", version="run")
    again = pl.Trainer(callbacks=[CovariateShift(1)], max_epochs=3, limit_val_batches=2, logger=logger, **QUIET)  # type: ignore[arg-type]
    again.fit(task(), Own(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    whole, parts = written(tmp_path / "whole"), [written(tmp_path / name) for name in ("first", "second")]
    for metric in ("val_w2", "val_w2_floor"):
        first, second = (events.scalars(f"{metric}/net.3") for events in parts)
        assert whole.scalars(f"{metric}/net.3") == first | second
        assert len(second) == 1


def test_large_batches_are_not_kept_in_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("normzoo.callbacks.covariate_shift.KEPT_BYTES", 1500)
    monitor = CovariateShift(1)
    run(Task(), monitor)
    assert len(monitor.batches) == 3  # of 16 samples of 32 bytes, the newest of 4
    assert len(monitor.state_dict()["batches"]) == 3
    monkeypatch.setattr("normzoo.callbacks.covariate_shift.SAVED_BYTES", 1500)
    state = monitor.state_dict()
    assert state["batches"] == []
    monitor.load_state_dict(state)
    assert len(monitor.batches) == 3  # a test of a checkpoint, where training was


# Modules of other kinds


class ByHand(Task):
    """Updates its weights in its training step."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


def test_manual_optimization_takes_its_validation_step() -> None:
    task, monitor = ByHand(), CovariateShift(1)
    run(task, monitor)
    trained = [x for _ in range(2) for x in task.set.tensors[0].split(16)]
    values = expected(task.net, 5, trained, list(task.new.tensors[0].split(20))[:2])
    assert monitor.latest["val_w2"]["net.5"] == pytest.approx(values["w2"], rel=5e-5)


class Named(Task):
    """Batches are dictionaries; evaluation has other ones."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step((batch["x"].mul_(1), batch["y"]), batch_idx)

    def train_dataloader(self) -> Any:
        return DataLoader([{"x": x, "y": y} for x, y in self.set], batch_size=16)  # type: ignore[arg-type]


class Fails(Task):
    """Returns detections instead of losses in evaluation mode, as networks of torchvision do."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return sum([{"loss": loss}, [loss]][not self.net.training].values())  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore:CovariateShift runs Fails.training_step on training batches, in evaluation mode")
@pytest.mark.parametrize("kind", [Named, Fails])
def test_steps_of_other_kinds_are_compared(kind: type[Task]) -> None:
    task, monitor = kind(), CovariateShift(1)
    run(task, monitor)
    trained = [x for _ in range(2) for x in task.set.tensors[0].split(16)]
    values = expected(task.net, 5, trained, list(task.new.tensors[0].split(20))[:2])
    assert monitor.latest["val_w2"]["net.5"] == pytest.approx(values["w2"], rel=5e-5)


def test_a_module_that_cannot_be_copied_is_trained_and_not_compared() -> None:
    task, monitor = Task(), CovariateShift(1)
    task.kept = task.net(torch.randn(2, 6))  # type: ignore[assignment] # has a graph
    with pytest.warns(UserWarning, match="compares no evaluation with training: Task cannot be copied"):
        run(task, monitor)
    assert monitor.latest["drift_w2"]
    assert not monitor.latest["val_w2"]


class Uneven(Task):
    """The second of two ranks has one batch more to validate, or none at all; steps of training wait for each other."""

    def __init__(self, few: bool) -> None:
        super().__init__(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), lr=0.0)
        torch.manual_seed(0)
        for p in self.parameters():
            nn.init.normal_(p)
        self.few = few

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.trainer.world_size > 1:
            torch.distributed.barrier()
        return super().training_step(batch, batch_idx)

    def train_dataloader(self) -> Any:
        rank, size = self.trainer.global_rank, self.trainer.world_size
        return DataLoader(TensorDataset(*(t[:48][rank::size] for t in self.set.tensors)), batch_size=16 // size)

    def val_dataloader(self) -> Any:
        batches = list(DataLoader(self.new, batch_size=20))
        if self.trainer.world_size > 1:
            batches = [batches[:1], [] if self.few else batches[1:]][self.trainer.global_rank]

        class Some(IterableDataset[Any]):
            def __iter__(self) -> Iterator[Any]:
                return iter(batches)

        return DataLoader(Some(), batch_size=None)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("few", [False, True])
def test_ranks_compare_together_and_one_may_have_nothing(few: bool, tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="run")
    settings = {**QUIET, "devices": 2, "strategy": DDP(), "max_epochs": 2, "use_distributed_sampler": False}
    trainer = pl.Trainer(callbacks=[CovariateShift(1)], logger=logger, **settings)  # type: ignore[arg-type]
    task = Uneven(few)
    trainer.fit(task)
    parts = [task.set.tensors[0][:48][rank::2].split(8) for rank in (0, 1)]
    new = task.new.tensors[0].split(20)
    values = expected(task.net, 2, [*parts[0], *(() if few else parts[1])], new[:1] if few else new)
    events = written(tmp_path)
    assert list(events.scalars("val_w2/net.2")) == [3, 6]
    for metric in ("w2", "w2_floor"):
        assert events.scalars(f"val_{metric}/net.2")[3] == pytest.approx(values[metric], rel=5e-5)


# Real data


@pytest.mark.parametrize(
    "norm,activation,lr",
    [(NoNorm, nn.Sigmoid, 0.1), (NoNorm, nn.Tanh, 0.01), (BatchNorm, nn.ReLU, 0.1), (LayerNorm, nn.Sigmoid, 0.1)],
)
def test_digits_of_one_distribution_lie_within_the_noise_floor(norm: Any, activation: Any, lr: float) -> None:
    torch.manual_seed(0)
    task = classifier(MLP((1, 8, 8), 10, hidden=[100] * 8, norm=norm, activation=activation), lr=lr)
    monitor, data = CovariateShift(5), Digits(batch_size=60, shuffle_seed=0)
    trainer = fit(task, [monitor], None, data, max_epochs=3, max_steps=-1, limit_val_batches=1.0)
    trainer.test(task, data, verbose=False)
    for kind in ("val", "test"):
        for layer, value in monitor.latest[f"{kind}_w2"].items():
            floor = monitor.latest[f"{kind}_w2_floor"][layer]
            assert value < 2 * floor, (kind, layer)
            assert 0.05 < floor < 0.25, (kind, layer)
        assert len(monitor.latest[f"{kind}_w2"]) == 8 + 8 + 1


class Brighter(Digits):
    """Test images are brighter by half a standard deviation."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        images, labels = super().on_after_batch_transfer(batch, dataloader_idx)
        return images + 0.5 * bool(self.trainer.testing), labels  # type: ignore[union-attr]


def of_layers(net: nn.Module, layers: Sequence[str], x: Tensor, axes: Mapping[str, int]) -> dict[str, Tensor]:
    """Layer -> its inputs (values, features), by hooks of the test's own."""
    found: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def keep(module: nn.Module, args: Any) -> None:
            found[name] = args[0].detach().movedim(axes.get(name, 1), -1).flatten(0, -2).double()

        return keep

    handles = [net.get_submodule(name).register_forward_pre_hook(hook(name)) for name in layers]
    with torch.no_grad():
        net(x)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("norm,activation", [(NoNorm, nn.Tanh), (BatchNorm, nn.ReLU), (LayerNorm, nn.Sigmoid)])
def test_a_real_shift_is_measured_right(norm: Any, activation: Any) -> None:
    """Within 7 % of the distance between all images of training and all of the test, and half the noise floor."""
    task = classifier(MLP((1, 8, 8), 10, hidden=[50] * 4, norm=norm, activation=activation), lr=0.02)
    monitor, data = CovariateShift(5), Brighter(batch_size=60, shuffle_seed=0)
    trainer = fit(task, [monitor], None, data, max_epochs=3, max_steps=-1)
    trainer.test(task, data, verbose=False)
    net, layers = copy.deepcopy(task).double().eval(), list(monitor.latest["test_w2"])
    loaders = data.train_dataloader(), data.test_dataloader()
    trained, tested = (data.normalize(torch.cat([images for images, _ in one])).double() for one in loaders)
    q, p = (of_layers(net, layers, x, {}) for x in (trained, tested + 0.5))
    for name in layers[1:]:  # the input itself has pixels that are hardly ever lit
        mu, sigma = q[name].mean(0), q[name].std(0)
        square = ((p[name].mean(0) - mu) ** 2 + (p[name].std(0) - sigma) ** 2) / sigma**2
        exact = square[sigma > 0].mean().sqrt().item()
        found, floor = monitor.latest["test_w2"][name], monitor.latest["test_w2_floor"][name]
        assert abs(found - exact) < 0.07 * exact + 0.5 * floor, name
        assert found > 2.5 * floor, name


# Over depth, and where the features are


def test_blocks_and_depth_are_of_all_values_together(tmp_path: Path) -> None:
    task, monitor = Task(), CovariateShift(1)
    before = copy.deepcopy(task.net)
    run(task, monitor, folder=tmp_path, max_steps=1)
    events, x = written(tmp_path), task.set.tensors[0][:16].double()
    net, found = before.double().train(), []
    torch.manual_seed(0)
    for layer in net:
        found.append(x.detach())
        x = layer(x) if not isinstance(layer, nn.Dropout) else x
    net[3] = nn.Identity()
    exact = {
        name: (found[int(name[4:])].mean().item(), found[int(name[4:])].std(correction=0).item()) for name in LAYERS
    }

    def distance(p: str, q: str) -> float:
        (m, s), (n, t) = exact[p], exact[q]
        return math.hypot(m - n, s - t) / t

    for name in ("net.0", "net.1"):  # before the dropout
        assert events.scalars(f"mean/{name}")[0] == pytest.approx(exact[name][0], rel=5e-5)
        assert events.scalars(f"std/{name}")[0] == pytest.approx(exact[name][1], rel=5e-5)
        assert events.scalars(f"count/{name}")[0] == 16
        assert events.scalars(f"depth_w2/{name}")[0] == pytest.approx(distance(name, "net.0"), rel=5e-5, abs=1e-9)
    assert list(monitor.latest["block_w2"]) == ["net.0", "net.4"]
    assert list(monitor.latest["in_out_w2"]) == ["net.1", "net.5"]


class Attends(nn.Module):
    """(N, L, C): attention, and a block with GELU, which has a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, activation=nn.GELU(), batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.embed(x)).mean(1))


class Mixes(nn.Module):
    """(N, L, C), with layers along tokens and along channels."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 5))
        self.norm = norms.LayerNorm(3, channel_dim=-1)
        self.channels = nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x + self.tokens(x.transpose(1, 2)).transpose(1, 2))
        return (x + self.channels(x)).mean(1)


class ChannelsLast(nn.Module):
    """(N, H, W, C), as the blocks of ConvNeXt and Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.act = nn.LayerNorm(3), nn.Linear(3, 7), nn.GELU()
        self.conv, self.relu, self.head = nn.Conv2d(7, 4, 1), nn.ReLU(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.up(self.norm(x.unsqueeze(1))))
        return self.head(self.relu(self.conv(x.permute(0, 3, 1, 2))).mean((2, 3)))


class Convolves(nn.Module):
    """(N, C, L)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu, self.head = nn.Conv1d(5, 3, 1), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu(self.norm(self.conv(x))).mean(2))


# Layer -> the axis of its features, of those where it is not 1.
SEQUENCES: dict[type[nn.Module], dict[str, int]] = {
    Attends: dict.fromkeys(
        (
            "embed",
            "block.self_attn",
            "block.norm1",
            "block.linear1",
            "block.activation",
            "block.linear2",
            "block.norm2",
        ),
        -1,
    ),
    Mixes: dict.fromkeys(("norm", *(f"{part}.{i}" for part in ("tokens", "channels") for i in range(3))), -1),
    ChannelsLast: dict.fromkeys(("norm", "up", "act"), -1),
    Convolves: {},
}


class OnSequences(Task):
    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        x = torch.randn(48, 5, 3, generator=torch.Generator().manual_seed(2)) + torch.arange(3.0)
        self.set = self.new = TensorDataset(x, self.set.tensors[1][:48])


@pytest.mark.parametrize("kind", SEQUENCES)
def test_units_are_features_and_not_tokens(kind: type[nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, axes = kind(), SEQUENCES[kind]
    before = copy.deepcopy(net).double()
    leaves = [name for name, m in net.named_modules() if not isinstance(m, nn.Dropout) and is_leaf(name, net)]
    shift, percentiles = CovariateShift(1, layers=[f"net.{name}" for name in leaves]), ActivationPercentiles(1)
    task = OnSequences(net)
    run(task, shift, percentiles, folder=tmp_path, max_steps=4, max_epochs=2, limit_val_batches=0)
    events = written(tmp_path)
    exact = of_layers(before, leaves, task.set.tensors[0][:16].double(), axes)
    later = of_layers(copy.deepcopy(task.net).double(), leaves, task.set.tensors[0][:16].double(), axes)
    for name in leaves:
        assert events.scalars(f"count/net.{name}")[0] == len(exact[name]), name
        mean, std = exact[name].mean().item(), exact[name].std(correction=0).item()
        assert events.scalars(f"mean/net.{name}")[0] == pytest.approx(mean, rel=5e-5, abs=1e-6)
        assert events.scalars(f"std/net.{name}")[0] == pytest.approx(std, rel=5e-5)
        if isinstance(net.get_submodule(name), nn.GELU | nn.ReLU):
            units, band = exact[name], torch.tensor([0.15, 0.5, 0.85], dtype=torch.float64)
            for share, value in zip((15, 50, 85), torch.quantile(units[:, 0], band).tolist(), strict=True):
                seen = events.scalars(f"unit_p{share}/net.{name}/0")[0]
                assert seen == pytest.approx(value, rel=5e-5, abs=1e-6), name
    assert later.keys() == exact.keys()
    assert set(shift.latest["drift_w2"]) == {f"net.{name}" for name in leaves}


def is_leaf(name: str, net: nn.Module) -> bool:
    """Whether a module runs as one, and not through its children."""
    inside = any(isinstance(net.get_submodule(above), nn.MultiheadAttention) for above in parents(name))
    module = net.get_submodule(name)
    return not inside and (isinstance(module, nn.MultiheadAttention) or not list(module.children()))


def parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def test_a_transformer_is_compared_in_evaluation_too(tmp_path: Path) -> None:
    """torch's encoder layers have a fast path in evaluation, which calls no children."""
    torch.manual_seed(0)
    monitor = CovariateShift(1)
    run(OnSequences(Attends()), monitor, folder=tmp_path)
    assert set(monitor.latest["val_w2"]) == set(monitor.latest["drift_w2"])
    assert set(Written(tmp_path / "run").scalars("val_w2/net.block.linear1")) == {3, 6}
