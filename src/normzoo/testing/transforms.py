"""`torch.func`, forward-mode differentiation, batches of gradients and ensembles."""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, stack_module_state, vmap

from normzoo.testing._compare import State, assert_close, assert_same_results, buffers_of, of_layer, pure
from normzoo.testing._law import law
from normzoo.testing._subject import Subject, built_with_inputs


@law(
    observed="torch.func.grad differs from autograd, or raises",
    tried="torch.func.grad(lambda x: copy.deepcopy(layer)(x).square().sum())(x)",
    means="Per-sample gradients, influence functions and functional optimizers do not work.",
    remedy="Give an autograd.Function setup_context and vmap; do not assign tensors to self in forward.",
    explained_by=("gradcheck",),
    binds="zoo",
)
def func_grad(subject: Subject) -> None:
    """`torch.func.grad` with respect to x, and with respect to the parameters alone, equals autograd."""
    for training in (True, False):
        layer = subject.experienced().train(training)
        parameters = {n: p.detach() for n, p in layer.named_parameters()}

        def loss(x: Tensor, parameters: State, buffers: State, layer: Any = layer) -> Tensor:
            return functional_call(layer, {**parameters, **buffers}, (x,)).pow(3).sum()

        x = subject.input()
        plain_x = x.clone().requires_grad_()
        plain = {n: p.clone().requires_grad_() for n, p in parameters.items()}
        wanted = {"x": plain_x, **plain}
        slopes = torch.autograd.grad(
            loss(plain_x, plain, buffers_of(layer)), [*wanted.values()], allow_unused=True, materialize_grads=True
        )
        expected = dict(zip(wanted, slopes, strict=True))
        assert_close(grad(loss)(x, parameters, buffers_of(layer)), expected["x"], "gradient of x")
        if parameters:
            # x is not an argument: a layer that looks at x alone does not see that it is being differentiated.
            found = grad(partial(loss, x))(parameters, buffers_of(layer))
            for name, value in found.items():
                assert_close(value, expected[name], f"gradient of {name}")


@law(
    observed="forward-mode differentiation in evaluation differs from the difference quotient",
    tried="torch.func.jvp(layer.eval(), (x,), (torch.ones_like(x),))",
    means="Jacobian-vector products do not work.",
    remedy="Compute with torch's operations; give an autograd.Function a jvp.",
    explained_by=("gradcheck", "func-grad"),
    binds="zoo",
)
def func_jvp(subject: Subject) -> None:
    """Forward mode, in evaluation, is the directional difference quotient."""
    layer, x = subject.experienced().eval(), subject.input()
    v = subject.input(seed=3)
    tangent = jvp(layer, (x,), (v,))[1]
    h = 1e-5
    assert_close(tangent, (layer(x + h * v) - layer(x - h * v)) / (2 * h), tolerance=1e-6)


@law(
    observed="vmap over a stack of inputs differs from one after the other, or raises",
    tried="torch.vmap(layer.eval())(torch.stack([x, 2 * x]))",
    means="Ensembles and per-sample gradients do not work.",
    remedy="Branch on shapes, never on values; use torch.where.",
    binds="zoo",
    redraws=True,
    explained_by=("func-grad",),
)
def func_vmap(subject: Subject) -> None:
    """`vmap` over a stack of inputs, in evaluation; and in training where no running statistics move in place."""
    layer = subject.experienced()
    xs = torch.stack([subject.input(seed) for seed in range(3)])
    for training in (True, False):
        if training and subject.facts.stateful:
            continue
        layer.train(training)
        assert_close(vmap(layer)(xs), torch.stack([layer(x) for x in xs]))


@law(
    observed="forward-mode differentiation disagrees with the gradient, or raises",
    tried="torch.autograd.functional.jvp(layer, x, torch.ones_like(x), strict=False)",
    means="Forward gradients and Jacobian-vector products do not work.",
    remedy="Compute with torch's operations; give an autograd.Function a jvp.",
    binds="zoo",
    explained_by=("gradcheck", "func-jvp"),
)
def forward_mode(subject: Subject) -> None:
    """The product of the Jacobian and a tangent agrees with the gradient, and no buffer keeps a tangent."""
    for layer, x in built_with_inputs(subject):
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


@law(
    observed="a batch of gradients differs from one after the other, or raises",
    tried="y = layer(x.requires_grad_()); "
    "torch.autograd.grad(y, x, torch.stack([y, y]).detach(), is_grads_batched=True)",
    means="Jacobians and Hessians by vectorize=True do not work.",
    remedy="Compute with torch's operations; a backward of your own must not use out= or in-place operations.",
    binds="zoo",
    explained_by=("gradcheck",),
)
def batched_gradients(subject: Subject) -> None:
    """A batch of gradients (`is_grads_batched`, `jacobian(vectorize=True)`) gives what one after the other gives."""
    for layer, x in built_with_inputs(subject):
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


def ensembles_of(subject: Subject) -> Iterator[tuple[list[Any], Tensor]]:
    """Three layers that differ in all parameters, and a batch for each."""
    for layer, x in built_with_inputs(subject):
        layers = [copy.deepcopy(layer) for _ in range(3)]
        for i, member in enumerate(layers):
            for p in member.parameters():
                p.data.mul_(1 - 0.2 * i)
        yield layers, torch.stack([x, 0.5 * x.flip(0) + 0.1, x * x])


@law(
    observed="vmap over layers in training differs from each alone, or raises",
    tried="torch.func.stack_module_state([layer, copy.deepcopy(layer)])",
    means="Ensembles cannot be trained at once; torch's own BatchNorm cannot, either.",
    remedy="Derive from normzoo.norms.BatchNorm and override what differs; update buffers by torch's in-place "
    "operations on tensors of their own shape.",
    binds="zoo",
    redraws=True,
    explained_by=("gradcheck", "func-grad"),
)
def ensembles(subject: Subject) -> None:
    """`vmap` over layers in training gives each the outputs, gradients and statistics that it has alone."""
    for layers, xs in ensembles_of(subject):
        layer = copy.deepcopy(layers[0])
        dy = torch.randn(xs[0].shape, generator=torch.Generator().manual_seed(5), dtype=xs.dtype)  # as in `of_layer`

        def loss(
            parameters: State, x: Tensor, buffers: State, layer: Any = layer, dy: Tensor = dy
        ) -> tuple[Tensor, Tensor]:
            y = functional_call(layer, (parameters, buffers), (x,))
            return (y * dy).sum(), y

        parameters, buffers = stack_module_state(layers)
        transformed = {name: buffer.clone() for name, buffer in buffers.items()}
        slopes, ys = vmap(grad(loss, argnums=(0, 1), has_aux=True), randomness="same")(parameters, xs, transformed)
        # Autograd through the ensemble, as a training loop around it has it.
        leaves = xs.clone().requires_grad_()
        losses, again = vmap(loss, randomness="same")(parameters, leaves, buffers)
        wanted = {"x": leaves, **{name: p for name, p in parameters.items() if p.requires_grad}}
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
