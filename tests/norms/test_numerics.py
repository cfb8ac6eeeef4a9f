"""Large means, constant inputs and narrow dtypes: errors stay near those of rounding."""

from itertools import product

import torch
from laws import assert_close, buffers_of, law, of_layer
from subjects import Subject, arguments_of, state_of


@law()
def test_large_mean(subject: Subject) -> None:
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
def test_constant_input(subject: Subject) -> None:
    """A constant input gives finite outputs, gradients and running statistics."""
    for value, dtype, training in product((0.0, 3.0, -1e4), (torch.float32, torch.bfloat16), (True, False)):
        layer = subject.default(dtype=dtype).train(training)
        x = torch.full_like(subject.input(dtype=dtype), value)
        results = of_layer(layer, x)
        assert all(v.isfinite().all() for v in results.values()), f"{value}: {results}"
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
