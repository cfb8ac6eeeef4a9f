"""Every layer equals its formula in `references/`, and implementations by others."""

import copy
import math
from functools import partial
from itertools import product

import pytest
import torch
from laws import LARGE, assert_close, assert_same_buffers, assert_same_results, law, of_layer
from references import reference
from subjects import (
    C,
    Subject,
    arguments_of,
    beside_formula,
    beside_oracle,
    gradients_beside_formula,
    oracles_of,
    outputs_and_gradients,
    state_of,
    subjects,
)
from torch import Tensor

from normzoo.norms import Norm
from normzoo.norms._arguments import keyword_defaults
from normzoo.norms._ops import cpu as kernels


@law()
def test_equals_reference(subject: Subject) -> None:
    """Outputs and buffers equal those of the reference, with all settings, step by step."""
    for what, observed, expected in beside_formula(subject):
        assert_close(observed, expected, what)


@law()
def test_gradient_of_reference(subject: Subject) -> None:
    """Autograd through the reference, which is detached where the paper says so, is the layer's gradient."""
    for what, observed, expected in gradients_beside_formula(subject):
        assert_close(observed, expected, what)


@pytest.mark.slow
@law(when=lambda subject: "N" in subject.layer.facts.axes and not subject.on_weights)
def test_large_batch(subject: Subject) -> None:
    """Statistics of many values may be computed in another way than those of few: in blocks, uncentred, in dots."""
    # A formula that walks over samples takes a second per hundred of them.
    by_channel = set(subject.layer.facts.axes) == {"N", "s"} and not subject.layer.facts.brings_activation
    sizes: dict[str, list[tuple[int, ...]]] = {
        "NC": [(1100, 64), (1101, 64)] if by_channel else [(260, 64), (261, 64)],
        "NCL": [(9, C, 1009), (40, C, 400)],
        "NCHW": [(36, C, 16, 20), (36, C, 16, 20)],
    }
    for (samples, *others), offset in zip(sizes[subject.layout], (0.5, 30.0), strict=True):
        size = (subject.samples(samples), *others)
        bound = 16 * torch.finfo(torch.float32).eps * max(1.0, offset)  # as of the mean itself
        x = subject.input(sizes=size, dtype=torch.float32) + offset
        formats = [torch.contiguous_format] + [torch.channels_last] * (subject.layout == "NCHW")
        for memory_format in formats:
            layer = subject.build(dtype=torch.float32, num_features=size[1])
            state = state_of(layer)
            learned = {name: state[name].requires_grad_() for name, _ in layer.named_parameters()}
            formula = partial(subject.reference.formula, state=state, training=True, **arguments_of(layer, {}))
            expected = outputs_and_gradients(formula, x.double(), learned)
            observed = of_layer(layer, x.contiguous(memory_format=memory_format))
            for name, value in observed.items():
                # The gradient of a parameter is a sum in which much cancels: its error goes with the count of terms.
                scale = expected[name].abs().max().item() if value.shape == x.shape else x.numel() / size[1]
                assert_close(value.double() / scale, expected[name] / scale, name, bound)
            for name, buffer in layer.named_buffers():
                assert_close(buffer.double(), state[name].double(), name, bound)


@law()
def test_large_input(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large inputs are computed in blocks, with hand-written gradients: to the same results, to second order."""
    monkeypatch.setattr(kernels, "BLOCK_BYTES", 1 << 16)  # several blocks and sheets, the last ones smaller
    monkeypatch.setattr(kernels, "SHEET", 1 << 10)
    sizes = LARGE[subject.layout]
    sizes = (subject.samples(sizes[0]), *sizes[1:])
    assert math.prod(sizes) > kernels.SMALL
    for offset, memory_format in product((0.5, 1e3), (torch.contiguous_format, torch.channels_last)):
        if memory_format is torch.channels_last and (subject.layout != "NCHW" or subject.on_weights):
            continue
        x = (subject.input(sizes=sizes) + offset).contiguous(memory_format=memory_format)
        bare = [{"affine": False}] * ("affine" in keyword_defaults(subject.layer))
        for training, settings in product((True, False), ({}, *bare)):
            layer = subject.build(settings, num_features=sizes[1]).train(training)
            twin = copy.deepcopy(layer)
            observed = {**of_layer(layer, x), **second_derivatives(layer, x)}
            with monkeypatch.context() as patch:
                patch.setattr(kernels, "SMALL", math.inf)
                expected = {**of_layer(twin, x), **second_derivatives(twin, x)}
            assert_same_results(observed, expected, 1e-7)
            assert_same_buffers(layer, twin, 1e-7)
    for change in (lambda x: torch.stack([x, x], dim=-1)[..., 0], lambda x: x.mT.contiguous().mT):  # strided, turned
        x, layer = subject.input(sizes=sizes), subject.build(num_features=sizes[1])
        expected = of_layer(copy.deepcopy(layer), x)
        observed = outputs_and_gradients(
            lambda x, layer=layer, change=change: layer(change(x)), x, dict(layer.named_parameters())
        )
        assert_same_results(observed, expected, 1e-7)
    x, layer = subject.input(sizes=sizes), subject.build(dtype=torch.float32, num_features=sizes[1])
    expected = of_layer(copy.deepcopy(layer).double(), x)
    observed = of_layer(layer, x)  # float64 values in a float32 layer
    assert observed["output"].dtype == torch.float64
    assert_same_results({n: v.double() for n, v in observed.items()}, expected, 1e-4)


def second_derivatives(layer: Norm, x: Tensor) -> dict[str, Tensor]:
    """Second derivatives of a loss with respect to the input and the parameters."""
    x = x.detach().clone().requires_grad_()
    torch.manual_seed(0)
    wanted = [x, *layer.parameters()]
    (slope,) = torch.autograd.grad(layer(x).pow(3).mean(), x, create_graph=True)
    found = torch.autograd.grad(slope.pow(2).sum(), wanted, allow_unused=True, materialize_grads=True)
    return {f"second derivative {i}": d for i, d in enumerate(found)}


ORACLES = [
    pytest.param(subject, name, id=f"{subject.name}-{subject.layout}-{name}")
    for subject in subjects()
    for name in oracles_of(subject)
]


@pytest.mark.parametrize("subject, name", ORACLES)
def test_equals_the_implementation_of_others(subject: Subject, name: str) -> None:
    """Outputs, gradients and buffers equal those of an implementation by somebody else, where it is installed."""
    oracle = subject.reference.oracles[name]
    pytest.importorskip(oracle.package)
    for what, observed, expected in beside_oracle(subject, name):
        assert_close(observed, expected, what, oracle.tolerance)


def test_a_layer_without_a_reference_fails_with_what_to_write() -> None:
    """Whoever adds a layer without a formula reads where the formula belongs."""
    with pytest.raises(pytest.fail.Exception, match=r"write its formula .* in tests/helpers/references/"):
        reference("UnknownNorm")
