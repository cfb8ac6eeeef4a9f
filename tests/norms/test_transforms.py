"""Forward-mode differentiation, batches of gradients, and tracing: on few values and on many."""

from collections.abc import Iterator

import torch
from exported import without_tracer_warnings
from laws import LARGE, assert_close, law, pure
from subjects import LAYOUTS, C, Subject
from torch import Tensor
from torch.autograd import forward_ad

from normzoo.norms import Norm


def cases(subject: Subject) -> Iterator[tuple[Norm, Tensor]]:
    """The layer with few values and with more than the plain formula takes; images channels-last, too."""
    for sizes in (LAYOUTS[subject.layout], LARGE[subject.layout]):
        x = subject.input(sizes=sizes)
        yield subject.build(num_features=sizes[1]), x
        if subject.layout == "NCHW":
            yield subject.build(num_features=sizes[1]), x.contiguous(memory_format=torch.channels_last)


@law()
def test_forward_mode(subject: Subject) -> None:
    """The product of the Jacobian and a tangent agrees with the gradient, and no buffer keeps a tangent."""
    for layer, x in cases(subject):
        f, parameters = pure(layer)
        inputs = (x.requires_grad_(), *parameters)
        tangents = [torch.randn_like(t) for t in inputs]
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(t.detach(), v) for t, v in zip(inputs, tangents, strict=True)]
            y, dy = forward_ad.unpack_dual(f(*duals))
        expected = f(*inputs)
        assert_close(y, expected.detach())
        back = torch.randn_like(expected)
        gradients = torch.autograd.grad(expected, inputs, back, allow_unused=True, materialize_grads=True)
        forth = torch.zeros((), dtype=x.dtype) if dy is None else (back * dy).sum()
        assert_close(forth, sum(((g * v).sum() for g, v in zip(gradients, tangents, strict=True)), torch.tensor(0.0)))


@law()
def test_batched_gradients(subject: Subject) -> None:
    """A batch of gradients (`is_grads_batched`, `jacobian(vectorize=True)`) gives what one after the other gives."""
    for layer, x in cases(subject):
        f, parameters = pure(layer)
        inputs = (x.requires_grad_(), *parameters)
        y = f(*inputs)
        several = torch.randn(3, *y.shape, dtype=y.dtype)
        batched = torch.autograd.grad(
            f(*inputs), inputs, several, is_grads_batched=True, allow_unused=True, materialize_grads=True
        )
        for i, dy in enumerate(several):
            single = torch.autograd.grad(f(*inputs), inputs, dy, allow_unused=True, materialize_grads=True)
            for together, alone in zip(batched, single, strict=True):
                assert_close(together[i], alone)


@law()
def test_tracing(subject: Subject) -> None:
    """`torch.jit.trace`, with which TensorBoard draws a graph, gives the layer's function, without a warning."""
    for layer, x in cases(subject):
        layer.eval()
        with torch.no_grad():
            with without_tracer_warnings():
                traced = torch.jit.trace(layer, x, check_trace=False)
            other = 0.5 * x + 0.1
            assert_close(traced(other), layer(other))


def test_sizes_lie_on_both_sides_of_the_threshold() -> None:
    """Otherwise the laws here would try one path only."""
    from normzoo.norms._ops.cpu import SMALL

    for layout, sizes in LARGE.items():
        assert torch.Size(LAYOUTS[layout]).numel() <= SMALL < torch.Size(sizes).numel()
    assert C == 8
