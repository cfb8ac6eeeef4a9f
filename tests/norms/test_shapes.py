"""Shape, dtype and memory format: what goes in comes out."""

import copy
import math
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import product
from typing import Any

import pytest
import torch
from laws import (
    LARGE,
    assert_close,
    assert_helpful,
    assert_same_buffers,
    buffers_of,
    few_and_many,
    law,
    on_activations,
    on_images,
    refusal,
    same_tensors,
    set_axes,
)
from subjects import LAYOUTS, C, Subject, arguments_of, state_of
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from normzoo.errors import InputError


@law()
def test_shape_and_dtype(subject: Subject) -> None:
    """The output has the shape, the dtype and the strides of the input, for all floating dtypes, in both modes."""
    for dtype, training in product((torch.float32, torch.float64, torch.bfloat16, torch.float16), (True, False)):
        for x in few_and_many(subject, dtype):
            for of_layer in {dtype, torch.float32}:  # and narrower or wider activations than the layer
                y = subject.build(dtype=of_layer, num_features=x.shape[subject.channel_axis]).train(training)(x)
                assert (y.shape, y.dtype, y.stride()) == (x.shape, dtype, x.stride())


def outputs_on(subject: Subject, device: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and outputs on a device that computes no values: few of float32, many of bfloat16, in both modes."""
    for sizes, dtype in ((LAYOUTS[subject.layout], torch.float32), (LARGE[subject.layout], torch.bfloat16)):
        with torch.device(device):
            layer = subject.layer(sizes[1])
            x = torch.empty(subject.shape(samples=subject.samples(sizes[0]), sizes=sizes), dtype=dtype)
            for training in (True, False):
                yield x.requires_grad_(), layer.train(training)(x)


@law(when=on_images)
def test_no_values(subject: Subject) -> None:
    """On the meta device and under `FakeTensorMode`, outputs and gradients have the input's shape and dtype."""
    for device, mode in (("meta", nullcontext()), ("cpu", FakeTensorMode())):
        with mode:
            for x, y in outputs_on(subject, device):
                assert (y.shape, y.dtype, y.device) == (x.shape, x.dtype, x.device)
                (dx,) = torch.autograd.grad(y.sum(), x)
                assert (dx.shape, dx.dtype) == (x.shape, x.dtype)


class KernelsOfOneDtype(TorchDispatchMode):
    """Asserts what torch's kernels require on a GPU, which a fake one does not check in all of them."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (torch.ops.aten.native_layer_norm.default, torch.ops.aten.native_group_norm.default):
            assert len({a.dtype for a in args if isinstance(a, Tensor)}) == 1, f"{func} got several dtypes"
        return func(*args, **(kwargs or {}))


# Without a driver, torch 2.8 aborts the process where a fake tensor of a GPU is expanded.
@pytest.mark.skipif(torch.__version__ < "2.9", reason="fake tensors of a GPU need a newer torch, or a driver")
@law()
def test_kernels_of_a_gpu(subject: Subject) -> None:
    """On a fake GPU, narrow inputs pass float32 layers: no kernel gets dtypes that it cannot combine."""
    with FakeTensorMode(), KernelsOfOneDtype():
        for x, y in outputs_on(subject, "cuda"):
            assert (y.shape, y.dtype, y.device) == (x.shape, x.dtype, x.device)


@law(when=on_images)
def test_five_dimensions(subject: Subject) -> None:
    """Volumes (N, C, D, H, W) are positions in a row, or what the formula makes of them where a window slides."""
    layer = subject.build()
    if "s/w" in subject.layer.facts.axes:  # a window in a volume is none in a row: the formula knows better
        for settings in subject.settings:
            layer, x = subject.build(settings), subject.input(sizes=(4, C, 2, 3, 4))
            expected = subject.reference.formula(x, state_of(layer), True, **arguments_of(layer, settings))
            assert_close(layer(x), expected, f"{settings}")
        return
    twin = copy.deepcopy(layer)
    for sizes, memory_format in product(
        ((4, C, 2, 3, 2), (8, C, 4, 8, 10)), (torch.contiguous_format, torch.channels_last_3d)
    ):
        x = subject.input(sizes=sizes)
        y = layer(x.contiguous(memory_format=memory_format))
        assert y.is_contiguous(memory_format=memory_format)
        assert_close(y, twin(x.flatten(2)).view(x.shape))
        assert_same_buffers(layer, twin)


@law()
def test_memory_format(subject: Subject) -> None:
    """Outputs do not depend on strides, and channels-last inputs give channels-last outputs."""
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
def test_empty_batch(subject: Subject) -> None:
    """A batch without samples passes, gives zero gradients and changes no buffer."""
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
def test_one_value(subject: Subject) -> None:
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
def test_one_sample(subject: Subject) -> None:
    """A batch of one sample raises where a variance would be of one value, and gives finite numbers elsewhere."""
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
