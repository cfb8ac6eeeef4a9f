"""Large means, constant inputs and narrow dtypes: errors stay near those of rounding."""

import copy
import math
from itertools import product
from typing import Any

import torch
from torch import Tensor

from normzoo.testing._compare import assert_close, buffers_of, learned, of_layer, outputs_and_gradients, short
from normzoo.testing._law import expect, law
from normzoo.testing._subject import Subject, few_and_many, formats_of

EPS = torch.finfo(torch.float32).eps
CASES = {
    "input": "of a {} input of a float32 layer",
    "layer": "of a {} layer",
    "autocast": "under autocast to {}",
    "autocast-input": "under autocast, of a {} input",
}


@law(
    observed="float32 loses the input's differences where its mean is large",
    tried="(layer(x + 1e4) - copy.deepcopy(layer).double()(x.double() + 1e4)).abs().max()",
    means="Where activations have a mean far from 0, the variance is noise, or negative: outputs jump or are NaN.",
    remedy="Subtract the mean first: (x - mean).square().mean(), or x.var(correction=0), in place of "
    "x.square().mean() - mean.square().",
    redraws=True,
)
def large_mean(subject: Subject) -> None:
    """float32 resolves a mean to 6e-8 of it; the output, in standard deviations, may be off by a few of those."""
    formats = formats_of(subject) if subject.of_zoo else [torch.contiguous_format]  # torch's GroupNorm fails the other
    for training, mean, memory_format in product((True, False), (1e4, 1e6), formats):
        x = (subject.input(seed=2) + mean).float().contiguous(memory_format=memory_format)
        layer = subject.default(dtype=torch.float32)
        if not training and subject.facts.stateful:
            for _ in range(40):  # running statistics near those of x
                layer(x)
        expected, state = subject.exact(layer.train(training), x)
        error = (layer(x).double() - expected).abs().max().item() / max(1.0, expected.abs().max().item())
        bound = (8 if subject.of_zoo else 64) * EPS * mean  # torch's GroupNorm needs more than 8
        where = f"at mean {mean:g} in {'training' if training else 'evaluation'}"
        expect(error < bound, f"{where}, outputs are off by {error:.2g}; float32 explains {bound:.2g}")
        for name, buffer in layer.named_buffers():
            off = (buffer.double() - state[name].double()).abs() / state[name].double().abs().clamp_min(1.0)
            expect((off < bound).all(), f"{where}, {name} is off by {off.max():.2g}; float32 explains {bound:.2g}")


@law(
    observed="gradients lose more digits at a large mean than the output does",
    tried="layer((x + 1024).requires_grad_()).square().sum().backward()",
    means="Training is noisier than the values it sees.",
    remedy="Compute with x - mean, and combine statistics before they scale x.",
    redraws=True,
    binds="zoo",
)
def gradients_at_a_large_mean(subject: Subject) -> None:
    """All gradients lose as many digits as the output; those of gates, which weigh differences of means, none more.

    All values lie on a coarse grid, so that float32 represents every mean exactly.
    """
    mean, c = 1024, subject.features
    # Sizes of powers of two, on both sides of the number of values that the plain formula takes.
    wide, many = (64, subject.width(512)), (64, subject.width(32))
    even = {"NC": ((8, c), wide), "NCL": ((4, c, 16), (*many, 16)), "NCHW": ((4, c, 4, 4), (*many, 4, 4))}
    for sizes, memory_format in product(even[subject.layout], formats_of(subject)):
        x = subject.input(seed=3, sizes=sizes).mul(8).round() / 8 + mean
        x = x.contiguous(memory_format=memory_format)
        layer = subject.build(dtype=torch.float32, num_features=sizes[1])
        expected = of_layer(copy.deepcopy(layer).double(), x)
        for name, value in of_layer(layer, x.float()).items():
            # A sum of many values of both signs.
            scale = max(expected[name].abs().max().item(), math.sqrt(x.numel() / value.numel()))
            bound = (1 if name.rpartition(" ")[2] in subject.facts.gates else 8) * EPS
            assert_close(value.double() / scale, expected[name] / scale, f"{name}, {sizes}", bound * mean)


@law(
    observed="a constant input gives numbers that are not finite",
    tried="layer(torch.zeros_like(x).requires_grad_()).sum().backward()",
    means="A dead channel, a black image or padding has no variance: NaN reaches all weights in one step.",
    remedy="Add eps under the root: x / (var + eps).sqrt(); the gradient of sqrt and of norm at 0 is infinite, too.",
    explained_by=("buffers-move-in-training-only",),
)
def constant_input(subject: Subject) -> None:
    """A constant input gives finite outputs, gradients and running statistics."""
    for value, dtype, training in product((0.0, 3.0, -1e4), (torch.float32, torch.bfloat16), (True, False)):
        both = training and dtype is torch.float32
        for x in few_and_many(subject, dtype) if both else [subject.input(dtype=dtype)]:
            layer = subject.default(x.shape[subject.channel_axis], dtype=dtype).train(training)
            for name, result in {**of_layer(layer, torch.full_like(x, value)), **buffers_of(layer)}.items():
                expect(
                    result.isfinite().all(),
                    f"where all of x is {value:g} ({dtype}), the {name} is not finite",
                    f"x = torch.full({tuple(x.shape)}, {value}, requires_grad=True); layer(x).sum().backward(); x.grad",
                )


@law(
    observed="narrow inputs, narrow layers or autocast lose more than the rounding of the output",
    tried="layer(x.bfloat16() + 20) - layer(x.bfloat16().float() + 20)",
    means="With precision='bf16-mixed' statistics are noise where the mean is large, and small updates of running "
    "statistics are lost.",
    remedy="Take statistics of x.float(), keep running statistics in float32, and end with .to(x.dtype).",
    binds="norms",
    redraws=True,
    explained_by=("shape-and-dtype",),
)
def low_precision(subject: Subject) -> None:
    """Narrow inputs, narrow layers, autocast: only the output is rounded, statistics are float32."""
    for dtype, way, training in product((torch.bfloat16, torch.float16), CASES, (True, False)):
        layer = subject.build(dtype=torch.float32)
        layer = (layer.to(dtype) if way == "layer" else layer).train(training)
        x = (subject.input() + 20).to(torch.float32 if way == "autocast" else dtype)
        expected, state = subject.exact(layer, x)
        with torch.autocast("cpu", dtype=dtype, enabled=way.startswith("autocast")):
            y = layer(x)
        expect(y.dtype == x.dtype, f"{CASES[way].format(short(dtype))}, the output is {short(y.dtype)}")
        # Rounding y, and in narrow parameters the scale and the shift before it.
        tolerance = (4 if way == "layer" else 1) * torch.finfo(y.dtype).eps + 1e-4
        assert_close(y.double(), expected, f"output, {CASES[way].format(short(dtype))}", tolerance)
        for name, buffer in layer.named_buffers():
            expect(
                not buffer.is_floating_point() or buffer.dtype == torch.float32,
                f"{CASES[way].format(short(dtype))}, {name} is {buffer.dtype}",
            )
            assert_close(buffer.double(), state[name].double(), f"{name}, {CASES[way].format(short(dtype))}", 1e-4)


@law(
    when=lambda subject: subject.facts.scales,
    observed="at scales of 1e15 or 1e-15 the results are wrong",
    tried="layer(1e15 * x)",
    means="Where activations explode or vanish, the layer that should help fails.",
    remedy="Use 1 / var.sqrt(), not var.rsqrt(), whose gradient is the cube of it and underflows.",
    redraws=True,
    binds="zoo",
)
def large_and_small_scales(subject: Subject) -> None:
    """At standard deviations of 1e15 and 1e-15, outputs and gradients of float32 equal those of float64."""
    for size, x in product((1e15, 1e-15), few_and_many(subject)):
        x = (x * size).float()
        layer = subject.build(dtype=torch.float32, num_features=x.shape[subject.channel_axis])
        expected = of_layer(copy.deepcopy(layer).double(), x.double())
        for name, value in of_layer(layer, x).items():
            unit = expected[name].abs().max()
            assert_close(value.double() / unit, expected[name] / unit, f"{name}, {size}, {tuple(x.shape)}", 1e-4)


@law(
    observed="of bfloat16 inputs, outputs or gradients are off by more than their rounding",
    tried="layer(x.bfloat16())",
    means="Mixed precision trains another layer.",
    remedy="Compute in float32 from x.float() to .to(x.dtype).",
    binds="zoo",
    redraws=True,
    explained_by=("shape-and-dtype", "low-precision"),
)
def narrow_inputs(subject: Subject) -> None:
    """bfloat16 inputs of a float32 layer: outputs and gradients are those of float64, rounded."""
    for x, training in product(few_and_many(subject, torch.bfloat16), (True, False)):
        layer = subject.build(dtype=torch.float32, num_features=x.shape[subject.channel_axis]).train(training)
        twin = copy.deepcopy(layer).double()

        def rounded(x: Tensor, twin: Any = twin) -> Tensor:
            return twin(x.double()).to(x.dtype)

        expected = outputs_and_gradients(rounded, x, learned(twin))
        for name, value in of_layer(layer, x).items():
            dtype = torch.bfloat16 if value.shape == x.shape else torch.float32
            expect(value.dtype == dtype, f"the {name} is {value.dtype}")
            scale = max(1.0, expected[name].abs().max().item())
            bound = torch.finfo(value.dtype).eps + 1e-4
            error = (value.double() - expected[name].double()) / scale
            assert_close(error, torch.zeros_like(error), f"{name}, {tuple(x.shape)}", bound)
