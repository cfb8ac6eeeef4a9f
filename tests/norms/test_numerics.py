"""Large means, constant inputs and narrow dtypes: errors stay near those of rounding."""

import copy
import math
from itertools import product

import torch
from laws import assert_close, buffers_of, few_and_many, formats_of, law, of_layer
from subjects import C, Subject, arguments_of, outputs_and_gradients, state_of


@law()
def test_large_mean(subject: Subject) -> None:
    """float32 resolves a mean to 6e-8 of it; the output, in standard deviations, may be off by a few of those."""
    for training, mean, memory_format in product((True, False), (1e4, 1e6), formats_of(subject)):
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


# Sizes of powers of two, on both sides of `SMALL`.
EVEN = {"NC": ((8, C), (64, 512)), "NCL": ((4, C, 16), (64, 32, 16)), "NCHW": ((4, C, 4, 4), (64, 32, 4, 4))}


@law()
def test_gradients_at_a_large_mean(subject: Subject) -> None:
    """All gradients lose as many digits as the output; those of gates, which weigh differences of means, none more.

    All values lie on a coarse grid, so that float32 represents every mean exactly.
    """
    mean = 1024
    for sizes, memory_format in product(EVEN[subject.layout], formats_of(subject)):
        x = subject.input(seed=3, sizes=sizes).mul(8).round() / 8 + mean
        x = x.contiguous(memory_format=memory_format)
        layer = subject.build(dtype=torch.float32, num_features=sizes[1])
        expected = of_layer(copy.deepcopy(layer).double(), x)
        for name, value in of_layer(layer, x.float()).items():
            # A sum of many values of both signs.
            scale = max(expected[name].abs().max().item(), math.sqrt(x.numel() / value.numel()))
            bound = (1 if name.rpartition(" ")[2] in subject.layer.facts.gates else 8) * torch.finfo(torch.float32).eps
            assert_close(value.double() / scale, expected[name] / scale, f"{name}, {sizes}", bound * mean)


@law()
def test_constant_input(subject: Subject) -> None:
    """A constant input gives finite outputs, gradients and running statistics."""
    for value, dtype, training in product((0.0, 3.0, -1e4), (torch.float32, torch.bfloat16), (True, False)):
        both = training and dtype is torch.float32
        for x in few_and_many(subject, dtype) if both else [subject.input(dtype=dtype)]:
            layer = subject.default(x.shape[subject.channel_axis], dtype=dtype).train(training)
            results = of_layer(layer, torch.full_like(x, value))
            assert all(v.isfinite().all() for v in results.values()), f"{value}, {tuple(x.shape)}: {results}"
            assert all(v.isfinite().all() for v in buffers_of(layer).values())


@law()
def test_low_precision(subject: Subject) -> None:
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


@law(when=lambda subject: subject.layer.facts.scales)
def test_large_and_small_scales(subject: Subject) -> None:
    """At standard deviations of 1e15 and 1e-15, outputs and gradients of float32 equal those of float64."""
    for size, x in product((1e15, 1e-15), few_and_many(subject)):
        x = (x * size).float()
        layer = subject.build(dtype=torch.float32, num_features=x.shape[subject.channel_axis])
        expected = of_layer(copy.deepcopy(layer).double(), x.double())
        for name, value in of_layer(layer, x).items():
            unit = expected[name].abs().max()
            assert_close(value.double() / unit, expected[name] / unit, f"{name}, {size}, {tuple(x.shape)}", 1e-4)


@law()
def test_narrow_inputs(subject: Subject) -> None:
    """bfloat16 inputs of a float32 layer: outputs and gradients are those of float64, rounded."""
    for x, training in product(few_and_many(subject, torch.bfloat16), (True, False)):
        layer = subject.build(dtype=torch.float32, num_features=x.shape[subject.channel_axis]).train(training)
        twin = copy.deepcopy(layer).double()
        expected = outputs_and_gradients(
            lambda x, twin=twin: twin(x.double()).to(x.dtype), x, dict(twin.named_parameters())
        )
        for name, value in of_layer(layer, x).items():
            assert value.dtype == (torch.bfloat16 if value.shape == x.shape else torch.float32)
            scale = max(1.0, expected[name].abs().max().item())
            bound = torch.finfo(value.dtype).eps + 1e-4
            error = (value.double() - expected[name].double()) / scale
            assert_close(error, torch.zeros_like(error), f"{name}, {tuple(x.shape)}", bound)
