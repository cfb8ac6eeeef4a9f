"""`adapt`: against the formula of the paper, what it keeps and what it refuses."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normzoo import norms
from normzoo.errors import InputError
from normzoo.surgery import adapt, undo


def network(norm: Any) -> nn.Sequential:
    """Trained for one step, in evaluation."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), norm(4), nn.ReLU(), nn.Conv2d(4, 3, 3), norm(3), nn.Flatten())
    net(torch.randn(16, 2, 8, 8))
    return net.eval()


def slow(net: nn.Sequential, x: Tensor, prior: float) -> Tensor:
    """The output for one batch: each layer normalizes by the mix of its own statistics with those of the batch."""
    for layer in net:
        if hasattr(layer, "running_mean"):
            n, axes = len(x), (0, 2, 3)
            mean = (prior * layer.running_mean + n * x.mean(axes)) / (prior + n)
            var = (prior * layer.running_var + n * x.var(axes, unbiased=False)) / (prior + n)
            x = nn.functional.batch_norm(x, mean, var, layer.weight, layer.bias, False, eps=layer.eps)
        else:
            x = layer(x)
    return x


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, norms.BatchNorm, norms.GhostBatchNorm])
@pytest.mark.parametrize("prior", [0, 1, 16, 512])
@torch.no_grad()
def test_equals_the_formula(norm: Any, prior: float) -> None:
    net, x = network(norm), torch.randn(6, 2, 8, 8) * 3 + 1
    expected = slow(net, x, prior)
    before = copy.deepcopy(net.state_dict())
    report = adapt(net, [x], prior=prior)
    assert torch.allclose(net(x), expected, atol=1e-5)
    undo(report)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@torch.no_grad()
def test_without_a_prior_it_is_training_mode() -> None:
    net, x = network(nn.BatchNorm2d), torch.randn(6, 2, 8, 8) * 3 + 1
    expected = copy.deepcopy(net).train()(x)
    adapt(net, x, prior=0)
    assert torch.allclose(net(x), expected, atol=1e-5)


@torch.no_grad()
def test_several_batches_are_as_one_for_the_first_layer() -> None:
    net, other, x = network(nn.BatchNorm2d), network(nn.BatchNorm2d), torch.randn(6, 2, 8, 8) * 3 + 1
    adapt(net, x.split(4), prior=8)
    adapt(other, [x], prior=8)
    for name in ("running_mean", "running_var"):
        assert torch.allclose(getattr(net[1], name), getattr(other[1], name))


@pytest.mark.parametrize(
    ("net", "settings", "message"),
    [
        (network(nn.BatchNorm2d), {"prior": -1}, "prior=-1"),
        (network(nn.BatchNorm2d), {"prior": float("nan")}, "prior=nan"),
        (network(nn.BatchNorm2d), {"data": []}, "no batches"),
        (network(norms.RangeBatchNorm), {}, "not the mean and variance"),
        (network(norms.GroupNorm), {}, "none of these modules"),
    ],
)
def test_refuses(net: nn.Module, settings: dict[str, Any], message: str) -> None:
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(InputError, match=message):
        adapt(net, **{"data": [torch.randn(6, 2, 8, 8)], **settings})
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
