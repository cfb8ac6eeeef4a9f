"""The laws of normalization layers: what `facts` says of a layer is what the layer does, and nothing else.

Every class of `normzoo.norms.layers()` stands before every law in every layout, `(N, C)`, `(N, C, L)` and
`(N, C, H, W)`; a test reads `GroupNorm-NCHW-gradcheck`. A law knows no layer by name: it reads facts, and where a fact
can be false the law is two-sided, observed == declared. A new layer edits nothing here; it needs its formula in
`references/`. `broken.py` holds layers with one bug each, and the law that has to catch it.

A layer that acts on a weight (C, I, *) stands before the same laws: its output channels are the samples N, and all
other axes are positions s.
"""

import copy
import inspect
import math
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
import torch.distributed as dist
from broken import BUGS, Bug
from ranks import TwoRanks
from references import OUT_OF_RANGE, State, reference
from references.starts import start
from subjects import (
    LAYOUTS,
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
from torch.func import functional_call, grad, jvp, vmap
from torch.utils.checkpoint import checkpoint

from normzoo.errors import InputError
from normzoo.norms import Norm, layers
from normzoo.norms._base import keyword_defaults
from normzoo.norms._ops import cpu as kernels
from normzoo.norms.weight._weight import WeightTransform

# torch warns of itself when it loads the rules of forward mode.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors are tiny here: a second thread only waits, and with other work on the machine it does so for long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Law:
    check: Callable[..., None]
    when: Callable[[Subject], bool]
    fixtures: tuple[str, ...]
    per_class: bool
    slow: bool


LAWS: dict[str, Law] = {}


def law(
    *,
    when: Callable[[Subject], bool] = lambda subject: True,
    fixtures: tuple[str, ...] = (),
    per_class: bool = False,
    slow: bool = False,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a law under its function's name.

    Args:
        when: the subjects that it is about, by their facts.
        fixtures: pytest fixtures that it takes after the subject.
        per_class: it does not depend on the layout.
        slow: it takes seconds.
    """

    def register(check: Callable[..., None]) -> Callable[..., None]:
        LAWS[check.__name__.replace("_", "-")] = Law(check, when, fixtures, per_class, slow)
        return check

    return register


# What a law fails with: a claim that does not hold, or torch that refuses.
FAILURES = (AssertionError, RuntimeError)


# What the laws share


def fresh(layer: Norm, x: Tensor) -> Tensor:
    """The layer's output, without a trace in the layer."""
    return copy.deepcopy(layer)(x)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> bool:
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=tolerance, atol=tolerance)


def assert_close(a: Tensor, b: Tensor, what: str = "output", tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(
        a, b, rtol=tolerance, atol=tolerance, check_stride=False, msg=lambda detail: f"{what}: {detail}"
    )


def buffers_of(layer: Norm) -> State:
    return {name: buffer.clone() for name, buffer in layer.named_buffers()}


def same_tensors(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def assert_same_buffers(layer: Norm, other: Norm, tolerance: float = 1e-9) -> None:
    assert buffers_of(layer).keys() == buffers_of(other).keys()
    for name, buffer in layer.named_buffers():
        assert_close(buffer, other.get_buffer(name), name, tolerance)


def of_layer(layer: Norm, x: Tensor) -> dict[str, Tensor]:
    return outputs_and_gradients(layer, x, dict(layer.named_parameters()))


def assert_same_results(a: Mapping[str, Tensor], b: Mapping[str, Tensor], tolerance: float = 1e-9) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert_close(a[name], b[name], name, tolerance)


def pure(layer: Norm) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """The layer as a function of x and its parameters, which leaves the buffers alone; and the parameters."""
    names = [name for name, _ in layer.named_parameters()]

    def f(x: Tensor, *values: Tensor) -> Tensor:
        state = {**dict(zip(names, values, strict=True)), **buffers_of(layer)}
        return functional_call(layer, state, (x,))

    return f, tuple(p.detach().clone().requires_grad_() for p in layer.parameters())


def refusal(layer: Norm, x: Tensor) -> InputError | None:
    """The error with which the layer refuses x; None if it takes x."""
    try:
        assert layer(x).isfinite().all()
    except InputError as error:
        return error
    return None


def set_axes(subject: Subject) -> set[int]:
    """The dimensions over which the layer's statistics run; those of a group or a window count as all."""
    rank, axes = len(LAYOUTS[subject.layout]), subject.layer.facts.axes
    if subject.on_weights:
        return {*(range(1, rank) if "s" in axes else ()), *([0] if "N" in axes else ())}
    positions = list(range(2, rank))
    dims = {"N": [0], "C": [1], "C/G": [1], "s": positions, "s/w": positions}
    return {dim for axis in axes for dim in dims.get(axis, ())}


def on_images(subject: Subject) -> bool:
    return subject.layout == "NCHW"


def on_activations(subject: Subject) -> bool:
    return not subject.on_weights


def is_stateful(subject: Subject) -> bool:
    return subject.layer.facts.stateful


# Shape, dtype, memory format


@law()
def shape_and_dtype(subject: Subject) -> None:
    for dtype, training in product((torch.float32, torch.float64, torch.bfloat16, torch.float16), (True, False)):
        layer = subject.build(dtype=dtype).train(training)
        x = subject.input(dtype=dtype)
        y = layer(x)
        assert (y.shape, y.dtype) == (x.shape, dtype)
        if dtype != torch.float32:  # narrower or wider activations than the layer
            assert subject.build(dtype=torch.float32).train(training)(x).dtype == dtype


@law(when=on_images)
def five_dimensions(subject: Subject) -> None:
    layer = subject.build()
    if "s/w" in subject.layer.facts.axes:  # a window in a volume is none in a row: the formula knows better
        for settings in subject.settings:
            layer, x = subject.build(settings), subject.input(sizes=(4, C, 2, 3, 4))
            expected = subject.reference.formula(x, state_of(layer), True, **arguments_of(layer, settings))
            assert_close(layer(x), expected, f"{settings}")
        return
    twin = copy.deepcopy(layer)
    x = subject.input(sizes=(4, C, 2, 3, 2))
    assert_close(layer(x), twin(x.flatten(2)).view(x.shape))
    assert_same_buffers(layer, twin)


@law()
def memory_format(subject: Subject) -> None:
    for training in (True, False):
        layer = subject.build().train(training)
        x = subject.input()
        y = copy.deepcopy(layer)(x)
        assert y.is_contiguous()
        strided = torch.stack([x, x + 1], dim=-1)[..., 0]
        reversed_axes = x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim())))
        expanded = x[..., :1].expand(x.shape)
        for other in (strided, reversed_axes):
            assert_close(copy.deepcopy(layer)(other), y)
        if expanded.dim() > 2:
            assert_close(copy.deepcopy(layer)(expanded), copy.deepcopy(layer)(expanded.contiguous()))
        if subject.layout == "NCHW":
            pairs = ((x, torch.channels_last), (x.unsqueeze(2), torch.channels_last_3d))
            for settings, (images, memory_format) in product(subject.settings, pairs):
                layer = subject.build(settings).train(training)
                last = images.contiguous(memory_format=memory_format)
                y, out = copy.deepcopy(layer)(x), copy.deepcopy(layer)(last)
                assert out.is_contiguous(memory_format=memory_format), f"{memory_format} is lost"
                assert_close(out, y.view(images.shape))


@law(when=on_activations)
def empty_batch(subject: Subject) -> None:
    for settings, training in product(subject.settings, (True, False)):
        layer = subject.experienced(settings).train(training)
        before = buffers_of(layer)
        x = subject.input(samples=0).requires_grad_()
        y = layer(x)
        assert y.shape == x.shape
        y.sum().backward()
        assert x.grad is not None
        assert all(p.grad is not None and not p.grad.any() for p in layer.parameters())
        assert same_tensors(buffers_of(layer), before), "an empty batch has no statistics"


@law(when=lambda subject: bool(set_axes(subject)))
def one_value(subject: Subject) -> None:
    """A single value has no variance: a layer that subtracts its mean would always return 0, so it raises."""
    shared = set_axes(subject)
    sizes = [1 if dim in shared else 3 for dim in range(len(LAYOUTS[subject.layout]))]
    layer = subject.layer(sizes[subject.channel_axis])
    before = buffers_of(layer)
    error = refusal(layer, torch.ones(sizes))
    assert (error is not None) == subject.layer.facts.centres, error
    if error is not None:
        assert_helpful(error, received=str(tuple(sizes)))
        assert same_tensors(buffers_of(layer), before), "running statistics moved before the error"
    if subject.layer.facts.stateful:
        assert layer.eval()(torch.ones(sizes)).isfinite().all()


@law()
def one_sample(subject: Subject) -> None:
    x = subject.input(samples=1)
    layer = subject.build()
    # Where every channel loses its own mean, the other channels of a group lend it no variance.
    alone = set_axes(subject) - ({1} if subject.layer.facts.cancels_bias else set())
    one_value = math.prod(x.shape[dim] for dim in alone) == 1
    raises = (subject.layer.facts.centres and one_value) or subject.samples(1) > 1
    if raises:
        before = buffers_of(layer)
        with pytest.raises(InputError):
            layer(x)
        assert same_tensors(buffers_of(layer), before)
    else:
        assert layer(x).isfinite().all()
    if subject.layer.facts.stateful or not raises:
        assert layer.eval()(x).isfinite().all()


# Reference and gradients


@law()
def equals_reference(subject: Subject) -> None:
    for what, observed, expected in beside_formula(subject):
        assert_close(observed, expected, what)


@law()
def gradient_of_reference(subject: Subject) -> None:
    """Autograd through the reference, which is detached where the paper says so, is the layer's gradient."""
    for what, observed, expected in gradients_beside_formula(subject):
        assert_close(observed, expected, what)


@law(when=lambda subject: "N" in subject.layer.facts.axes and not subject.on_weights, slow=True)
def large_batch(subject: Subject) -> None:
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


@law(fixtures=("monkeypatch",))
def large_input(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large inputs go another way, in blocks and by hand-written gradients: to the same results, to second order."""
    sizes = {"NC": (300, 64), "NCL": (10, C, 1009), "NCHW": (36, C, 16, 20)}[subject.layout]
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
    """Of a loss, with respect to the input and the parameters."""
    x = x.detach().clone().requires_grad_()
    torch.manual_seed(0)
    wanted = [x, *layer.parameters()]
    (slope,) = torch.autograd.grad(layer(x).pow(3).mean(), x, create_graph=True)
    found = torch.autograd.grad(slope.pow(2).sum(), wanted, allow_unused=True, materialize_grads=True)
    return {f"second derivative {i}": d for i, d in enumerate(found)}


# Fast mode compares one projection of the derivative, and multiplies its tolerance by the count of values: with torch's
# 1e-5 a gradient may be off by a tenth.
GRADIENT_ERROR = 1e-7


@law()
def gradcheck(subject: Subject) -> None:
    for training in (True, False):
        f, parameters = pure(subject.experienced().train(training))
        inputs = subject.input().requires_grad_(), *parameters
        assert torch.autograd.gradcheck(f, inputs, atol=GRADIENT_ERROR, fast_mode=True)


@law()
def gradgradcheck(subject: Subject) -> None:
    for training in (True, False):
        f, parameters = pure(subject.experienced().train(training))
        inputs = subject.input().requires_grad_(), *parameters
        assert torch.autograd.gradgradcheck(f, inputs, atol=GRADIENT_ERROR, fast_mode=True)


# Invariances and moments


@law()
def scales(subject: Subject) -> None:
    layer, x = subject.build(), 10 * subject.input()
    observed = all(close(fresh(layer, a * x), fresh(layer, x), 1e-3) for a in (0.7, 3.0, 50.0))
    assert observed == subject.layer.facts.scales


@law()
def centres(subject: Subject) -> None:
    layer, x = subject.build(), subject.input()
    observed = all(close(fresh(layer, x + c), fresh(layer, x), 1e-6) for c in (-2.0, 0.5, 10.0))
    assert observed == subject.layer.facts.centres


@law(when=on_activations)
def cancels_bias(subject: Subject) -> None:
    layer, x = subject.build(), subject.input()
    bias = torch.linspace(-2, 3, C, dtype=torch.float64).view(C, *[1] * (x.dim() - 2))
    assert close(fresh(layer, x + bias), fresh(layer, x), 1e-6) == subject.layer.facts.cancels_bias


@law(when=lambda subject: bool(subject.layer.facts.axes) and not {"C/w", "s/w"} & set(subject.layer.facts.axes))
def moments(subject: Subject) -> None:
    """Over the declared axes the mean is 0 and the mean square 1; a weight that needs no partner has length 1."""
    facts = subject.layer.facts
    layer = subject.default(**subject.groups)
    layer.drop_activation()
    y = layer(10 * subject.input() + 3)
    dims = set_axes(subject)
    if "C/G" in facts.axes:  # a group is not a dimension yet
        groups = layer.num_groups
        assert isinstance(groups, int)
        y, dims = y.unflatten(1, (groups, -1)), {0} & dims | {2} | {dim + 1 for dim in dims if dim > 1}
    over = sorted(dims)
    values = math.prod(y.shape[dim] for dim in over)
    mean, square = y.mean(over), y.square().mean(over)
    if subject.on_weights and not facts.wants_partner:
        square = square * values
    assert close(mean, torch.zeros_like(mean), 1e-6) == facts.zero_mean
    assert close(square, torch.ones_like(square), 1e-4) == facts.unit_square


@law(when=lambda subject: not set_axes(subject) or bool({"C/w", "s/w"} & set(subject.layer.facts.axes)))
def moments_of_nothing(subject: Subject) -> None:
    """Without axes, or over sliding windows, there is nothing over which a moment could be 0 or 1."""
    assert not subject.layer.facts.zero_mean
    assert not subject.layer.facts.unit_square


@law()
def random(subject: Subject) -> None:
    """Two passes over the same input differ, from the same state, iff random numbers are drawn."""
    layer, x = subject.experienced(), subject.input()
    layer._forward_pre_hooks.clear()
    assert close(fresh(layer, x), fresh(layer, x)) != subject.layer.facts.random
    assert close(fresh(layer.eval(), x), fresh(layer, x)), "evaluation draws nothing"


@law(when=on_activations)
def batch_multiple(subject: Subject) -> None:
    multiple, n = subject.layer.facts.batch_multiple, LAYOUTS[subject.layout][0]
    for samples in range(2 * n, 2 * n + 2 * multiple):
        refused = refusal(subject.experienced(), subject.input(samples=samples)) is not None
        assert refused == (samples % multiple > 0), f"{samples} samples"


@law(per_class=True)
def syncs(subject: Subject) -> None:
    assert ("sync" in keyword_defaults(subject.layer)) == subject.layer.facts.syncs, "there is an argument sync"


@law(when=lambda subject: subject.on_weights, per_class=True)
def reads_input(subject: Subject) -> None:
    host = torch.nn.Linear(5, C).double()
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    layer, y = subject.build(), host(x)
    assert isinstance(layer, WeightTransform)
    assert close(layer.of_input(host, x, y), y) != subject.layer.facts.reads_input


@law()
def independence(subject: Subject) -> None:
    """One value of x moves another value of y exactly when an axis joins the two."""
    layer = subject.build(subject.groups)
    layer.drop_activation()  # which may hide what moves
    axes = set(subject.layer.facts.axes)
    n, c, *positions = LAYOUTS[subject.layout]
    x = subject.input(sizes=(n, c, *[30 if "s/w" in axes else size for size in positions]))
    y = fresh(layer, x)

    def moves(change: tuple[Any, ...], look: tuple[Any, ...]) -> bool:
        """Whether a change of x at one place is seen in y at another."""
        moved = x.clone()
        moved[change] += 1.5
        return not close(fresh(layer, moved)[look], y[look])

    joined = {"C", "C/G", "C/w"} & axes
    assert moves((0,), (slice(1, None),)) == ("N" in axes), "another sample"
    for dim in range(1 if subject.on_weights else 2, x.dim()):
        first = (slice(None),) * dim
        size = x.shape[dim]
        far = moves((*first, 0), (*first, size - 1))
        near = moves((*first, 0), (*first, 1))
        assert (near, far) == (bool({"s", "s/w"} & axes), "s" in axes), f"another position along axis {dim}"
    if not subject.on_weights:
        assert moves((0, 0), (slice(None), 1)) == bool(joined), "the neighbouring channel"
        assert moves((0, 0), (slice(None), C - 1)) == ("C" in axes), "a channel far away"


@law()
def brings_activation(subject: Subject) -> None:
    """Dropping the activation that a layer brings changes it; without one there is nothing to drop."""
    layer, x = subject.build(), subject.input()
    dropped = copy.deepcopy(layer)
    dropped.drop_activation()
    assert close(fresh(dropped, x), fresh(layer, x)) != subject.layer.facts.brings_activation
    # What remains is odd around its own shift, which no activation is.
    if subject.layer.facts.brings_activation:
        assert_close(fresh(dropped, x) + fresh(dropped, -x), 2 * fresh(dropped, torch.zeros_like(x)))


@law(when=lambda subject: subject.on_weights)
def wants_partner(subject: Subject) -> None:
    """A weight whose length grows with its fan-in leaves the scale of activations to another layer."""
    lengths = []
    for samples in (4, 64):
        layer, x = subject.default(), subject.input(samples=samples)
        for _ in range(32):  # a power iteration that begins at random first finds its vector
            weight = layer(x)
        lengths.append(weight.flatten(1).norm(dim=1).mean())
    assert (lengths[1] > 2 * lengths[0]).item() == subject.layer.facts.wants_partner


# Training, evaluation, state


@law()
def buffers_move_in_training_only(subject: Subject) -> None:
    layer, facts = subject.build(), subject.layer.facts
    start = {**buffers_of(layer), **{n: p.clone() for n, p in layer.named_parameters()}}
    moving = buffers_of(layer).keys() - set(facts.constants)
    assert bool(moving) == facts.stateful, "a layer has buffers that are no constants iff it has running statistics"
    of_layer(layer, subject.input())
    trained = buffers_of(layer)
    assert all(not torch.equal(trained[n], start[n]) for n in moving), "a buffer stood still in training"
    assert all(torch.equal(trained[n], start[n]) for n in facts.constants), "a constant moved"
    of_layer(layer.eval(), subject.input(seed=1))
    assert same_tensors(buffers_of(layer), trained), "a buffer moved in evaluation"
    assert all(torch.equal(p, start[n]) for n, p in layer.named_parameters()), "a forward pass moved a parameter"


@law(when=is_stateful)
def nan_batch(subject: Subject) -> None:
    """NaN is not hidden in the output, and does not stay: the running statistics are as finite as before."""
    for bad in (math.nan, math.inf):
        layer = subject.experienced()
        x = subject.input(seed=4)
        x[0, 0] = bad
        assert not of_layer(layer, x)["output"].isfinite().all()
        assert all(b.isfinite().all() for b in layer.buffers()), f"{bad} stays in the running statistics"
        before = buffers_of(layer)
        assert of_layer(layer, subject.input(seed=5))["output"].isfinite().all()
        moving = before.keys() - set(subject.layer.facts.constants)
        assert all(not torch.equal(before[n], layer.get_buffer(n)) for n in moving), "the next batch moved nothing"


@law(when=lambda subject: subject.layer.facts.stateful and not subject.on_weights)
def freeze(subject: Subject) -> None:
    """Frozen, a layer computes in training what it does in evaluation, learns, and stands still, until it is thawed."""
    for settings in subject.settings:
        layer = subject.experienced(settings)
        if not any(True for _ in layer.buffers()):
            with pytest.raises(InputError) as raised:
                layer.freeze()
            assert_helpful(raised.value, received="freeze()")
            continue
        before, x = buffers_of(layer), subject.input()
        expected = of_layer(copy.deepcopy(layer).eval(), x)
        assert layer.freeze() is layer
        layer.eval().train()
        assert_same_results(of_layer(layer, x), expected)
        assert same_tensors(buffers_of(layer), before), "a frozen buffer moved"
        layer.freeze(False)
        layer(x)
        assert not same_tensors(buffers_of(layer), before), "a thawed layer stands still"


@law(when=lambda subject: bool(subject.layer.facts.gates))
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
            assert inwards.any()
            assert not inwards.all()
            expected = torch.where(inwards, inside, torch.zeros_like(inside))
            assert_close(at[outside][f"gradient of {name}"], expected, f"gradient at {outside}", 2e-2)


@law(when=lambda subject: subject.layer.facts.takes_reference)
def reference_batch(subject: Subject) -> None:
    """Without a reference batch evaluation raises; the first batch of training is the reference."""
    layer = subject.layer(C).double()
    error = refusal(layer.eval(), subject.input())
    assert error is not None
    assert_helpful(error, received="reference")
    state = state_of(layer)
    x = subject.input(seed=1)
    y = layer.train()(x)
    assert_close(y, subject.reference.formula(x, state, True, **arguments_of(layer, {})), "the reference itself")
    before = buffers_of(layer)
    for name, buffer in before.items():
        assert_close(buffer, state[name].to(buffer.dtype), name)
    layer(subject.input(seed=2))
    assert same_tensors(buffers_of(layer), before), "the reference is chosen once"
    assert refusal(layer.eval(), subject.input()) is None


@law()
def train_differs(subject: Subject) -> None:
    layer, x = subject.experienced(), subject.input()
    trained = fresh(layer, x)
    assert close(layer.eval()(x), trained) != subject.layer.facts.train_differs


@law()
def folds(subject: Subject) -> None:
    """Evaluation is a scale and a shift per channel; or of a weight, the same weight every time, whatever the input."""
    layer, x = subject.experienced().eval(), subject.input()
    if subject.on_weights:
        observed = torch.equal(layer(x), layer(x)) and not subject.layer.facts.reads_input
    else:
        at_zero, at_one = layer(torch.zeros_like(x)), layer(torch.ones_like(x))
        alike = all(close(v, v.mean([0, *range(2, x.dim())], keepdim=True).expand_as(v)) for v in (at_zero, at_one))
        observed = alike and close(layer(x), at_zero + (at_one - at_zero) * x)
    assert observed == subject.layer.facts.folds


@law()
def state(subject: Subject) -> None:
    for settings in subject.settings:
        layer = subject.experienced(settings).eval()
        x = subject.input()
        y = layer(x)
        empty = subject.layer(C, **settings).double().eval()
        empty.load_state_dict(layer.state_dict(), strict=True)
        copies = {
            "state_dict": empty,
            "deepcopy": copy.deepcopy(layer),
            "pickle": pickle.loads(pickle.dumps(layer)),
        }
        for way, other in copies.items():
            assert torch.equal(other.eval()(x), y), way
            before = y.clone()
            other.train()(x)  # must not reach back into the layer it came from
            assert torch.equal(layer(x), before), way


# Compilers, transforms, checkpointing


def compiled_equals_eager(subject: Subject, backend: str, settings: Mapping[str, Any] | None = None) -> None:
    from torch._dynamo.utils import counters

    for training in (True, False):
        torch._dynamo.reset()
        counters.clear()
        eager = subject.experienced(settings, dtype=torch.float32).train(training)
        eager._forward_pre_hooks.clear()  # a graph cannot seed the generator
        twin = copy.deepcopy(eager)
        compiled = torch.compile(twin, fullgraph=True, backend=backend)
        parameters = dict(twin.named_parameters())
        graphs = []
        for seed in (0, 1):
            x = subject.input(seed, dtype=torch.float32)
            observed = outputs_and_gradients(compiled, x, parameters)
            assert_same_results(observed, of_layer(eager, x), 1e-4)
            assert_same_buffers(twin, eager, 1e-5)
            graphs.append(counters["stats"]["unique_graphs"])
        assert graphs[0] == graphs[1] == 1, f"graphs after each call: {graphs}"


@law(when=on_images)
def compile_without_codegen(subject: Subject) -> None:
    compiled_equals_eager(subject, "aot_eager")


@law(when=on_images, slow=True)
def compile_settings(subject: Subject) -> None:
    for settings in subject.reference.settings:
        compiled_equals_eager(subject, "aot_eager", settings)


@law(slow=True)
def compile_with_inductor(subject: Subject) -> None:
    compiled_equals_eager(subject, "inductor")


@law()
def func_grad(subject: Subject) -> None:
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
def func_jvp(subject: Subject) -> None:
    """Forward mode, in evaluation, is the directional difference quotient."""
    layer, x = subject.experienced().eval(), subject.input()
    v = subject.input(seed=3)
    tangent = jvp(layer, (x,), (v,))[1]
    h = 1e-5
    assert_close(tangent, (layer(x + h * v) - layer(x - h * v)) / (2 * h), tolerance=1e-6)


@law()
def func_vmap(subject: Subject) -> None:
    """`vmap` over a stack of inputs, in evaluation; and in training where no running statistics move in place."""
    layer = subject.experienced()
    xs = torch.stack([subject.input(seed) for seed in range(3)])
    for training in (True, False):
        if training and subject.layer.facts.stateful:
            continue
        layer.train(training)
        assert_close(vmap(layer)(xs), torch.stack([layer(x) for x in xs]))


def checkpointed(subject: Subject, settings: Mapping[str, Any]) -> Iterator[tuple[Norm, Norm, Mapping[str, Any], Any]]:
    for reentrant in (False, True):
        plain = subject.experienced(settings)
        repeated = copy.deepcopy(plain)
        x = subject.input()
        expected = of_layer(plain, x)
        x = x.requires_grad_()
        y = checkpoint(repeated, x, use_reentrant=reentrant)
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        y.backward(dy)
        gradients = {f"gradient of {n}": p.grad for n, p in repeated.named_parameters()}
        yield plain, repeated, expected, {"output": y.detach(), "gradient of x": x.grad, **gradients}


@law()
def checkpointing(subject: Subject) -> None:
    """Activation checkpointing repeats the forward pass, and the running statistics still count the batch once."""
    for settings in subject.settings:
        for plain, repeated, _, _ in checkpointed(subject, settings):
            assert_same_buffers(repeated, plain)


@law()
def checkpointed_gradient(subject: Subject) -> None:
    """Activation checkpointing changes no gradient."""
    for settings in subject.settings:
        for _, _, expected, observed in checkpointed(subject, settings):
            assert_same_results(observed, expected)


@law()
def gradients_again(subject: Subject) -> None:
    """A forward pass has one gradient: asked for again, to be differentiated again, or along with its own penalty."""
    sizes = LAYOUTS[subject.layout], {"NC": (42, C), "NCL": (10, C, 1009), "NCHW": (36, C, 16, 20)}[subject.layout]
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


# Numerics


@law()
def large_mean(subject: Subject) -> None:
    """float32 resolves a mean to 6e-8 of it; the output, in standard deviations, may be off by a few of those."""
    formats = [torch.contiguous_format] + [torch.channels_last] * (subject.layout == "NCHW" and not subject.on_weights)
    for training, mean, memory_format in product((True, False), (1e4, 1e6), formats):
        x = (subject.input(seed=2) + mean).float().contiguous(memory_format=memory_format)
        layer = subject.default(dtype=torch.float32)
        if not training and subject.layer.facts.stateful:
            for _ in range(40):  # running statistics near those of x
                layer(x)
        state = state_of(layer)
        y = layer.train(training)(x)
        expected = subject.reference.formula(x.double(), state, training, **arguments_of(layer, {}))
        error = (y.double() - expected).abs().max().item() / max(1.0, expected.abs().max().item())
        bound = 8 * torch.finfo(torch.float32).eps * mean
        assert error < bound, f"mean {mean:g}, training={training}: error {error:.2g}, bound {bound:.2g}"
        for name, buffer in layer.named_buffers():
            off = (buffer.double() - state[name].double()).abs() / state[name].double().abs().clamp_min(1.0)
            assert (off < bound).all(), f"{name} at mean {mean:g}: error {off.max():.2g}, bound {bound:.2g}"


@law()
def constant_input(subject: Subject) -> None:
    for value, dtype, training in product((0.0, 3.0, -1e4), (torch.float32, torch.bfloat16), (True, False)):
        layer = subject.default(dtype=dtype).train(training)
        x = torch.full_like(subject.input(dtype=dtype), value)
        results = of_layer(layer, x)
        assert all(v.isfinite().all() for v in results.values()), f"{value}: {results}"
        assert all(v.isfinite().all() for v in buffers_of(layer).values())


@law()
def low_precision(subject: Subject) -> None:
    """Narrow inputs, narrow layers, autocast: only the output is rounded, statistics are float32."""
    for dtype, way, training in product(
        (torch.bfloat16, torch.float16), ("input", "layer", "autocast", "autocast-input"), (True, False)
    ):
        layer = subject.build(dtype=torch.float32)
        layer = (layer.to(dtype) if way == "layer" else layer).train(training)
        x = (subject.input() + 20).to(torch.float32 if way == "autocast" else dtype)
        state = state_of(layer)
        expected = subject.reference.formula(x.double(), state, training, **arguments_of(layer, {}))
        with torch.autocast("cpu", dtype=dtype, enabled=way.startswith("autocast")):
            y = layer(x)
        assert y.dtype == x.dtype
        # Rounding y, and in narrow parameters the scale and the shift before it.
        tolerance = (4 if way == "layer" else 1) * torch.finfo(y.dtype).eps + 1e-4
        assert_close(y.double(), expected, f"output, {dtype} {way}", tolerance)
        for name, buffer in layer.named_buffers():
            assert not buffer.is_floating_point() or buffer.dtype == torch.float32, f"{name} is {buffer.dtype}, {way}"
            assert_close(buffer.double(), state[name].double(), f"{name}, {dtype} {way}", 1e-4)


# Ranks


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoRanks]:
    pool = TwoRanks(tmp_path_factory.mktemp("ranks"))
    yield pool
    pool.close()


def of_rank(layer: Norm, x: Tensor, dy: Tensor, v: Tensor, ranks: int = 1) -> dict[str, Tensor]:
    """What one rank sees: outputs, buffers, first and second derivatives for its part of the loss.

    Distributed training takes the mean of the ranks' losses; so each is as many times its part as there are ranks, and
    what comes back is divided.
    """
    x = x.requires_grad_()
    y = layer(x)
    dy = ranks * dy
    parameters = dict(layer.named_parameters())
    wanted = [x, *parameters.values()]
    first = torch.autograd.grad((y * dy).sum(), wanted, retain_graph=True)
    (slope,) = torch.autograd.grad((y * dy).sum(), x, create_graph=True)
    slope = slope / ranks
    bend = (slope * v).sum() + slope.pow(2).sum()
    bend = bend + 0 * sum(t.sum() for t in wanted)  # a layer that is linear in all of them has no second derivative
    second = torch.autograd.grad(bend, wanted, allow_unused=True, materialize_grads=True)
    names = ["x", *parameters]
    return {
        "y": y.detach(),
        **{f"buffer {n}": b for n, b in layer.named_buffers()},
        **{f"first {n}": d / ranks for n, d in zip(names, first, strict=True)},
        **{f"second {n}": d for n, d in zip(names, second, strict=True)},
    }


def assert_ranks_equal_one(pool: TwoRanks, layer: Norm, x: Tensor, cut: int, tolerance: float = 1e-8) -> None:
    """Two ranks, of which the first has `cut` samples, see what one would with all."""
    dy, v = (torch.randn(x.shape, generator=torch.Generator().manual_seed(s), dtype=x.dtype) for s in (6, 7))
    expected = of_rank(copy.deepcopy(layer), x.clone(), dy, v)
    halves = [(t[:cut].clone(), t[cut:].clone()) for t in (x, dy, v)]
    a, b = pool.run(of_rank, (layer, layer), *halves, (2, 2))
    for name, value in expected.items():
        kind, _, what = name.partition(" ")
        if kind == "buffer":
            assert_close(a[name], value, f"{name} of rank 0", tolerance)
            assert_close(b[name], value, f"{name} of rank 1", tolerance)
        elif kind == "y" or what == "x":
            assert_close(torch.cat([a[name], b[name]]), value, name, tolerance)
        else:
            assert_close(a[name] + b[name], value, name, tolerance)


@law(when=lambda subject: "N" in subject.layer.facts.axes and not subject.on_weights, fixtures=("two_ranks",))
def ranks(subject: Subject, two_ranks: TwoRanks) -> None:
    facts = subject.layer.facts
    x = subject.input()
    alone = subject.experienced()
    with pytest.raises(AssertionError):
        assert_ranks_equal_one(two_ranks, alone, x, cut=2)
    if facts.syncs:
        for settings in subject.settings:
            layer = subject.experienced({"sync": True, **settings})
            for cut in (1,) if settings else (1, 3, 0, len(x)):
                assert_ranks_equal_one(two_ranks, layer, x, cut)


@law(when=lambda subject: subject.layer.facts.syncs and subject.layer.facts.takes_reference, fixtures=("two_ranks",))
def reference_over_ranks(subject: Subject, two_ranks: TwoRanks) -> None:
    """Two ranks take the reference that one would with all samples: outputs, derivatives, constants."""
    layer, x = subject.layer(C, sync=True).double(), subject.input()
    for cut in (1, 3, 0, len(x)):
        assert_ranks_equal_one(two_ranks, layer, x, cut)


@contextmanager
def in_step() -> Iterator[None]:
    """Ranks agree on every collective before it runs: where they part they fail, and neither wait nor crash."""
    honest = {name: getattr(dist, name) for name in ("all_reduce", "broadcast")}

    def agreed(name: str) -> Callable[..., Any]:
        def run(tensor: Tensor, *arguments: Any, **named: Any) -> Any:
            operation = arguments[:1] if name == "all_reduce" else ()
            agree(f"{name} {tuple(tensor.shape)} {tensor.dtype} {operation}")
            return honest[name](tensor, *arguments, **named)

        return run

    try:
        for name in honest:
            setattr(dist, name, agreed(name))
        yield
        agree("nothing more")
    finally:
        for name, function in honest.items():
            setattr(dist, name, function)


def agree(call: str) -> None:
    calls = [""] * dist.get_world_size()
    dist.all_gather_object(calls, call)
    assert len(set(calls)) == 1, f"the ranks run {calls}"


def of_step(layer: Norm, x: Tensor) -> tuple[State, str]:
    """The buffers after a step of training on one of two ranks; or what the layer has against x."""
    with in_step():
        try:
            return of_lone_step(layer, x), ""
        except InputError as error:
            return {}, str(error)


def of_lone_step(layer: Norm, x: Tensor) -> State:
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    (ranks * layer(x.requires_grad_()).sum()).backward()  # of what distributed training takes the mean
    return buffers_of(layer)


@law(when=lambda subject: on_images(subject) and subject.layer.facts.syncs, fixtures=("two_ranks",))
def ranks_of_other_sizes(subject: Subject, two_ranks: TwoRanks) -> None:
    """Ranks whose images differ in size: every value counts as much as any other, and all ranks know the same."""
    layer = subject.layer(C, sync=True).double()
    images = subject.input(0, sizes=(1, C, 2, 2)) + 3, subject.input(1, sizes=(3, C, 9, 7))
    (a, _), (b, _) = two_ranks.run(of_step, (layer, layer), images)
    assert a
    for name, buffer in a.items():
        assert_close(b[name], buffer, f"{name} of rank 1")
    if "momentum" in keyword_defaults(subject.layer) and subject.layer.facts.batch_multiple == 1:
        # To statistics over the batch it is all the same which values stand in one image.
        values = torch.cat([x.movedim(1, 0).flatten(1) for x in images], 1)
        expected = of_lone_step(copy.deepcopy(layer), values[None, :, None])
        for name, buffer in a.items():
            assert_close(buffer, expected[name], name)


@law(when=lambda subject: on_images(subject) and subject.layer.facts.syncs, fixtures=("two_ranks",))
def ranks_of_one_position(subject: Subject, two_ranks: TwoRanks) -> None:
    """What one rank refuses, all refuse: none is left to wait."""
    layer = subject.layer(C, sync=True).double()
    x = subject.input(sizes=(2, C, 3, 3))
    (_, of_point), (_, of_image) = two_ranks.run(of_step, (layer, layer), (x[:, :, :1, :1].clone(), x))
    assert bool(of_point) == bool(of_image)


@law(when=lambda subject: on_images(subject) and subject.layer.facts.syncs, fixtures=("two_ranks",))
def ranks_of_other_ways(subject: Subject, two_ranks: TwoRanks) -> None:
    """A large input goes another way than a small one or an empty one, and the same collectives lie on each."""
    layer = subject.build({"sync": True}, dtype=torch.float32)
    sizes = (36, C, 16, 20)
    assert math.prod(sizes) > kernels.SMALL
    for offset, samples in ((0.5, 2), (0.5, 0), (1e3, 2)):
        x = (subject.input(sizes=sizes) + offset).float()
        two_ranks.run(of_step, (layer, layer), (x, subject.input(samples=samples).float()))


def of_nothing(layer: Norm, x: Tensor) -> tuple[Tensor, State]:
    y = layer(x.requires_grad_())
    y.sum().backward()
    return y.detach(), buffers_of(layer)


@law(when=lambda subject: subject.layer.facts.syncs, fixtures=("two_ranks",))
def empty_ranks(subject: Subject, two_ranks: TwoRanks) -> None:
    """A batch that is empty on all ranks leaves the running statistics alone, as one empty batch does."""
    layer, x = subject.experienced({"sync": True}), subject.input(samples=0)
    for y, buffers in two_ranks.run(of_nothing, (layer, layer), (x, x)):
        assert y.shape == x.shape
        assert same_tensors(buffers, buffers_of(layer))


# Arguments, documentation, errors


def assert_helpful(error: InputError, received: str) -> None:
    message = str(error)
    assert received in message, f"the message lacks what was received, {received}: {message}"
    remedy = r"\b(use|take|build|give|convert|call|lower|raise|move|need|default|defaults|divisors|choose|pass)\b"
    assert re.search(remedy, message), f"the message lacks a remedy: {message}"


@law(per_class=True)
def builds_for_any_width(subject: Subject) -> None:
    for features in (1, 2, 3, 7, 12, 64, 100, 257):
        layer = subject.layer(features)
        assert layer.num_features == features
        assert str(features) in repr(layer)
    arguments = list(inspect.signature(subject.layer).parameters.values())
    assert arguments[0].name == "num_features"
    assert all(a.kind is a.KEYWORD_ONLY and a.default is not a.empty for a in arguments[1:])


@law(per_class=True)
def starts_as_the_paper_says(subject: Subject) -> None:
    for settings in subject.settings:
        layer = subject.layer(C, **settings).double()
        for name, tensor in layer.state_dict().items():
            if name == "u" and subject.on_weights:  # any direction, of length 1
                tensor = tensor.norm()
                expected: float | Tensor | None = 1.0
            else:
                expected = start(subject.name, name, arguments_of(layer, settings))
            assert expected is not None, f"say where {name} starts in tests/helpers/references/starts.py"
            expected = torch.as_tensor(expected, dtype=tensor.dtype).expand(tensor.shape)
            assert_close(tensor, expected, f"{name} of {settings}", 1e-6)


@law(per_class=True)
def facts_and_documentation(subject: Subject) -> None:
    facts, doc = subject.layer.facts, " ".join(inspect.cleandoc(subject.layer.__doc__ or "").split())
    path = subject.layer.__module__.removeprefix("normzoo.norms.").split(".")
    assert facts.family == (path[0] if len(path) == 2 else "own"), "the family is the folder"
    assert doc, "a layer has a docstring"
    equations = re.findall(r"`([^`]*=[^`]*)`", doc)
    assert any(facts.formula.startswith(e) for e in equations), f"no equation of {equations} opens {facts.formula!r}"
    for name in ("num_features", *keyword_defaults(subject.layer)):
        assert f"{name}:" in doc, f"the docstring lacks {name}"
    assert facts.paper is not None or facts.family == "pointwise", "only a layer that computes nothing has no paper"
    if facts.paper is not None:
        assert facts.paper.title in doc
        assert f"{facts.paper.year}" in doc
        assert facts.paper.arxiv is None or f"arXiv {facts.paper.arxiv}" in doc
    unknown = set(facts.exceptions) - set(LAWS)
    assert not unknown, f"exceptions to laws that do not exist: {unknown}"
    assert all(facts.exceptions.values()), "an exception has a reason"


@law(per_class=True)
def wrong_arguments(subject: Subject) -> None:
    for argument, values in OUT_OF_RANGE.items():
        for value in values:
            if argument == "num_features":
                with pytest.raises(InputError) as raised:
                    subject.layer(value)
            elif argument in keyword_defaults(subject.layer):
                with pytest.raises(InputError) as raised:
                    subject.layer(C, **{argument: value})
            else:
                continue
            assert_helpful(raised.value, received=f"{argument}={value!r}")


@law(per_class=True)
def whole_numbers(subject: Subject) -> None:
    """What takes a number takes 1 for 1.0, and 0 for 0.0 where 1 is out of range."""
    x = subject.input(dtype=torch.float32)
    for argument, default in keyword_defaults(subject.layer).items():
        if not isinstance(default, float):
            continue
        outputs = []
        for kind in (int, float):
            try:
                layer = subject.layer(C, **{argument: kind(1)})
            except InputError:
                layer = subject.layer(C, **{argument: kind(0)})
            outputs.append(fresh(subject.ready(layer, torch.float32), x))
        assert_close(outputs[0], outputs[1], argument)


@law(per_class=True)
def ranges_are_tested(subject: Subject) -> None:
    """Every number that a layer takes has values out of its range, and the laws know some."""
    defaults = keyword_defaults(subject.layer)
    numbers = {n for n, v in defaults.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    assert numbers <= set(OUT_OF_RANGE), "add values out of range to tests/helpers/references/arguments.py"


@law()
def wrong_inputs(subject: Subject) -> None:
    x = subject.input(dtype=torch.float32)
    narrower = x.narrow(subject.channel_axis, 0, C - 1)
    inputs = [narrower, torch.cat([x, x], dim=subject.channel_axis), x.to(torch.int64), x > 0, torch.ones(C), x.sum()]
    inputs += [x[..., :0]] if x.dim() > 2 else []
    for training in (True, False):
        layer = subject.experienced(dtype=torch.float32).train(training)
        before = buffers_of(layer)
        for wrong in inputs:
            with pytest.raises(InputError) as raised:
                layer(wrong)
            received = str(tuple(wrong.shape)) if wrong.is_floating_point() else str(wrong.dtype)
            assert_helpful(raised.value, received)
        assert same_tensors(buffers_of(layer), before), "an error moved the running statistics"


@law(when=is_stateful)
def state_outlives_errors(subject: Subject) -> None:
    """A batch that the layer refuses, as a whole or in its last part, has moved no statistics."""
    for settings in subject.settings:
        for samples in range(1, 10):
            layer = subject.experienced(settings)
            before = buffers_of(layer)
            if refusal(layer, subject.input(samples=samples)) is not None:
                assert same_tensors(buffers_of(layer), before), f"{samples} samples, {settings}"


@law(per_class=True)
def dense(subject: Subject) -> None:
    layer = subject.layer(C)
    error = refusal(layer, torch.randn(C, 6) if subject.on_weights else torch.randn(6, C))
    assert (error is None) == subject.layer.facts.dense, error
    if error is not None:
        assert_helpful(error, received="(6, 8)")


# The tests


def cases() -> list[Any]:
    """Every law for every subject that it is about, as pytest parameters."""
    found = []
    for subject, (name, one) in product(subjects(), LAWS.items()):
        if (one.per_class and subject.layout != "NCHW") or not one.when(subject):
            continue
        marks = [pytest.mark.slow] if one.slow else []
        if name in subject.layer.facts.exceptions:
            reason = subject.layer.facts.exceptions[name]
            marks.append(pytest.mark.xfail(strict=True, reason=reason, raises=FAILURES))
        where = subject.name if one.per_class else f"{subject.name}-{subject.layout}"
        found.append(pytest.param(subject, name, id=f"{where}-{name}", marks=marks))
    return found


@pytest.mark.parametrize("subject, name", cases())
def test_law(subject: Subject, name: str, request: pytest.FixtureRequest) -> None:
    LAWS[name].check(subject, *map(request.getfixturevalue, LAWS[name].fixtures))


ORACLES = [
    pytest.param(subject, name, id=f"{subject.name}-{subject.layout}-{name}")
    for subject in subjects()
    for name in oracles_of(subject)
]


@pytest.mark.parametrize("subject, name", ORACLES)
def test_equals_the_implementation_of_others(subject: Subject, name: str) -> None:
    oracle = subject.reference.oracles[name]
    pytest.importorskip(oracle.package)
    for what, observed, expected in beside_oracle(subject, name):
        assert_close(observed, expected, what, oracle.tolerance)


def test_a_shared_argument_has_one_default() -> None:
    """Switching the class on the command line keeps the arguments that both classes take."""
    defaults: dict[str, dict[str, Any]] = {}
    for name, layer in layers().items():
        for argument, default in keyword_defaults(layer).items():
            defaults.setdefault(argument, {})[name] = default
    split = {argument: found for argument, found in defaults.items() if len(set(map(repr, found.values()))) > 1}
    assert not split


def test_a_layer_without_a_reference_is_told_to_write_one() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"write its formula .* in tests/helpers/references/"):
        reference("UnheardNorm")


def bugs() -> list[Any]:
    marks = {name: [pytest.mark.slow] if one.slow else [] for name, one in LAWS.items()}
    return [pytest.param(bug, id=bug.layer.__name__, marks=marks[bug.law]) for bug in BUGS]


@pytest.mark.parametrize("bug", bugs())
def test_a_law_catches_the_bug(bug: Bug, request: pytest.FixtureRequest) -> None:
    one = LAWS[bug.law]
    fixtures = [*map(request.getfixturevalue, one.fixtures)]
    honest = Subject(bug.of, bug.layout, bug.of.__name__)
    sick = Subject(bug.layer, bug.layout, bug.of.__name__)
    assert one.when(honest)
    assert one.when(sick)
    one.check(honest, *fixtures)
    with pytest.raises(bug.raises):
        one.check(sick, *fixtures)
