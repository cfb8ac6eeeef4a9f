"""Forward-mode differentiation, batches of gradients, ensembles, and tracing: on few values and on many."""

import copy
from collections.abc import Callable, Iterator

import torch
from exported import without_tracer_warnings
from laws import (
    LARGE,
    assert_close,
    assert_same_results,
    few_and_many,
    law,
    of_layer,
    pure,
)
from references import State
from subjects import LAYOUTS, C, Subject
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, stack_module_state, vmap

from normzoo.norms import Norm


def cases(subject: Subject) -> Iterator[tuple[Norm, Tensor]]:
    """The layer with few values and with more than the plain formula takes; images channels-last, too."""
    for x in few_and_many(subject):
        yield subject.build(num_features=x.shape[subject.channel_axis]), x


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

        def projections(*inputs: Tensor, f: Callable[..., Tensor] = f, several: Tensor = several) -> Tensor:
            return (several * f(*inputs)).flatten(1).sum(1)

        rows = torch.autograd.functional.jacobian(projections, inputs, vectorize=True)
        for row, together in zip(rows, batched, strict=True):
            assert_close(row, together)


def ensembles(subject: Subject) -> Iterator[tuple[list[Norm], Tensor]]:
    """Three layers that differ in all parameters, and a batch for each."""
    for layer, x in cases(subject):
        layers = [copy.deepcopy(layer) for _ in range(3)]
        for i, member in enumerate(layers):
            for p in member.parameters():
                p.data.mul_(1 - 0.2 * i)
        yield layers, torch.stack([x, 0.5 * x.flip(0) + 0.1, x * x])


@law()
def test_ensembles(subject: Subject) -> None:
    """`vmap` over layers in training gives each the outputs, gradients and statistics that it has alone."""
    for layers, xs in ensembles(subject):
        layer = copy.deepcopy(layers[0])
        dy = torch.randn(xs[0].shape, generator=torch.Generator().manual_seed(5), dtype=xs.dtype)  # as in `of_layer`

        def loss(
            parameters: State, x: Tensor, buffers: State, layer: Norm = layer, dy: Tensor = dy
        ) -> tuple[Tensor, Tensor]:
            y = functional_call(layer, (parameters, buffers), (x,))
            return (y * dy).sum(), y

        parameters, buffers = stack_module_state(layers)
        transformed = {name: buffer.clone() for name, buffer in buffers.items()}
        slopes, ys = vmap(grad(loss, argnums=(0, 1), has_aux=True), randomness="same")(parameters, xs, transformed)
        # Autograd through the ensemble, as a training loop around it has it.
        leaves = xs.clone().requires_grad_()
        losses, again = vmap(loss, randomness="same")(parameters, leaves, buffers)
        wanted = {"x": leaves, **parameters}
        found = torch.autograd.grad(losses.sum(), [*wanted.values()], allow_unused=True, materialize_grads=True)
        for i, member in enumerate(layers):
            expected = of_layer(member, xs[i])
            for outputs, gradients, state in (
                (ys, {"x": slopes[1], **slopes[0]}, transformed),
                (again, dict(zip(wanted, found, strict=True)), buffers),
            ):
                observed = {f"gradient of {name}": g[i] for name, g in gradients.items()}
                assert_same_results({"output": outputs[i].detach(), **observed}, expected)
                for name, buffer in member.named_buffers():
                    assert_close(state[name][i], buffer, name)


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
