"""Shapes: of the output, and of inputs with one sample, one value or none."""

import copy
import math
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import product

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from normzoo.errors import InputError
from normzoo.testing._compare import assert_close, buffers_of, refusal, same_tensors
from normzoo.testing._law import assert_helpful, expect, law
from normzoo.testing._subject import Subject, on_activations, set_axes


@law(
    observed="a forward or backward pass in training fails",
    means="No network can train with it.",
    remedy="Compute with torch's operations on x, for any number of axes after (N, C): over = [0, *range(2, x.dim())].",
)
def forward_pass(subject: Subject) -> None:
    """A step of training keeps the shape, leaves the input as it is, and no graph in the buffers."""
    layer, x = subject.default(dtype=torch.float32), subject.input(dtype=torch.float32)
    before, twin = x.clone(), copy.deepcopy(layer)
    torch.manual_seed(0)
    y = layer(x)
    expect(
        isinstance(y, Tensor),
        f"the layer returns {type(y).__name__}, no tensor",
        "type(layer(x))",
        "Return the normalized x alone.",
    )
    expect(
        y.shape == x.shape,
        f"the output of an input {tuple(x.shape)} is {tuple(y.shape)}",
        "layer(x).shape",
        "Give what is one value per channel the axes of x: weight.view(-1, *[1] * (x.dim() - 2)).",
        "The layers after it get another shape, which they may take for another batch.",
    )
    expect(
        torch.equal(x, before),
        f"the layer writes into its input: x moved by {(x - before).abs().max().item():.2g}",
        "before = x.clone(); layer(x); (x - before).abs().max()",
        "Write x = x - mean in place of x -= mean or x.sub_(mean): other layers, a shortcut among them, still use x.",
        "What else uses x, such as a shortcut, gets other values.",
    )
    torch.manual_seed(0)
    expect(
        torch.equal(twin(x), y),
        "from the same state and torch.manual_seed, two passes over x differ",
        "torch.manual_seed(0); y = copy.deepcopy(layer)(x); torch.manual_seed(0); copy.deepcopy(layer)(x) - y",
        "Draw by torch.rand_like and the like, not by numpy or random.",
        "No run repeats another, and a resumed run does not continue it.",
    )
    expect(y.isfinite().all(), "the output of ordinary values is not finite")
    layer(x.requires_grad_()).sum().backward()
    for name, buffer in layer.named_buffers():
        expect(
            not buffer.requires_grad,
            f"{name} is part of the graph of the step that updated it",
            f"layer(x.requires_grad_()); layer.{name}.requires_grad",
            f"Update it without a gradient: with torch.no_grad(): self.{name}.lerp_(mean, momentum).",
            "Every step keeps the graphs of all before it: memory grows, and backward or copy.deepcopy raises.",
        )


def outputs_on(subject: Subject, device: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and outputs on a device that computes no values: few of float32, many of bfloat16, in both modes."""
    narrow = torch.bfloat16 if subject.is_norm else torch.float32
    for sizes, dtype in ((subject.sizes, torch.float32), (subject.many, narrow)):
        with torch.device(device):
            layer = subject.layer(sizes[1])
            x = torch.empty(subject.shape(samples=subject.samples(sizes[0]), sizes=sizes), dtype=dtype)
            for training in (True, False):
                yield x.requires_grad_(), layer.train(training)(x)


@law(
    where="once",
    observed="the layer does not run where tensors have no values, on the meta device",
    tried="layer.to('meta')(x.to('meta'))",
    means="It makes a tensor on a device of its own, or reads a value into Python: then it fails on a GPU, or waits "
    "for it in every step; torch.compile and torch.export break.",
    remedy="Create tensors with x.new_zeros(...), or in __init__ as buffers; use torch.where in place of if.",
    explained_by=("shape-and-dtype", "registered"),
)
def no_values(subject: Subject) -> None:
    """On the meta device and under `FakeTensorMode`, outputs and gradients have the input's shape and dtype."""
    for device, mode in (("meta", nullcontext()), ("cpu", FakeTensorMode())):
        with mode:
            for x, y in outputs_on(subject, device):
                expect(
                    (y.shape, y.dtype, y.device) == (x.shape, x.dtype, x.device),
                    f"of {x.dtype} on {x.device}, {tuple(x.shape)}, the layer makes {y.dtype} on {y.device}, "
                    f"{tuple(y.shape)}",
                )
                (dx,) = torch.autograd.grad(y.sum(), x)
                expect((dx.shape, dx.dtype) == (x.shape, x.dtype), f"the gradient is {dx.dtype}, {tuple(dx.shape)}")


@law(
    when=lambda subject: subject.layout != "NC",
    observed="turned around, the positions of the input give other values than the output turned around",
    tried="(copy.deepcopy(layer)(x.flip(-1)) - copy.deepcopy(layer)(x).flip(-1)).abs().max()",
    means="Channels are taken for positions, or positions for channels: the layer normalizes what does not belong "
    "together.",
    remedy="Move axes by permute or movedim, not by view or reshape.",
    redraws=True,
    explained_by=("strides",),
)
def flipped(subject: Subject) -> None:
    """Positions have no order, but for parameters that have some."""
    layer, x = subject.default(), subject.input()
    if any(math.prod(p.shape[2:]) > 1 for p in layer.parameters()):
        return
    over = list(range(2, x.dim()))
    assert_close(copy.deepcopy(layer)(x.flip(over)), copy.deepcopy(layer)(x).flip(over))


@law(
    when=on_activations,
    observed="the layer does not take a batch without samples",
    tried="layer(x[:0])",
    means="Where a rank, or a routed expert, gets no samples, training ends, or NaN gets into the running statistics.",
    remedy="if x.shape[0] == 0: return x * self.weight.view(...) before statistics are taken and updated.",
    binds="zoo",
)
def empty_batch(subject: Subject) -> None:
    """A batch without samples passes, gives zero gradients and changes no buffer."""
    for settings, training in product(subject.settings, (True, False)):
        layer = subject.experienced(settings).train(training)
        before = buffers_of(layer)
        x = subject.input(samples=0).requires_grad_()
        y = layer(x)
        expect(y.shape == x.shape, f"the output is {tuple(y.shape)}")
        y.sum().backward()
        expect(x.grad is not None, "the input gets no gradient")
        expect(
            all(p.grad is not None and not p.grad.any() for p in layer.parameters()), "a parameter's gradient is not 0"
        )
        expect(same_tensors(buffers_of(layer), before), "an empty batch moves the running statistics")


@law(
    when=lambda subject: bool(set_axes(subject)),
    observed="the layer takes a single value per statistic",
    tried="layer(torch.ones(1, layer.num_features))",
    means="A single value has no variance: the output is its bias, whatever the input, and nothing is learned.",
    remedy="Raise an InputError that names the shape and what to do; normzoo.norms._checks.require_variance does.",
)
def one_value(subject: Subject) -> None:
    """A single value has no variance: a layer that subtracts its mean would always return 0, so it raises."""
    shared = set_axes(subject)
    sizes = [1 if dim in shared else 3 for dim in range(len(subject.sizes))]
    layer = subject.layer(sizes[subject.channel_axis])
    before = buffers_of(layer)
    error = refusal(layer, torch.ones(sizes))
    expect((error is not None) == subject.facts.centres, f"of an input of shape {tuple(sizes)}: {error or 'no error'}")
    if error is not None:
        assert_helpful(error, received=str(tuple(sizes)))
        expect(same_tensors(buffers_of(layer), before), "running statistics moved before the error")
    if subject.facts.stateful:
        expect(layer.eval()(torch.ones(sizes)).isfinite().all(), "in evaluation, a single value gives NaN")


@law(
    observed="a batch of one sample gives NaN",
    tried="layer(x[:1])",
    means="The last batch of an epoch may hold one sample: then NaN gets into the loss, and stays in the running "
    "statistics.",
    remedy="Take the variance with correction=0 (unbiased=False), whose count of values may be 1; or raise an "
    "InputError before anything is updated.",
    explained_by=("constant-input",),
)
def one_sample(subject: Subject) -> None:
    """A batch of one sample raises where a variance would be of one value, and gives finite numbers elsewhere."""
    x, layer = subject.input(samples=1), subject.build()
    before = buffers_of(layer)
    # Where every channel loses its own mean, the other channels of a group lend it no variance.
    alone = set_axes(subject) - ({1} if subject.facts.cancels_bias else set())
    one_value = math.prod(x.shape[dim] for dim in alone) == 1
    raises = (subject.facts.centres and one_value) or subject.samples(1) > 1
    error = refusal(layer, x, InputError if subject.declares else Exception)
    expect(not subject.declares or (error is not None) == raises, f"of a batch of one sample: {error or 'no error'}")
    if error is not None and subject.declares:
        expect(same_tensors(buffers_of(layer), before), "the layer refuses a batch that has moved its statistics")
    expect(all(b.isfinite().all() for b in layer.buffers()), "a batch of one sample leaves NaN in the statistics")
    if subject.facts.stateful or error is None or subject.layout != "NC":
        error = refusal(layer.eval(), x, InputError if subject.declares else Exception)
        expect(
            error is None or raises,
            f"in evaluation, a batch of one sample raises {type(error).__name__}: {error}",
            "layer.eval()(x[:1])",
            "Keep the axis of samples, which squeeze() removes.",
            "The network predicts nothing for a single sample.",
        )
