"""Export: `torch.export`, ONNX as onnxruntime runs it, and the test cases of the ONNX standard."""

import copy
import warnings
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import pytest
import torch
from exported import TOLERANCE, in_onnxruntime
from laws import LARGE, assert_close, law, on_vectors_or_images, same_tensors
from subjects import LAYOUTS, Subject
from torch import Tensor, nn

from normzoo.models import Block
from normzoo.norms import (
    BatchNorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    LocalResponseNorm,
    LpNorm,
    Norm,
    RMSNorm,
)

HOSTS = {
    "NC": nn.Linear,
    "NCL": partial(nn.Conv1d, kernel_size=3, padding=1),
    "NCHW": partial(nn.Conv2d, kernel_size=3, padding=1),
}


def activations(subject: Subject, sizes: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    n, c, *positions = sizes
    return subject.input(sizes=(c, n, *positions) if subject.on_weights else sizes, dtype=dtype)


def deployed(subject: Subject, sizes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    """The layer in evaluation after a training step, and an input; one that acts on weights is in a network's block."""
    norm = subject.build(dtype=dtype, num_features=sizes[1])
    module: nn.Module = norm
    x = activations(subject, sizes, dtype)
    if subject.on_weights:
        host: Any = HOSTS[subject.layout](sizes[1], sizes[1])
        module = Block(host.to(dtype), lambda channels: norm, activation=None).to(dtype)
        with torch.no_grad():  # not the weight that was there before the norm
            for p in module.parameters():
                p.add_(torch.randn_like(p), alpha=0.3)
    x.requires_grad_()
    torch.autograd.grad(module(x).square().sum(), x)  # running statistics move, of gradients, too
    return module.eval(), x.detach()


def cases(subject: Subject) -> Iterator[tuple[nn.Module, Tensor]]:
    """With few values and with more than the plain formula takes; images channels-last, too."""
    for sizes in (LAYOUTS[subject.layout], LARGE[subject.layout]):
        module, x = deployed(subject, sizes)
        yield module, x
        if subject.layout == "NCHW":
            yield module, x.contiguous(memory_format=torch.channels_last)


def dynamic(x: Tensor) -> dict[int, Any]:
    """All dimensions but that of channels."""
    return dict.fromkeys([0, *range(2, x.dim())], torch.export.Dim.AUTO)


@pytest.mark.slow
@law(when=on_vectors_or_images)
def test_export(subject: Subject) -> None:
    """`torch.export` gives a program for any number of samples and positions, and changes no buffer."""
    for module, x in cases(subject):
        before = {name: buffer.clone() for name, buffer in module.named_buffers()}
        program = torch.export.export(copy.deepcopy(module), (x,), dynamic_shapes=(dynamic(x),))
        assert same_tensors(dict(module.named_buffers()), before)
        n, c, *positions = x.shape
        for samples, more in ((2, 0), (n, 3), (n + 5, 1)):
            other = activations(subject, (samples, c, *(s + more for s in positions)), x.dtype)
            assert_close(program.module()(other), module(other), f"{samples} samples, {more} more positions")


@pytest.mark.slow
@law(when=on_vectors_or_images)
def test_onnx(subject: Subject) -> None:
    """onnxruntime computes what torch does, for any number of samples and positions."""
    sizes = LAYOUTS[subject.layout]
    module, x = deployed(subject, sizes, torch.float32)
    f = in_onnxruntime(module, x, dynamic(x))
    n, c, *positions = sizes
    for samples, more in ((1, 0), (n, 3), (n + 5, 1)):
        other = activations(subject, (samples, c, *(s + more for s in positions)), torch.float32)
        with torch.no_grad():
            assert_close(f(other), module(other), f"{samples} samples, {more} more positions", TOLERANCE)


# The test cases of the ONNX standard. For each operator a function from the inputs and attributes of the node to its
# outputs, by the layer that computes it.


def with_affine(layer: Norm, weight: Tensor, bias: Tensor | None = None) -> Norm:
    layer.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias}, strict=False)
    return layer


def batch_normalization(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, epsilon: float = 1e-5, training_mode: int = 0
) -> list[Tensor]:
    layer = BatchNorm(len(weight), eps=epsilon).train(bool(training_mode))
    layer.stores_unbiased = False  # as in the standard; torch and this layer store the unbiased variance
    layer.load_state_dict({"running_mean": mean, "running_var": var}, strict=False)
    y = with_affine(layer, weight, bias)(x)
    return [y, layer.running_mean, layer.running_var] if training_mode else [y]


def instance_normalization(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float = 1e-5) -> list[Tensor]:
    return [with_affine(InstanceNorm(len(weight), eps=epsilon), weight, bias)(x)]


def group_normalization(
    x: Tensor, weight: Tensor, bias: Tensor, num_groups: int, epsilon: float = 1e-5
) -> list[Tensor]:
    return [with_affine(GroupNorm(len(weight), num_groups=num_groups, eps=epsilon), weight, bias)(x)]


def layer_normalization(x: Tensor, weight: Tensor, bias: Tensor, axis: int = -1, epsilon: float = 1e-5) -> list[Tensor]:
    return [with_affine(LayerNorm(list(x.shape[axis:]), eps=epsilon), weight, bias)(x)]


def rms_normalization(x: Tensor, weight: Tensor, axis: int = -1, epsilon: float = 1e-5) -> list[Tensor]:
    return [with_affine(RMSNorm(list(x.shape[axis:]), eps=epsilon), weight)(x)]


def lp_normalization(x: Tensor, axis: int = -1, p: int = 2) -> list[Tensor]:
    sample = x.movedim(axis, 0).unsqueeze(0)
    return [LpNorm(x.shape[axis], p=p)(sample).squeeze(0).movedim(0, axis)]


def local_response_normalization(
    x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> list[Tensor]:
    return [LocalResponseNorm(x.shape[1], size, alpha, beta, k=bias)(x)]


def mean_variance_normalization(x: Tensor) -> list[Tensor]:
    return [BatchNorm(x.shape[1], eps=1e-9, affine=False)(x)]


NODES: dict[str, Callable[..., list[Tensor]]] = {
    "BatchNormalization": batch_normalization,
    "GroupNormalization": group_normalization,
    "InstanceNormalization": instance_normalization,
    "LRN": local_response_normalization,
    "LayerNormalization": layer_normalization,
    "LpNormalization": lp_normalization,
    "MeanVarianceNormalization": mean_variance_normalization,
    "RMSNormalization": rms_normalization,
}


@cache
def node_cases() -> list[Any]:
    """The cases of these operators."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numpy, in cases of other operators
        found = collect_testcases(None)
    return [case for case in found if case.model.graph.node[0].op_type in NODES]


@pytest.mark.slow
@pytest.mark.parametrize("operator", NODES)
def test_a_layer_computes_the_operator_of_the_onnx_standard(operator: str) -> None:
    """Within the tolerance of the test case."""
    from onnx.helper import get_attribute_value

    cases = [case for case in node_cases() if case.model.graph.node[0].op_type == operator]
    assert cases
    for case in cases:
        attributes = {a.name: get_attribute_value(a) for a in case.model.graph.node[0].attribute}
        [(inputs, expected)] = case.data_sets
        outputs = NODES[operator](*map(torch.from_numpy, inputs), **attributes)
        for output, value in zip(outputs, expected, strict=False):  # of some, mean and deviation are not returned
            assert torch.allclose(output, torch.from_numpy(value), rtol=case.rtol, atol=case.atol), case.name
