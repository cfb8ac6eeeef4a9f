"""Gradients: difference quotients, `torch.func`, activation checkpointing, higher orders."""

import copy
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import product
from typing import Any

import torch
from laws import (
    LARGE,
    assert_close,
    assert_same_buffers,
    assert_same_results,
    buffers_of,
    few_and_many,
    law,
    of_layer,
    pure,
)
from references import State
from subjects import LAYOUTS, C, Subject, outputs_and_gradients
from torch import Tensor
from torch.func import functional_call, grad, jvp, vmap
from torch.utils.checkpoint import checkpoint

from normzoo.norms import Norm
from normzoo.norms._ops.cpu import SMALL

# Fast mode compares one projection of the derivative, and multiplies its tolerance by the count of values: with torch's
# 1e-5 a gradient may be off by a tenth.
GRADIENT_ERROR = 1e-7


@law()
def test_gradcheck(subject: Subject) -> None:
    """The first derivatives equal difference quotients."""
    for training in (True, False):
        f, parameters = pure(subject.experienced().train(training))
        inputs = subject.input().requires_grad_(), *parameters
        assert torch.autograd.gradcheck(f, inputs, atol=GRADIENT_ERROR, fast_mode=True)


@law()
def test_gradgradcheck(subject: Subject) -> None:
    """The second derivatives equal difference quotients of the first."""
    for training in (True, False):
        f, parameters = pure(subject.experienced().train(training))
        inputs = subject.input().requires_grad_(), *parameters
        assert torch.autograd.gradgradcheck(f, inputs, atol=GRADIENT_ERROR, fast_mode=True)


@law(when=lambda subject: bool(subject.layer.facts.gates))
def test_gates(subject: Subject) -> None:
    """Outside [0, 1] a gate counts as its nearest bound, and descent may move it nowhere but back."""
    layer, x = subject.build(), subject.input()
    for name in layer.facts.gates:
        gate = layer.get_parameter(name)
        for outside, bound in ((1.3, 1.0), (-0.2, 0.0), (1.0, 1.0), (0.0, 0.0)):
            at = {}
            for value in (outside, bound, 0.999 * bound + 0.0005):
                with torch.no_grad():
                    gate.fill_(value)
                at[value] = of_layer(copy.deepcopy(layer), x)
            inside = at[0.999 * bound + 0.0005][f"gradient of {name}"]
            assert_close(at[outside]["output"], at[bound]["output"])
            inwards = inside > 0 if bound else inside < 0  # descent goes against the gradient
            assert inwards.any()
            assert not inwards.all()
            expected = torch.where(inwards, inside, torch.zeros_like(inside))
            assert_close(at[outside][f"gradient of {name}"], expected, f"gradient at {outside}", 2e-2)


@law(when=lambda subject: subject.layer.facts.brings_activation)
def test_ties(subject: Subject) -> None:
    """Where two branches of the activation meet, the gradient is the mean of both, as a central difference quotient."""
    h = 1e-3
    for x in few_and_many(subject):
        x.zero_()
        layer = subject.default(x.shape[1])
        found = of_layer(layer, x)
        if subject.layout == "NCHW" and x.numel() < SMALL and x.is_contiguous():
            torch._dynamo.reset()
            compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
            assert_same_results(outputs_and_gradients(compiled, x, dict(layer.named_parameters())), found)
        dy = torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=x.dtype)  # as in `of_layer`
        for name, p in layer.named_parameters():
            ends = []
            for step in (h, -2 * h, h):
                p.data.add_(step)
                ends.append((layer(x).detach() * dy).sum((0, *range(2, x.dim()))))
            assert_close(found[f"gradient of {name}"], (ends[0] - ends[1]) / (2 * h), name, 1e-6)


@law()
def test_changed_in_place(subject: Subject) -> None:
    """The output may be changed in place, as a sum with a shortcut and a ReLU do it: all gradients stay right."""
    for x, training in product(few_and_many(subject), (True, False)):
        layer = subject.build(num_features=x.shape[subject.channel_axis]).train(training)
        twin, shortcut = copy.deepcopy(layer), torch.randn_like(x)
        expected = outputs_and_gradients(
            lambda x, layer=layer, shortcut=shortcut: (layer(x) + shortcut).relu(), x, dict(layer.named_parameters())
        )
        observed = outputs_and_gradients(
            lambda x, twin=twin, shortcut=shortcut: twin(1 * x).add_(shortcut).relu_(), x, dict(twin.named_parameters())
        )
        assert_same_results(observed, expected)


@law()
def test_func_grad(subject: Subject) -> None:
    """`torch.func.grad` with respect to x, and with respect to the parameters alone, equals autograd."""
    for training in (True, False):
        layer = subject.experienced().train(training)
        parameters = {n: p.detach() for n, p in layer.named_parameters()}

        def loss(x: Tensor, parameters: State, buffers: State, layer: Norm = layer) -> Tensor:
            return functional_call(layer, {**parameters, **buffers}, (x,)).pow(3).sum()

        x = subject.input()
        plain_x = x.clone().requires_grad_()
        plain = {n: p.clone().requires_grad_() for n, p in parameters.items()}
        loss(plain_x, plain, buffers_of(layer)).backward()
        assert plain_x.grad is not None
        assert_close(grad(loss)(x, parameters, buffers_of(layer)), plain_x.grad, "gradient of x")
        if parameters:
            # x is not an argument: a layer that looks at x alone does not see that it is being differentiated.
            found = grad(partial(loss, x))(parameters, buffers_of(layer))
            for name, value in found.items():
                expected = plain[name].grad
                assert expected is not None
                assert_close(value, expected, f"gradient of {name}")


@law()
def test_func_jvp(subject: Subject) -> None:
    """Forward mode, in evaluation, is the directional difference quotient."""
    layer, x = subject.experienced().eval(), subject.input()
    v = subject.input(seed=3)
    tangent = jvp(layer, (x,), (v,))[1]
    h = 1e-5
    assert_close(tangent, (layer(x + h * v) - layer(x - h * v)) / (2 * h), tolerance=1e-6)


@law()
def test_func_vmap(subject: Subject) -> None:
    """`vmap` over a stack of inputs, in evaluation; and in training where no running statistics move in place."""
    layer = subject.experienced()
    xs = torch.stack([subject.input(seed) for seed in range(3)])
    for training in (True, False):
        if training and subject.layer.facts.stateful:
            continue
        layer.train(training)
        assert_close(vmap(layer)(xs), torch.stack([layer(x) for x in xs]))


def checkpointed(subject: Subject, settings: Mapping[str, Any]) -> Iterator[tuple[Norm, Norm, Mapping[str, Any], Any]]:
    few, many = LAYOUTS[subject.layout], {**LARGE, "NC": (3000, C)}[subject.layout]
    for reentrant, sizes in ((False, few), (True, few), *([] if settings else [(False, many)])):
        plain = subject.experienced(settings)
        repeated = copy.deepcopy(plain)
        x = subject.input(sizes=(subject.samples(sizes[0]), *sizes[1:]))
        expected = of_layer(plain, x)
        x = x.requires_grad_()
        y = checkpoint(repeated, x, use_reentrant=reentrant)
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        y.backward(dy)
        gradients = {f"gradient of {n}": p.grad for n, p in repeated.named_parameters()}
        yield plain, repeated, expected, {"output": y.detach(), "gradient of x": x.grad, **gradients}


@law()
def test_checkpointing(subject: Subject) -> None:
    """Activation checkpointing repeats the forward pass, and the running statistics still count the batch once."""
    for settings in subject.settings:
        for plain, repeated, _, _ in checkpointed(subject, settings):
            assert_same_buffers(repeated, plain)


@law()
def test_checkpointed_gradient(subject: Subject) -> None:
    """Activation checkpointing changes no gradient."""
    for settings in subject.settings:
        for _, _, expected, observed in checkpointed(subject, settings):
            assert_same_results(observed, expected)


@law()
def test_gradients_again(subject: Subject) -> None:
    """A forward pass has one gradient: asked for again, to be differentiated again, or along with its own penalty."""
    sizes = LAYOUTS[subject.layout], {**LARGE, "NC": (42, C)}[subject.layout]
    for settings, (samples, *others) in product(subject.settings, sizes):
        layer = subject.experienced(settings)
        x = subject.input(sizes=(subject.samples(samples), *others)).requires_grad_()
        y = layer(x)
        loss = (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(5), dtype=y.dtype)).sum()
        wanted = [x, *layer.parameters()]
        gradients = partial(torch.autograd.grad, inputs=wanted, retain_graph=True)
        once = gradients(loss)
        again = gradients(loss, create_graph=True)
        penalty = sum(g.pow(2).sum() for g in again) + 0 * sum(t.sum() for t in wanted)
        bend = gradients(penalty, allow_unused=True, materialize_grads=True)
        both = gradients(loss + penalty, allow_unused=True, materialize_grads=True)
        for what, found in (("to be differentiated", again), ("again", gradients(loss)), ("twice", gradients(loss))):
            for a, b in zip(once, found, strict=True):
                assert_close(b, a, f"gradient {what}, {settings}", 1e-7)
        for a, b, c in zip(once, bend, both, strict=True):
            assert_close(c, a + b, f"gradient with a penalty, {settings}", 1e-7)
