"""`recalibrate`: running statistics against the formula in float64, and what it must not touch."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, TensorDataset

from normzoo import norms
from normzoo.data import Digits
from normzoo.errors import InputError
from normzoo.models import MLP
from normzoo.surgery import recalibrate

LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "BatchNorm2d": nn.BatchNorm2d,
    "SyncBatchNorm": nn.SyncBatchNorm,
    "BatchNormAct2d": BatchNormAct2d,
    "BatchNorm": norms.BatchNorm,
    "synced": lambda c: norms.BatchNorm(c, sync=True),
    "GhostBatchNorm": lambda c: norms.GhostBatchNorm(c, ghost_size=3),
    "BatchRenorm": norms.BatchRenorm,
    "NoisyBatchNorm": norms.NoisyBatchNorm,
    "SplitBatchNorm": norms.SplitBatchNorm,
}
SIZES = (5, 8, 2)


def batches_of(seed: int = 0, sizes: tuple[int, ...] = SIZES) -> list[Tensor]:
    """Of unequal sizes, with means that differ and are large."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 3, 6, 6, generator=generator) * (i + 1) + 10 * i for i, n in enumerate(sizes)]


def network(layer: Callable[[int], nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), layer(4), nn.Dropout(0.5), nn.Conv2d(4, 6, 3), layer(6), nn.ReLU())
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
    return net.eval()


@torch.no_grad()
def slow(net: nn.Sequential, batches: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Mean and variance of the inputs of both layers in float64, each batch normalized by its own statistics."""
    net = copy.deepcopy(net).double()
    norm: Any = net[1]
    first = [net[0](x.double()) for x in batches]
    normal = [nn.functional.batch_norm(x, None, None, norm.weight, norm.bias, True, eps=norm.eps) for x in first]
    second = [net[3](y.relu() if isinstance(norm, BatchNormAct2d) else y) for y in normal]
    values = [torch.cat([x.movedim(1, -1).flatten(0, -2) for x in each]) for each in (first, second)]
    unbiased = getattr(norm, "stores_unbiased", True)
    return [(v.mean(0), v.var(0, unbiased=unbiased)) for v in values]


def assert_exact(net: nn.Sequential, batches: list[Tensor], tolerance: float = 1e-6) -> None:
    for layer, (mean, var) in zip((net[1], net[4]), slow(net, batches), strict=True):
        assert ((layer.running_mean - mean).abs() / var.sqrt()).max() < tolerance
        assert (layer.running_var / var - 1).abs().max() < tolerance


@pytest.mark.parametrize("name", LAYERS)
def test_equals_the_formula_in_float64(name: str) -> None:
    net = network(LAYERS[name])
    report = recalibrate(net, batches_of())
    assert_exact(net, batches_of())
    assert [row["layer"] for row in report.rows if row["statistics"] == "exact"] == ["1", "4"]
    assert net[1].num_batches_tracked == len(SIZES)


def test_equals_torch_on_one_batch() -> None:
    """One batch has no means to spread: there it is `update_bn`."""
    net, other = network(nn.BatchNorm2d), network(nn.BatchNorm2d)
    net[2].p = other[2].p = 0.0
    recalibrate(net, batches_of(sizes=(8,)))
    update_bn(batches_of(sizes=(8,)), other)
    for value, theirs in zip(net.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.allclose(value, theirs, rtol=1e-5, atol=1e-6)


def test_equals_the_estimate_of_the_papers_code() -> None:
    """fvcore's: mean and mean square over batches, weighted by their sizes."""
    net, batches = network(nn.BatchNorm2d), [x.double() for x in batches_of()]
    net.double()
    recalibrate(net, batches)
    mean = square = total = torch.zeros((), dtype=torch.float64)
    for x in map(net[0], batches):
        own = x.mean((0, 2, 3)), x.square().mean((0, 2, 3))
        total = total + len(x)
        mean, square = (a + (b - a) * (len(x) / total) for a, b in zip((mean, square), own, strict=True))
    n = sum(SIZES) * 16
    assert torch.allclose(net[1].running_mean, mean)
    assert torch.allclose(net[1].running_var, (square - mean.square()) * n / (n - 1))


REFUSED: dict[str, tuple[Callable[[], nn.Module], Any, dict[str, Any], str]] = {
    "an empty loader": (lambda: network(nn.BatchNorm2d), [], {}, "the data has no batches"),
    "NaN in the second batch": (
        lambda: network(nn.BatchNorm2d),
        [*batches_of(), torch.full((2, 3, 6, 6), torch.inf)],
        {},
        "the input of 1 has NaN or infinite values",
    ),
    "no statistics": (lambda: network(norms.GroupNorm), batches_of(), {}, "none of these modules keeps running"),
    "another name": (lambda: network(nn.BatchNorm2d), batches_of(), {"where": "layer4.*"}, "layer4"),
    "the meta device": (lambda: network(nn.BatchNorm2d).to("meta"), batches_of(), {}, "meta device"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refuses_and_changes_nothing(what: str) -> None:
    build, data, settings, message = REFUSED[what]
    net = build()
    before, modes = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    with pytest.raises(InputError, match=message):
        recalibrate(net, data, **settings)
    if what != "the meta device":
        assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert modes == [m.training for m in net.modules()]
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_leaves_all_else_as_it_was() -> None:
    """Weights, gradients, modes, random numbers, momentum, and the layers that `where` does not name."""
    net = network(norms.BatchNorm).train()
    net(batches_of()[0]).sum().backward()
    before, gradients = copy.deepcopy(net.state_dict()), [p.grad.clone() for p in net.parameters()]
    random = torch.get_rng_state()
    recalibrate(net, DataLoader(TensorDataset(torch.cat(batches_of())), 4, shuffle=True), where="4")
    assert torch.equal(torch.get_rng_state(), random)
    assert all(m.training for m in net.modules())
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), gradients, strict=True))
    changed = {key for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"4.running_mean", "4.running_var", "4.num_batches_tracked"}


class OfParts(nn.Module):
    """Takes its input by name; one layer runs twice, another never."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.unused = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
        self.shared = self.norm

    def forward(self, values: Tensor, scale: float = 1.0) -> Tensor:
        return self.norm(self.norm(values) * scale)


class Own(LightningModule):
    """Predicts from a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.net = OfParts()

    def predict_step(self, batch: dict[str, Tensor]) -> Tensor:
        return self.net(batch["image"])


def test_takes_batches_as_the_network_does() -> None:
    x = torch.randn(6, 3) * 3 + 2
    expected = None
    for net, data in (
        (OfParts(), [x]),
        (OfParts(), x),
        (OfParts(), [(x, torch.zeros(6))]),
        (OfParts(), ({"values": part, "label": 0} for part in [x])),
        (Own(), [{"image": x}]),
        (torch.compile(OfParts()), [x]),
    ):
        report = recalibrate(net, data)
        assert [row["statistics"] for row in report.rows] == ["exact", "kept: the layer did not run"]
        layer = next(m for m in net.modules() if isinstance(m, OfParts)).norm
        expected = layer.running_var.clone() if expected is None else expected
        assert torch.equal(layer.running_var, expected)
        assert not torch.equal(layer.running_var, torch.ones(3))


def test_names_of_modules_mean_all_layers_inside() -> None:
    net = nn.ModuleDict({"backbone": network(nn.BatchNorm2d), "head": nn.BatchNorm1d(3)})
    net.forward = lambda x: net["backbone"](x)
    report = recalibrate(net.eval(), batches_of(), where="backbone")
    assert [row["layer"] for row in report.rows] == ["backbone.1", "backbone.4"]


def test_padding_has_no_part() -> None:
    net = nn.ModuleDict({"norm": norms.BatchNorm(3)})
    net.forward = lambda batch: net["norm"](batch, mask=mask)
    x, mask = torch.randn(4, 3, 5), torch.rand(4, 5) > 0.5
    recalibrate(net.eval(), [x])
    assert torch.allclose(net["norm"].running_mean, x.movedim(1, -1)[mask].mean(0))


def test_takes_a_data_module() -> None:
    """Its training images, after its own hooks."""
    net = MLP((1, 8, 8), 10, hidden=(16,)).eval()
    recalibrate(net, Digits(batch_size=512, drop_last=False))
    data = Digits(batch_size=512, drop_last=False)
    data.setup()
    x = torch.cat([data.on_after_batch_transfer(batch, 0)[0] for batch in data.train_dataloader()])
    y = net.hidden[0].layer(x.flatten(1))
    assert torch.allclose(net.hidden[0].norm.running_mean, y.mean(0), atol=1e-5)
