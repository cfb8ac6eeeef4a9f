"""Whether a VirtualBatchNorm has a reference is what its buffers say, whoever filled them.

The laws in this folder test what it computes.
"""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.func import functional_call, stack_module_state, vmap
from torch.optim.swa_utils import AveragedModel

from normzoo.errors import InputError
from normzoo.norms import VirtualBatchNorm
from normzoo.norms._ops.buffers import known_positive

C = 4


def batch(seed: int, n: int = 6) -> Tensor:
    return torch.randn(n, C, 5, generator=torch.Generator().manual_seed(seed)) * (seed + 1) + seed


def buffers_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: b.clone() for name, b in module.named_buffers()}


def referred(seed: int = 1) -> VirtualBatchNorm:
    layer = VirtualBatchNorm(C)
    layer(batch(seed))
    return layer


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("half-way")


def test_a_functional_call_fills_its_own_buffers_alone() -> None:
    layer, buffers = VirtualBatchNorm(C), buffers_of(VirtualBatchNorm(C))
    y = functional_call(layer, buffers, (batch(1),))
    assert buffers["reference_samples"] == 6
    assert layer.reference_samples == 0
    with pytest.raises(InputError, match="no reference batch"):
        layer.eval()(batch(2))
    assert torch.equal(layer.train()(batch(1)), y), "the first batch of its own is the reference"


def test_a_functional_call_sees_the_reference_of_its_buffers() -> None:
    layer, other = VirtualBatchNorm(C).eval(), referred()
    assert torch.equal(functional_call(layer, buffers_of(other), (batch(2),)), other.eval()(batch(2)))
    with pytest.raises(InputError, match="no reference batch"):
        layer(batch(2))


def test_an_averaged_model_made_before_the_first_batch_has_the_reference_of_its_buffers() -> None:
    net = nn.Sequential(VirtualBatchNorm(C))
    averaged = AveragedModel(net, use_buffers=True)
    net(batch(1))
    averaged.update_parameters(net)
    assert torch.equal(averaged.eval()(batch(2)), net.eval()(batch(2)))


def test_a_reference_that_is_copied_in_is_there_and_one_that_is_taken_out_is_not() -> None:
    layer, other = VirtualBatchNorm(C), referred()
    for mine, theirs in zip(layer.buffers(), other.buffers(), strict=True):  # as distributed training broadcasts them
        mine.data.copy_(theirs)
    assert torch.equal(layer(batch(2)), other(batch(2)))
    assert torch.equal(layer.reference_mean, other.reference_mean)
    layer.reference_samples.zero_()
    with pytest.raises(InputError, match="no reference batch"):
        layer.eval()(batch(2))


def test_an_ensemble_in_vmap() -> None:
    models = [referred(seed).eval() for seed in (1, 2, 3)]
    parameters, buffers = stack_module_state(models)
    base = copy.deepcopy(models[0])
    y = vmap(lambda p, b, x: functional_call(base, (p, b), (x,)), (0, 0, None))(parameters, buffers, batch(4))
    torch.testing.assert_close(y, torch.stack([model(batch(4)) for model in models]))


@pytest.mark.parametrize("had", [True, False])
def test_refer_that_fails_leaves_every_reference_as_it_was(had: bool) -> None:
    net = nn.Sequential(VirtualBatchNorm(C), Fails(), VirtualBatchNorm(C)).eval()
    for layer in net.children() if had else ():
        if isinstance(layer, VirtualBatchNorm):
            layer.load_state_dict(referred().state_dict())
    before = buffers_of(net)
    with pytest.raises(RuntimeError, match="half-way"):
        VirtualBatchNorm.refer(net, batch(3))
    assert all(torch.equal(b, before[name]) for name, b in net.named_buffers())
    assert not any(module.training for module in net.modules())
    if had:
        net[0](batch(2))
    else:
        with pytest.raises(InputError, match="no reference batch"):
            net[0](batch(2))


def test_refer_to_a_batch_with_nan_raises_and_leaves_every_reference_as_it_was() -> None:
    net = nn.Sequential(referred(), VirtualBatchNorm(C))
    before, bad = buffers_of(net), batch(3)
    bad[0, 0] = torch.nan
    with pytest.raises(InputError, match=r"shape \(6, 4, 5\) that is NaN or infinite"):
        VirtualBatchNorm.refer(net, bad)
    assert all(torch.equal(b, before[name]) for name, b in net.named_buffers())
    assert not any(module._forward_hooks for module in net)


def test_refer_leaves_a_layer_alone_that_the_batch_does_not_reach() -> None:
    net = nn.Sequential(referred(), nn.Identity()).eval()
    net[1].unused = referred()
    before = buffers_of(net[1])
    VirtualBatchNorm.refer(net, batch(3))
    assert all(torch.equal(b, before[name]) for name, b in net[1].named_buffers())
    assert torch.equal(net[0].reference_mean, referred(3).reference_mean)


def test_a_second_derivative_is_that_of_the_reference_of_its_forward_pass() -> None:
    def penalty(x: Tensor, between: Any) -> Tensor:
        layer, x = referred(), x.clone().requires_grad_()
        y = layer(x)
        between(layer)
        (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), x)[0]

    for n in (6, 6000):  # by the plain formula, and by the kernels
        as_it_was = penalty(batch(2, n), lambda layer: None)
        moved = penalty(batch(2, n), lambda layer: VirtualBatchNorm.refer(layer, batch(3)))
        torch.testing.assert_close(moved, as_it_was)


def test_compiled_layers_are_compiled_for_the_first_batch_and_for_all_others() -> None:
    counter, eager = CompileCounter(), VirtualBatchNorm(C)
    compiled = torch.compile(copy.deepcopy(eager), backend=counter, fullgraph=True)
    for seed in (1, 2, 3, 4):
        torch.testing.assert_close(compiled(batch(seed)), eager(batch(seed)))
    assert counter.frame_count == 2
    eager.eval()
    for seed in (5, 6):
        torch.testing.assert_close(compiled.eval()(batch(seed)), eager(batch(seed)))
    assert counter.frame_count <= 3


def test_a_compiled_layer_with_a_reference_is_compiled_once() -> None:
    counter, eager = CompileCounter(), referred()
    compiled = torch.compile(copy.deepcopy(eager), backend=counter, fullgraph=True)
    for seed in (2, 3):
        torch.testing.assert_close(compiled(batch(seed)), eager(batch(seed)))
    VirtualBatchNorm.refer(compiled._orig_mod, batch(7))
    VirtualBatchNorm.refer(eager, batch(7))
    torch.testing.assert_close(compiled(batch(4)), eager(batch(4)))
    assert counter.frame_count == 1


def test_a_compiled_graph_without_a_reference_gives_no_wrong_value() -> None:
    layer = referred().eval()
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    assert compiled(batch(2)).isfinite().all()
    layer.reference_samples.zero_()
    assert compiled(batch(2)).isnan().all()


def test_what_is_known_of_a_buffer_ends_when_it_is_written_to() -> None:
    n = torch.tensor(0)
    assert not known_positive(n)
    n.fill_(5)
    copied = copy.deepcopy(n)
    assert known_positive(n)
    assert known_positive(n)
    n.zero_()
    assert not known_positive(n)
    assert known_positive(copied)


@pytest.mark.parametrize("device", ["meta", "fake"])
def test_tensors_without_values(device: str) -> None:
    if device == "meta":
        assert VirtualBatchNorm(C).to("meta")(batch(1).to("meta")).shape == (6, C, 5)
        return
    with torch._subclasses.FakeTensorMode():
        layer = VirtualBatchNorm(C)
        for _ in range(2):
            assert layer(torch.randn(6, C, 5)).shape == (6, C, 5)
