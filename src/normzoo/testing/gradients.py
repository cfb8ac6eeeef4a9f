"""Gradients: difference quotients, activation checkpointing, higher orders."""

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError
from torch.utils.checkpoint import checkpoint

from normzoo.testing._compare import (
    State,
    assert_close,
    assert_same_buffers,
    assert_same_results,
    learned,
    of_layer,
    outputs_and_gradients,
    pure,
)
from normzoo.testing._law import Finding, expect, law
from normzoo.testing._subject import Subject, few_and_many, is_stateful

# Fast mode compares one projection of the derivative, and multiplies its tolerance by the count of values: with torch's
# 1e-5 a gradient may be off by a tenth.
GRADIENT_ERROR = 1e-7


def against_quotients(subject: Subject, compare: Callable[..., bool], what: str) -> None:
    """Compares derivatives with difference quotients, in both modes, with respect to the input and the parameters."""
    for training in (True, False):
        layer = subject.experienced().train(training)
        f, parameters = pure(layer)
        inputs = subject.input().requires_grad_(), *parameters
        try:
            compare(f, inputs, atol=GRADIENT_ERROR, fast_mode=True)
        except GradcheckError as error:
            found = re.search(r"with respect to input (\d+)", str(error))
            names = ["x", *(name for name, _ in layer.named_parameters())]
            of = f" with respect to {names[int(found[1])]}" if found and int(found[1]) < len(names) else ""
            mode = "training" if training else "evaluation"
            raise Finding(f"in {mode} the {what}{of} differs from its difference quotient") from error


@law(
    where="once",
    observed="a parameter gets no gradient",
    tried="layer(x.requires_grad_()).sum().backward(); {name: p.grad for name, p in layer.named_parameters()}",
    means="It stays as it is, and DistributedDataParallel raises, as it waits for the gradient of every parameter.",
    remedy="Use the parameter itself, not its .data or .detach(), or leave it out; freeze by requires_grad_(False).",
)
def parameters_learn(subject: Subject) -> None:
    """The output depends on every parameter that is not frozen, in training with all settings, and in evaluation."""
    for settings, training in (({}, False), *((settings, True) for settings in subject.settings)):
        layer = subject.experienced(settings).train(training)
        wanted = {"x": subject.input().requires_grad_(), **learned(layer)}
        found = torch.autograd.grad(layer(wanted["x"]).sum(), [*wanted.values()], allow_unused=True)
        for name, gradient in zip(wanted, found, strict=True):
            expect(gradient is not None, f"in {'training' if training else 'evaluation'} {name} gets no gradient")


DERIVATIVE = (
    "layer.double(); torch.autograd.{}(lambda x: copy.deepcopy(layer)(x), x.double().requires_grad_(), fast_mode=True)"
)


@law(
    observed="a gradient differs from its difference quotient",
    tried=DERIVATIVE.format("gradcheck"),
    means="Training descends along another direction than that of the loss: without the part through the mean and the "
    "variance, activations drift or explode.",
    remedy="Take the mean and the variance of x itself: .detach(), .data, .item(), numpy and torch.no_grad() belong to "
    "the update of the running statistics only; check a backward of your own. If the paper stops the gradient: "
    "exceptions={'gradcheck': 'why'} in the layer's facts.",
    explained_by=("buffers-move-in-training-only", "evaluation-keeps-nothing", "state", "parameters-learn"),
)
def gradcheck(subject: Subject) -> None:
    """The first derivatives equal difference quotients."""
    against_quotients(subject, torch.autograd.gradcheck, "gradient")


@law(
    observed="a second derivative differs from its difference quotient",
    tried=DERIVATIVE.format("gradgradcheck"),
    means="Gradient penalties, Hessians and meta-learning are wrong.",
    remedy="Let autograd differentiate the formula; a backward of your own must be differentiable itself.",
    explained_by=("gradcheck", "buffers-move-in-training-only"),
)
def gradgradcheck(subject: Subject) -> None:
    """The second derivatives equal difference quotients of the first."""
    against_quotients(subject, torch.autograd.gradgradcheck, "second derivative")


@law(
    when=lambda subject: bool(subject.facts.gates),
    observed="a gate outside [0, 1] does not count as its nearest bound, or cannot come back",
    means="A step that carries the gate out of [0, 1] would be the last one that it learns.",
    remedy="Clip in the forward pass, and block in the backward pass only gradients that point further outside.",
)
def gates(subject: Subject) -> None:
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
            if not inwards.any() or inwards.all():
                raise Finding(f"the gradients of {name} all point to one side")
            expected = torch.where(inwards, inside, torch.zeros_like(inside))
            assert_close(at[outside][f"gradient of {name}"], expected, f"gradient at {outside}", 2e-2)


@law(
    observed="gradients are wrong, or raise, after the output was changed in place",
    tried="layer(x.requires_grad_()).add_(1).relu_().sum().backward()",
    means="A residual block with += or ReLU(inplace=True) behind the layer fails, or learns from a wrong gradient.",
    remedy="Save x, not the output, for the backward pass; end with an operation that needs no output, such as + bias.",
    explained_by=("gradcheck",),
    binds="zoo",
)
def changed_in_place(subject: Subject) -> None:
    """The output may be changed in place, as a sum with a shortcut and a ReLU do it: all gradients stay right."""
    for x, training in product(few_and_many(subject), (True, False)):
        layer = subject.build(num_features=x.shape[subject.channel_axis]).train(training)
        twin, shortcut = copy.deepcopy(layer), torch.randn_like(x)

        def apart(x: Tensor, layer: Any = layer, shortcut: Tensor = shortcut) -> Tensor:
            return (layer(x) + shortcut).relu()

        def in_place(x: Tensor, layer: Any = twin, shortcut: Tensor = shortcut) -> Tensor:
            return layer(1 * x).add_(shortcut).relu_()

        expected = outputs_and_gradients(apart, x, learned(layer))
        observed = outputs_and_gradients(in_place, x, learned(twin))
        assert_same_results(observed, expected)


def checkpointed(subject: Subject, settings: Mapping[str, Any]) -> Iterator[tuple[Any, Any, State, State]]:
    """A layer, and one that is checkpointed, after a step; and the results of both."""
    few, many = subject.sizes, subject.many_samples
    for reentrant, sizes in ((False, few), (True, few), *([] if settings else [(False, many)])):
        plain = subject.experienced(settings)
        repeated = copy.deepcopy(plain)
        x = subject.input(sizes=(subject.samples(sizes[0]), *sizes[1:]))
        expected = of_layer(plain, x)
        x = x.requires_grad_()
        y = checkpoint(repeated, x, use_reentrant=reentrant)
        wanted = {"x": x, **learned(repeated)}
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        y.backward(dy)
        gradients = {f"gradient of {n}": torch.zeros_like(t) if t.grad is None else t.grad for n, t in wanted.items()}
        yield plain, repeated, expected, {"output": y.detach(), **gradients}


@law(
    when=is_stateful,
    observed="under activation checkpointing the running statistics count a batch twice",
    tried="torch.utils.checkpoint.checkpoint(layer, x.requires_grad_(), use_reentrant=False).sum().backward()",
    means="The momentum is another one than was set; torch's own BatchNorm has this, too.",
    remedy="Derive from normzoo.norms.BatchNorm and override what differs: its update knows a repeated pass.",
    binds="zoo",
    explained_by=("checkpointed-gradient",),
)
def checkpointing(subject: Subject) -> None:
    """Activation checkpointing repeats the forward pass, and the running statistics still count the batch once."""
    for settings in subject.settings:
        for plain, repeated, _, _ in checkpointed(subject, settings):
            assert_same_buffers(repeated, plain)


@law(
    observed="activation checkpointing changes a gradient",
    tried="torch.utils.checkpoint.checkpoint(layer, x.requires_grad_(), use_reentrant=False).sum().backward()",
    means="A network that is checkpointed to save memory trains another way.",
    remedy="Let the output in training depend on x and the parameters alone, not on what the pass before has moved.",
    explained_by=("gradcheck", "buffers-move-in-training-only"),
)
def checkpointed_gradient(subject: Subject) -> None:
    """Activation checkpointing changes no gradient."""
    for settings in subject.settings:
        for _, _, expected, observed in checkpointed(subject, settings):
            assert_same_results(observed, expected)


@law(
    observed="asked for again, the gradient is another",
    tried="y = layer(x.requires_grad_()).sum(); [torch.autograd.grad(y, x, retain_graph=True) for _ in 'ab']",
    means="Several losses on one forward pass, or a gradient penalty, train another way.",
    remedy="Save clones of what the forward pass updates afterwards, or use it before the update.",
    explained_by=("gradcheck", "gradgradcheck", "buffers-move-in-training-only"),
)
def gradients_again(subject: Subject) -> None:
    """A forward pass has one gradient: asked for again, to be differentiated again, or along with its own penalty."""
    large = (42, subject.features) if subject.layout == "NC" else subject.many
    for settings, (samples, *others) in product(subject.settings, (subject.sizes, large)):
        layer = subject.experienced(settings)
        x = subject.input(sizes=(subject.samples(samples), *others)).requires_grad_()
        y = layer(x)
        loss = (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(5), dtype=y.dtype)).sum()
        wanted = [x, *learned(layer).values()]
        gradients = partial(
            torch.autograd.grad, inputs=wanted, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        once = gradients(loss)
        again = gradients(loss, create_graph=True)
        penalty = sum(g.pow(2).sum() for g in again) + 0 * sum(t.sum() for t in wanted)
        bend, both = gradients(penalty), gradients(loss + penalty)
        for what, found in (("to be differentiated", again), ("again", gradients(loss)), ("twice", gradients(loss))):
            for a, b in zip(once, found, strict=True):
                assert_close(b, a, f"gradient {what}, {settings}", 1e-7)
        for a, b, c in zip(once, bend, both, strict=True):
            assert_close(c, a + b, f"gradient with a penalty, {settings}", 1e-7)
