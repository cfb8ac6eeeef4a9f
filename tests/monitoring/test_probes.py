"""Probes: what they see of a running network, that they change nothing, and that nothing of them remains."""

import copy
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import TwoRanks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from normzoo import norms
from normzoo.errors import InputError
from normzoo.models import MLP
from normzoo.monitoring.layers import (
    feature_axis,
    find,
    is_activation,
    is_compiled,
    is_norm,
    is_weighted,
    named_layers,
    of_kind,
)
from normzoo.monitoring.probe import Probe, first_tensor
from normzoo.norms import Norm

X = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
HOOKS = [f"_{kind}{use}" for kind in ("forward_hooks", "forward_pre_hooks") for use in ("", "_with_kwargs")]
HOOKS += ["_forward_hooks_always_called", "_backward_hooks", "_backward_pre_hooks"]


class Boom(Exception):
    """What goes wrong on purpose."""


class Crossed(nn.Module):
    """Runs in another order than that in which its layers were registered, and keeps what they put out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.last = nn.Linear(3, 2)
        self.never = nn.Linear(3, 3)
        self.block = nn.Sequential(nn.Linear(3, 3), norms.BatchNorm(3), nn.ReLU(inplace=True))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        self.kept = [x]
        for layer in (*self.block, self.last):
            self.kept.append(layer(self.kept[-1]))
        return self.kept[-1]


REGISTERED = ["last", "never", "block", "block.0", "block.1", "block.2"]
EXECUTED = ["block.0", "block.1", "block.2", "last"]


class Around(nn.Module):
    """Calls its one layer in any way."""

    def __init__(self, layer: nn.Module, run: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.layer = layer.double()
        self.run = run

    def forward(self, x: Tensor) -> Any:
        return self.run(self.layer, x)


class Returns(nn.Module):
    """Puts out what a function makes of its arguments."""

    def __init__(self, make: Callable[..., Any]) -> None:
        super().__init__()
        self.make = make

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.make(*args, **kwargs)


def keep(module: nn.Module, x: Tensor) -> Tensor:
    """Reads a whole tensor, before somebody writes over it."""
    return x.clone()


def everything(model: nn.Module, layers: Any = "*") -> Probe:
    return Probe(model, layers, input=keep, output=keep, gradient=keep)


def names(probe: Probe) -> list[str]:
    return [visit.name for visit in probe.visits]


def hooks(*where: nn.Module | Tensor) -> int:
    """All that hangs on modules and those within them, and on tensors."""
    modules = [module for one in where if isinstance(one, nn.Module) for module in one.modules()]
    on_modules = sum(len(getattr(module, name)) for module in modules for name in HOOKS)
    return on_modules + sum(len(one._backward_hooks or ()) for one in where if isinstance(one, Tensor))


# Which layers


def test_visits_come_in_the_order_of_execution() -> None:
    net = Crossed()
    with Probe(net, "*") as probe:
        net(X)
        net(X)
    assert list(probe.layers) == REGISTERED
    assert names(probe) == 2 * EXECUTED
    assert [visit.call for visit in probe.visits] == 4 * [0] + 4 * [1]
    assert all(visit.module is net.get_submodule(visit.name) for visit in probe.visits)
    assert all(visit.input is visit.output is visit.gradient is None for visit in probe.visits), "nobody reads"


@pytest.mark.parametrize(
    "layers,expected",
    [
        ("*", REGISTERED),
        ("last", ["last"]),
        ("block.*", ["block.0", "block.1", "block.2"]),
        ("bl?ck.?", ["block.0", "block.1", "block.2"]),
        ("*e*", ["never"]),
        ("?ast", ["last"]),
        (Norm, ["block.1"]),
        (norms.BatchNorm, ["block.1"]),
        (nn.Linear, ["last", "never", "block.0"]),
        (["block.2", "last", "l*"], ["last", "block.2"]),
        ((nn.ReLU, nn.Linear), ["last", "never", "block.0", "block.2"]),
        ((Norm, "*.0", nn.ReLU), ["block.0", "block.1", "block.2"]),
        ("Linear", ["last", "never", "block.0"]),
        ("torch.nn.Linear", ["last", "never", "block.0"]),
        ("normzoo.norms.BatchNorm", ["block.1"]),
        ("Norm", ["block.1"]),
        ("Batch*", ["block.1"]),
        (["ReLU", "last"], ["last", "block.2"]),
    ],
    ids=str,
)
def test_patterns_of_names_and_classes_find_layers_in_the_order_of_registration(
    layers: Any, expected: list[str]
) -> None:
    net = Crossed()
    assert find(net, layers) == {name: net.get_submodule(name) for name in expected}
    assert list(find(net, layers)) == list(Probe(net, layers).layers) == expected


def test_norms_are_tapped_where_nothing_is_said_and_a_mapping_is_taken_as_it_is() -> None:
    net = Crossed()
    assert Probe(net).layers == find(net, Norm)
    with Probe(net, {"whole": net, "relu": net.block[2]}) as probe:
        net(X)
    assert names(probe) == ["whole", "relu"]


@pytest.mark.parametrize(
    "layers,said",
    [
        ("blok.0", ["layers='blok.0'", "there are block.0"]),
        ("LAST", ["layers='LAST'", "there are last"]),
        (["last", "nver"], ["layers='nver'", "there are never"]),
        (nn.BatchNorm1d, ["layers='BatchNorm1d'", "there are BatchNorm"]),
        ((nn.Linear, nn.LeakyReLU), ["layers='LeakyReLU'", "there are ReLU"]),
        ("xyz", ["layers='xyz'", "there are last, never, block and others"]),
        ("Liner", ["layers='Liner'", "there are Linear"]),
        ("numpy.Linear", ["layers='numpy.Linear'"]),
        ("Module", ["layers='Module'"]),
    ],
    ids=str,
)
def test_what_matches_nothing_is_named_with_what_there_is(layers: Any, said: list[str]) -> None:
    rule = ["matches none of the network's 6 modules", "the name of a module, in which * matches any", "or its class"]
    for attempt in (find, Probe):
        with pytest.raises(InputError) as caught:
            attempt(Crossed(), layers)
        assert all(part in str(caught.value) for part in (*said, *rule))


def test_a_network_without_norms_or_without_layers_is_told_so() -> None:
    with pytest.raises(InputError, match="layers='Norm' matches none of the network's 1 .* there are Linear"):
        Probe(nn.Sequential(nn.Linear(1, 1)))
    with pytest.raises(InputError, match="none of the network's 0 modules.* there are none"):
        Probe(nn.Linear(1, 1), "*")


# What is read


def attention(layer: nn.Module, x: Tensor) -> Tensor:
    """Of one head, by hand."""
    q, k, v = nn.functional.linear(x, layer.in_proj_weight, layer.in_proj_bias).chunk(3, -1)  # type: ignore[arg-type]
    return layer.out_proj((q @ k.T / q.shape[1] ** 0.5).softmax(-1) @ v)  # type: ignore[operator]


def affine(layer: nn.Module, x: Tensor) -> Tensor:
    return x @ layer.weight.T + layer.bias  # type: ignore[operator]


def tripled(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x).mul_(3).relu_()


def by_18(y: Tensor) -> Tensor:
    return 18 * y.relu()


def none(y: Tensor) -> None:
    """No gradient at all."""


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "all of a tensor": lambda x: x.view(2, 6),
    "a part": lambda x: x[1:, ::2],
    "transposed": lambda x: x.T,
    "a view of a view": lambda x: x.T[1:].unsqueeze(1),
    "of a tensor in another order": lambda x: x.T.clone()[1:],
}
Pair = namedtuple("Pair", "label,y")
# Layer, how it runs up to a tensor y' of which the loss is |y'|², what it puts out by hand, what the loss' gradient is.
READ: dict[str, tuple[Any, Any, Any, Any]] = {
    "positional": (nn.Linear(3, 3), lambda m, x: m(x), affine, lambda y: 2 * y),
    "keyword": (nn.Linear(3, 3), lambda m, x: m(input=x), affine, lambda y: 2 * y),
    "then in place": (nn.Linear(3, 3), lambda m, x: m(x).relu_(), affine, lambda y: 2 * y.relu()),
    "then twice in place": (nn.Linear(3, 3), tripled, affine, by_18),
    "itself in place": (nn.ReLU(inplace=True), lambda m, x: m(x.clone()), lambda m, x: x.relu(), lambda y: 2 * y),
    "a view": (nn.Flatten(0), lambda m, x: m(1 * x) * 2, lambda m, x: x.flatten(), lambda y: 8 * y),
    "a view of the input, in place": (nn.Flatten(0), lambda m, x: m(1 * x).mul_(2), lambda m, x: x.view(-1), none),
    "a view of a viewed input, in place": (
        nn.Flatten(0),
        lambda m, x: m((1 * x).view(4, 3)).mul_(2),
        lambda m, x: x.view(-1),
        none,
    ),
    "a view of numbers of another type, in place": (
        Returns(lambda x: torch.view_as_real(torch.complex(x, x))),
        lambda m, x: m(x).mul_(2),
        lambda m, x: torch.stack([x, x], -1),
        none,
    ),
    "a view of what is used otherwise": (
        Returns(lambda x: ((h := 2 * x).T, 5 * h.sum())),
        lambda m, x: torch.cat([one.flatten() for one in m(x)]),
        lambda m, x: 2 * x.T,
        lambda y: 2 * y,
    ),
    **{
        f"{name}, in place": (Returns(lambda x, view=view: view(2 * x)), tripled, lambda m, x, v=view: v(2 * x), by_18)
        for name, view in VIEWS.items()
    },
    "nothing done": (nn.Identity(), lambda m, x: m(x) + m(x), lambda m, x: x, lambda y: 8 * y),
    "late in the arguments": (
        Returns(lambda n, pair, *, scale: n * pair[1] * scale),
        lambda m, x: m(2, (None, x), scale=x),
        lambda m, x: 2 * x * x,
        lambda y: 2 * y,
    ),
    "a tuple": (Returns(lambda x: ("a", (2 * x, x))), lambda m, x: m(x)[1][0], lambda m, x: 2 * x, lambda y: 2 * y),
    "a named tuple": (Returns(lambda x: Pair("a", 2 * x)), lambda m, x: m(x).y, lambda m, x: 2 * x, lambda y: 2 * y),
    "a dict": (
        Returns(lambda batch: {"n": 1, "y": [3 * batch["x"]]}),
        lambda m, x: m({"none": None, "x": x})["y"][0],
        lambda m, x: 3 * x,
        lambda y: 2 * y,
    ),
    "attention": (nn.MultiheadAttention(3, 1), lambda m, x: m(x, x, x)[0], attention, lambda y: 2 * y),
    "a bystander": (nn.Linear(3, 3), lambda m, x: (m(x), 2 * x)[1], affine, none),
    "no gradient": (nn.Linear(3, 3), lambda m, x: x + m(x.detach()).detach(), affine, none),
}


@pytest.mark.parametrize("case", READ)
def test_what_is_read_equals_what_is_computed_by_hand(case: str) -> None:
    layer, run, output, gradient = READ[case]
    net, x = Around(layer, run), X.clone().requires_grad_()
    if case == "no gradient":
        net.layer.requires_grad_(False)
        net.run = lambda m, x: x + m(x.detach())
    with everything(net, "layer") as probe:
        net(x).square().sum().backward()
    y = output(net.layer, X).detach()
    for visit in probe.visits:
        torch.testing.assert_close((visit.input, visit.output, visit.gradient), (X, y, gradient(y)), rtol=0, atol=1e-12)
    assert probe.visits


def test_gradients_pass_through_a_network_as_by_hand() -> None:
    net, bare = Crossed(), Crossed()
    with everything(net) as probe:
        net(X).square().sum().backward()
    y: list[Tensor] = [X]
    for layer in (*bare.block[:2], nn.ReLU(), bare.last):
        y.append(layer(y[-1]))
    gradients = torch.autograd.grad(y[-1].square().sum(), y[1:])
    for i, visit in enumerate(probe.visits):
        assert torch.equal(visit.input, y[i])
        assert torch.equal(visit.output, y[i + 1])
        assert torch.equal(visit.gradient, gradients[i])


@pytest.mark.parametrize("answer", [None, 1, "y", [], {"n": None}], ids=str)
def test_where_there_is_no_tensor_nothing_is_read(answer: Any) -> None:
    net = Around(Returns(lambda *args: answer), lambda m, x: m(3, "a"))
    with everything(net) as probe:
        assert net(X) == answer
    [visit] = probe.visits
    assert visit.input is visit.output is visit.gradient is None


def test_no_gradient_is_read_where_autograd_is_off_or_no_backward_pass_came() -> None:
    net = Crossed()
    with everything(net) as probe:
        net(X)
        with torch.no_grad():
            net(X)
        with torch.inference_mode():
            net(X)
    assert len(probe.visits) == 12
    assert all(visit.output is not None and visit.gradient is None for visit in probe.visits)


def test_one_reader_serves_all_layers_and_a_mapping_some() -> None:
    net = Crossed()
    a, b = (lambda module, x: ("a", module, x.shape)), (lambda module, x: ("b", module, x.shape))
    with Probe(net, "*", input={"last": a}, output=b, gradient={"last": b, "block.1": a}) as probe:
        net(X).sum().backward()
    seen = {visit.name: (visit.input, visit.output, visit.gradient) for visit in probe.visits}
    wide, out, norm = X.shape, (4, 2), net.block[1]
    assert seen == {
        "block.0": (None, ("b", net.block[0], wide), None),
        "block.1": (None, ("b", norm, wide), ("a", norm, wide)),
        "block.2": (None, ("b", net.block[2], wide), None),
        "last": (("a", net.last, wide), ("b", net.last, out), ("b", net.last, out)),
    }


@pytest.mark.parametrize("site", ["input", "output", "gradient"])
def test_a_reader_of_a_layer_that_is_not_tapped_is_refused(site: str) -> None:
    with pytest.raises(
        InputError, match=rf"{site}={{'blok.0': ...}} reads a layer that `layers` does not match.*: block.0"
    ):
        Probe(Crossed(), "block.*", **{site: {"blok.0": keep}})


def test_readers_run_without_autograd_on_detached_tensors() -> None:
    read: list[bool] = []

    def look(module: nn.Module, x: Tensor) -> None:
        read.append(torch.is_grad_enabled() or x.requires_grad or x.grad_fn is not None)

    net, x = Crossed(), X.clone().requires_grad_()
    with Probe(net, "*", input=look, output=look, gradient=look):
        loss = net(x).square().sum()
        torch.autograd.grad(loss, list(net.last.parameters()), create_graph=True)
        torch.autograd.grad(loss, x)
    assert len(read) == 2 * 4 + 1 + 4
    assert not any(read)
    assert torch.is_grad_enabled()


# Calls


def test_a_module_that_runs_twice_has_two_visits_with_a_gradient_each() -> None:
    layer = nn.Linear(3, 3)
    net = Around(layer, lambda m, x: m(m(x).tanh()))
    with everything(net) as probe:
        net(X).square().sum().backward()
    h = affine(layer, X)
    y = affine(layer, h.tanh())
    gradients = torch.autograd.grad(y.square().sum(), [h, y])
    assert [(visit.name, visit.call) for visit in probe.visits] == [("layer", 0), ("layer", 1)]
    for visit, *expected in zip(probe.visits, [X, h.tanh()], [h, y], gradients, strict=True):
        torch.testing.assert_close([visit.input, visit.output, visit.gradient], expected)


def test_a_shared_module_is_visited_by_its_first_name() -> None:
    layer = nn.Linear(3, 3)
    net = nn.Sequential(layer, nn.Tanh(), layer)
    with Probe(net, "*") as probe:
        net(X.float())
    assert [(visit.name, visit.call) for visit in probe.visits] == [("0", 0), ("1", 0), ("0", 1)]


class Recursive(nn.Module):
    """y = x + n + (n - 1) + ... + 1"""

    def forward(self, x: Tensor, n: int) -> Tensor:
        return self(x + n, n - 1) if n else x


def test_a_module_that_calls_itself_closes_its_visits_from_within() -> None:
    net = Around(Recursive(), lambda m, x: m(x, 2) + m(x, 0))
    with Probe(net, "layer", input=keep, output=keep) as probe:
        net(X)
    assert [visit.call for visit in probe.visits] == [0, 1, 2, 3]
    for visit, added in zip(probe.visits, [0, 2, 3, 0], strict=True):
        torch.testing.assert_close(visit.input, X + added)
        torch.testing.assert_close(visit.output, X + 3 * (visit.call < 3))


def fails_at_first(calls: list[int]) -> None:
    calls.append(1)
    if len(calls) == 1:
        raise Boom


@pytest.mark.parametrize("where", ["forward", "hook before", "hook after"])
def test_a_visit_that_ends_with_an_error_is_not_taken_for_a_later_one(where: str) -> None:
    calls: list[int] = []
    layer = Returns(lambda x: (fails_at_first(calls) if where == "forward" else None, 2 * x))
    if where == "hook before":
        layer.register_forward_pre_hook(lambda *args: fails_at_first(calls))
    if where == "hook after":
        layer.register_forward_hook(lambda *args: fails_at_first(calls))

    def run(layer: nn.Module, x: Tensor) -> Tensor:
        try:
            return layer(x)[1]
        except Boom:
            return layer(x + 1)[1]

    net = Around(layer, run)
    with Probe(net, "layer", input=keep, output=keep) as probe:
        net(X)
    first, second = probe.visits
    assert (first.call, second.call) == (0, 1)
    assert torch.equal(first.input, X)
    assert (first.output is not None) == (where == "hook after"), "forward itself had ended"
    assert torch.equal(second.input, X + 1)
    assert torch.equal(second.output, 2 * (X + 1))


def test_an_error_within_a_recursion_closes_the_visit_that_it_ends() -> None:
    class Careful(nn.Module):
        def forward(self, x: Tensor, n: int) -> Tensor:
            if n == 0:
                raise Boom
            try:
                return self(x, n - 1)
            except Boom:
                return n * x

    net = Around(Careful(), lambda m, x: m(x, 2))
    with Probe(net, "layer", output=keep) as probe:
        net(X)
    outer, inner, innermost = (visit.output for visit in probe.visits)
    assert torch.equal(outer, X)
    assert torch.equal(inner, X)
    assert innermost is None


def test_nested_probes_each_see_all() -> None:
    net = Crossed()
    with Probe(net, "block.*", output=keep) as outer:
        attached = hooks(net)
        with everything(net) as inner:
            net(X).sum().backward()
        assert hooks(net, *net.kept) == attached
        net(X)
    assert names(outer) == 2 * EXECUTED[:3]
    assert names(inner) == EXECUTED
    assert all(torch.equal(a.output, b.output) for a, b in zip(inner.visits[:3], outer.visits[:3], strict=True))
    assert all(visit.gradient is not None for visit in inner.visits)
    assert hooks(net, *net.kept) == 0


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activations_that_are_computed_again_are_no_second_visit(use_reentrant: bool) -> None:
    inside, runs = nn.Sequential(nn.Linear(3, 3), nn.Tanh()), []
    inside[1].register_forward_pre_hook(lambda *args: runs.append(1))
    net = Around(inside, lambda m, x: checkpoint(m, x, use_reentrant=use_reentrant))
    with everything(net) as probe:
        net(X.clone().requires_grad_()).square().sum().backward()
    assert len(runs) == 2, "nothing was computed again"
    assert [(visit.name, visit.call) for visit in probe.visits] == [("layer", 0), ("layer.0", 0), ("layer.1", 0)]
    y = affine(inside[0], X).tanh()
    torch.testing.assert_close(probe.visits[2].output, y)
    if not use_reentrant:  # which runs the module without autograd
        torch.testing.assert_close(probe.visits[2].gradient, 2 * y)
        torch.testing.assert_close(probe.visits[1].gradient, 2 * y * (1 - y**2))


# Nothing is changed, and nothing remains


def mlp(norm: Any = norms.BatchNorm) -> nn.Module:
    return nn.Sequential(nn.Dropout(0.2), nn.Unflatten(1, (1, 2, 4)), MLP((1, 2, 4), 3, hidden=(8, 8), norm=norm))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "norms that move": mlp,
    "norms that draw": lambda: mlp(norms.NoisyBatchNorm),
    "weights that are made": lambda: mlp(norms.WeightNorm),
    "weights with buffers": lambda: mlp(norms.SpectralNorm),
    "attention": lambda: nn.TransformerEncoderLayer(8, 2, 16),
    "recurrence": lambda: nn.LSTM(8, 8, num_layers=2, dropout=0.5),
    "no norms": lambda: nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.ReLU(inplace=True)),
    "torch's norms": lambda: nn.Sequential(nn.BatchNorm1d(8), nn.LayerNorm(8), nn.RMSNorm(8), nn.GroupNorm(2, 8)),
}


def step(net: nn.Module) -> list[Tensor]:
    """All that a training step leaves: output, gradients, buffers, the state of the random numbers."""
    torch.manual_seed(1)
    x = torch.randn(6, 8, requires_grad=True)
    y = first_tensor(net(x))
    assert y is not None
    y.square().sum().backward()
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    assert x.grad is not None
    return [y.detach(), x.grad, *gradients, *net.buffers(), torch.get_rng_state()]


@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_runs_to_the_bit_as_without_a_probe(network: str) -> None:
    torch.manual_seed(0)
    net = NETWORKS[network]()
    twin, after = copy.deepcopy(net), copy.deepcopy(net)
    expected = step(twin)
    with everything(net, {"": net, **dict(named_layers(net))}) as probe:
        found = step(net)
    assert any(visit.gradient is not None for visit in probe.visits)
    assert len(found) == len(expected)
    assert all(map(torch.equal, found, expected))
    with everything(after, {"": after}):
        pass
    assert all(map(torch.equal, step(after), expected))


class Breaks(torch.autograd.Function):
    """Raises in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise Boom


def boom(module: nn.Module, x: Tensor) -> None:
    raise Boom


def backward(net: Crossed) -> None:
    net(X).sum().backward()


def fails_within(net: Crossed) -> None:
    net.block[2] = Returns(lambda x: boom(net, x))
    net(X)


FAILURES: dict[str, tuple[dict[str, Any], Callable[[Crossed], Any], type[Exception] | None]] = {
    "nothing": ({}, backward, None),
    "no backward pass": ({}, lambda net: net(X), None),
    "what the network takes": ({}, lambda net: net(X[:, :2]), RuntimeError),
    "a layer": ({}, fails_within, Boom),
    "the backward pass": ({}, lambda net: Breaks.apply(net(X)).sum().backward(), Boom),  # type: ignore[no-untyped-call]
    "who reads inputs": ({"input": {"block.1": boom}}, backward, Boom),
    "who reads outputs": ({"output": {"block.1": boom}}, backward, Boom),
    "who reads gradients": ({"gradient": {"block.1": boom}}, backward, Boom),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_nothing_remains_whatever_goes_wrong(failure: str) -> None:
    readers, run, error = FAILURES[failure]
    net = Crossed()
    probe = Probe(net, "*", **{"input": keep, "output": keep, "gradient": keep, **readers})
    with nullcontext() if error is None else pytest.raises(error), probe:
        assert hooks(net) > 0
        try:
            run(net)
        finally:
            assert failure in ("who reads gradients", "what the network takes") or hooks(*net.kept) > 0
    assert hooks(net, *net.kept) == 0
    seen = len(probe.visits)
    net.block[0](X).sum().backward()
    assert len(probe.visits) == seen


def test_a_probe_that_could_not_be_attached_leaves_nothing() -> None:
    class Closed(nn.Linear):
        def register_forward_hook(self, *args: Any, **kwargs: Any) -> Any:
            raise Boom

    net = nn.Sequential(nn.Linear(3, 3), Closed(3, 3))
    with pytest.raises(Boom), Probe(net, "*"):
        pass
    assert hooks(net) == 0


def test_what_comes_after_the_probe_is_not_seen() -> None:
    net = Crossed()
    with everything(net) as probe:
        y = net(X)
    y.sum().backward()
    net(X)
    assert names(probe) == EXECUTED
    assert all(visit.gradient is None for visit in probe.visits)


def test_what_is_written_over_after_the_probe_is_not_seen() -> None:
    net = Around(Returns(lambda x: (2 * x).T), lambda m, x: m(x).relu_())
    with everything(net) as probe:
        y = net(X.clone().requires_grad_())
    y.sum().backward()
    assert [visit.gradient for visit in probe.visits] == [None]


def test_a_probe_that_is_attached_again_begins_anew() -> None:
    net = Crossed()
    probe = everything(net)
    for x in (X, X + 1):
        with probe:
            net(x)
            net(x)
        with probe:
            net(x)
        assert [(visit.name, visit.call) for visit in probe.visits] == [(name, 0) for name in EXECUTED]
        assert torch.equal(probe.visits[0].input, x)
    assert hooks(net, *net.kept) == 0


def test_a_probe_is_not_attached_twice_at_once() -> None:
    net = Crossed()
    with everything(net) as probe:
        with pytest.raises(InputError, match="already attached.*build a second probe"):
            probe.__enter__()
        net(X)
    assert names(probe) == EXECUTED
    assert hooks(net, *net.kept) == 0


def test_a_copy_that_was_made_of_a_tapped_network_is_not_heard() -> None:
    net = Crossed()
    with everything(net) as probe:
        twin = copy.deepcopy(net)
        assert torch.equal(twin(X), Crossed()(X))
        assert not probe.visits
        net(X)
    twin(X)
    assert names(probe) == EXECUTED


# Any module


@pytest.mark.parametrize("name", norms.layers())
def test_every_norm_of_the_zoo_is_read(name: str) -> None:
    layer = norms.layers()[name]
    torch.manual_seed(0)
    net = nn.Sequential(layer(8), nn.ReLU(inplace=True))
    x = torch.randn(8 * layer.facts.batch_multiple, 8, 5, 5)
    x = x[:8] if layer.facts.acts_on == "weight" else x
    with everything(net, Norm) as probe:
        y = net(1 * x.requires_grad_())  # a copy: NoNorm hands it on to be written over
        y.square().sum().backward()
    visit = next(visit for visit in probe.visits if visit.name == "0")
    assert torch.equal(visit.input, x)
    assert torch.equal(visit.output.relu(), y)
    assert (y == 0).any()
    assert torch.equal(visit.gradient, 2 * y)


def test_a_norm_of_weights_is_visited_where_it_makes_the_weight() -> None:
    net = MLP((1, 1, 3), 2, hidden=(4,), norm=norms.WeightNorm)
    layer = net.hidden[0].layer
    original = layer.parametrizations.weight.original.detach().clone()
    with everything(net) as probe:
        net(X.float().view(4, 1, 1, 3)).sum().backward()
    visits = {visit.name: visit for visit in probe.visits}
    assert len(visits) == len(probe.visits)
    weight = visits["hidden.0.layer.parametrizations.weight.0"]
    assert torch.equal(weight.input, original)
    assert torch.equal(weight.output, layer.weight)
    assert torch.equal(visits["hidden.0.layer"].output, X.float() @ layer.weight.T + layer.bias)
    assert weight.gradient.shape == (4, 3)
    assert list(of_kind(net, is_weighted)) == ["hidden.0.layer", "head"]
    assert list(of_kind(net, is_norm)) == ["hidden.0.norm"], "what stands behind it, not what makes the weight"
    assert list(of_kind(net, lambda module: isinstance(module, norms.WeightNorm))) == []


# Kinds of layers


class LayerNorm2d(nn.LayerNorm):
    """Channels second, as in timm and torchvision."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class LlamaRMSNorm(nn.Module):
    """Channels last, and of no class that torch knows."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))


class FrozenBatchNormAct2d(nn.Module):
    """With its activation."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(size))
        self.act = nn.ReLU()


class BatchNormBlock(nn.Sequential):
    """Called after its norm, and not one."""


class Kernel(nn.Module):
    """Somebody's own, whose weight is called anything."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.zeros(3, 3))


class Transformer(nn.Module):
    """Adds a table of positions, and is no layer for it."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(1, 5, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 16)
        self.act = nn.Softmax(-1)


NORM = [
    *(nn.BatchNorm1d(4), nn.BatchNorm2d(4), nn.BatchNorm3d(4, affine=False), nn.SyncBatchNorm(4), nn.LazyBatchNorm1d()),
    *(nn.InstanceNorm1d(4), nn.InstanceNorm2d(4, affine=True), nn.GroupNorm(2, 4), nn.LocalResponseNorm(2)),
    *(nn.LayerNorm(4), nn.LayerNorm((4, 4)), nn.RMSNorm(4), nn.RMSNorm((2, 4)), LayerNorm2d(4), LlamaRMSNorm(4)),
    FrozenBatchNormAct2d(4),
    *(layer(4) for layer in norms.layers().values() if layer.facts.acts_on == "activation"),
]
WEIGHTED = [
    *(nn.Linear(4, 2, bias=False), nn.Bilinear(2, 2, 2), nn.LazyLinear(2), nn.Embedding(4, 2), nn.EmbeddingBag(4, 2)),
    *(nn.Conv1d(2, 2, 1), nn.Conv2d(2, 2, 1, groups=2), nn.ConvTranspose3d(2, 2, 1), nn.LazyConv2d(2, 1)),
    *(nn.MultiheadAttention(4, 2), nn.MultiheadAttention(4, 2, kdim=3, vdim=3), nn.LSTM(4, 2), nn.GRUCell(4, 2)),
    *(nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)), nn.utils.spectral_norm(nn.Linear(4, 2)), Kernel()),
    nn.utils.parametrize.register_parametrization(nn.Conv2d(2, 4, 1), "weight", norms.WeightStandardization(4)),
]
ACTIVATION = [
    *(nn.ReLU(inplace=True), nn.LeakyReLU(), nn.PReLU(4), nn.ELU(), nn.SELU(), nn.GELU(), nn.SiLU(), nn.Mish()),
    *(nn.Tanh(), nn.Sigmoid(), nn.Softplus(), nn.Hardswish(), nn.Hardtanh(), nn.ReLU6(), nn.Threshold(0, 0)),
]
NEITHER = [
    *(nn.Identity(), nn.Dropout(), nn.Flatten(), nn.MaxPool2d(2), nn.Softmax(-1), nn.LogSoftmax(-1), nn.MSELoss()),
    *(nn.Sequential(nn.Linear(4, 4)), nn.ModuleList([nn.ReLU()]), nn.TransformerEncoderLayer(4, 2, 4), Transformer()),
    *(BatchNormBlock(nn.Linear(4, 4), nn.ReLU()), BatchNormBlock(nn.BatchNorm1d(4), nn.ReLU())),
    *(layer(4) for layer in norms.layers().values() if layer.facts.acts_on == "weight"),
]
TABLE = {"norm": NORM, "weighted": WEIGHTED, "activation": ACTIVATION, "neither": NEITHER}


def kinds(module: nn.Module) -> list[str]:
    tests = {"norm": is_norm, "weighted": is_weighted, "activation": is_activation}
    return [kind for kind, test in tests.items() if test(module)] or ["neither"]


@pytest.mark.parametrize("kind", TABLE)
def test_every_layer_is_of_one_kind(kind: str) -> None:
    wrong = {str(module): kinds(module) for module in TABLE[kind] if kinds(module) != [kind]}
    assert not wrong


def test_norms_of_timm_are_norms() -> None:
    timm = pytest.importorskip("timm.layers")
    found = [
        *("BatchNormAct2d", "FrozenBatchNormAct2d", "EvoNorm2dB0", "EvoNorm2dS1", "GroupNorm1", "GroupNorm1Act"),
        *("LayerNorm", "LayerNorm2d", "LayerNormAct2d", "RmsNorm", "RmsNorm2d", "RmsNormAct", "SplitBatchNorm2d"),
    ]
    assert {name: kinds(getattr(timm, name)(8)) for name in found} == {name: ["norm"] for name in found}
    assert kinds(timm.ConvNormAct(3, 3)) == kinds(timm.GlobalResponseNormMlp(4)) == ["neither"]
    assert feature_axis(timm.LayerNorm2d(8), torch.zeros(2, 8, 4, 4)) == 1
    assert feature_axis(timm.RmsNorm(8), torch.zeros(2, 5, 8)) == 2


def test_the_kinds_of_a_transformer_are_found_at_any_depth() -> None:
    net = nn.ModuleDict({"net": Transformer()})
    assert list(of_kind(net, is_norm)) == ["net.layer.norm1", "net.layer.norm2"]
    assert list(of_kind(net, is_weighted)) == ["net.layer.self_attn", "net.layer.linear1", "net.layer.linear2"]
    assert list(of_kind(net, is_activation)) == []
    assert of_kind(net, is_norm)["net.layer.norm1"] is net["net"].layer.norm1  # type: ignore[union-attr]


def test_kinds_do_not_count_what_makes_a_weight_nor_the_network_itself() -> None:
    made = nn.utils.parametrize.register_parametrization(nn.Linear(4, 4), "weight", norms.BatchNorm(4))
    net = nn.Sequential(made, nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    assert list(of_kind(net, is_norm)) == []
    assert list(of_kind(net, is_weighted)) == ["0", "1"]
    assert of_kind(nn.Linear(4, 4), is_weighted) == {}


FEATURES = 6
AXES: list[tuple[nn.Module, tuple[int, ...], int]] = [
    *((nn.Linear(6, 6), (2, *[3] * n, 6), n + 1) for n in range(3)),
    *((nn.LayerNorm(6), (2, *[3] * n, 6), n + 1) for n in range(3)),
    *((nn.RMSNorm(6), (2, *[3] * n, 6), n + 1) for n in range(3)),
    *((layer(6), (2, 6, *[6] * n), 1) for layer in norms.layers().values() if layer.facts.dense for n in range(3)),
    *((norms.LayerNorm(6), (2, 6, *[3] * n), 1) for n in range(3)),
    *((norms.RMSNorm(6, channel_dim=-1), (2, 6, *[6] * n), n + 1) for n in range(3)),
    (norms.LayerNorm([6]), (2, 6, 6), 2),
    *((layer, (2, 6, 5), 1) for layer in (nn.Conv1d(6, 6, 1), nn.BatchNorm1d(6), nn.ReLU(), nn.GroupNorm(2, 6))),
    *((layer, (2, 6, 5, 6), 1) for layer in (nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6), nn.InstanceNorm2d(6))),
    (nn.LayerNorm((4, 6)), (2, 4, 6), 2),
    (LayerNorm2d(6), (2, 6, 5, 5), 1),
    (LayerNorm2d(6), (6, 6, 1, 1), 1),
    (LlamaRMSNorm(6), (2, 5, 6), 2),
    (LlamaRMSNorm(6), (2, 6), 1),
    (nn.MultiheadAttention(6, 2), (5, 2, 6), 2),
    (nn.LSTM(6, 6), (5, 2, 6), 2),
    (nn.LSTMCell(6, 6), (2, 6), 1),
    (nn.Embedding(9, 6), (2, 5, 6), 2),
    (nn.Bilinear(6, 6, 6), (2, 5, 6), 2),
    (nn.ReLU(), (6,), 0),
    (nn.Linear(6, 6), (6,), 0),
    (nn.LazyBatchNorm1d(), (2, 6, 5), 1),
]


def test_the_features_are_where_the_layer_takes_them() -> None:
    assert all(shape[axis] == FEATURES for _, shape, axis in AXES)
    found = [(str(module), shape, feature_axis(module, torch.zeros(shape))) for module, shape, _ in AXES]
    assert found == [(str(module), shape, axis) for module, shape, axis in AXES]


@pytest.mark.parametrize(
    "values,expected",
    [
        (X, X),
        ((), None),
        (None, None),
        ("text", None),
        (1.5, None),
        ({}, None),
        ([None, {"a": (), "b": [X]}, X + 1], X),
        (Pair("a", X), X),
        (({"n": 1}, [[]], "a"), None),
        (nn.utils.rnn.pack_sequence([X, X]), torch.cat([X, X], 1).view(-1, 3)),
    ],
    ids=lambda one: type(one).__name__,
)
def test_the_first_tensor_is_found_in_whatever_a_module_takes(values: Any, expected: Tensor | None) -> None:
    found = first_tensor(values)
    assert found is expected or (found is not None and expected is not None and torch.equal(found, expected))


# Compiled networks


class Graphs:
    """A backend that counts the graphs it is given, and how often they run."""

    def __init__(self) -> None:
        self.made = self.ran = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.made += 1

        def run(*args: Any) -> Any:
            self.ran += 1
            return graph.forward(*args)

        return run


@pytest.fixture
def graphs() -> Iterator[Graphs]:
    torch.compiler.reset()
    yield Graphs()
    torch.compiler.reset()


def by_method(net: nn.Module, graphs: Graphs) -> nn.Module:
    net.compile(backend=graphs)
    return net


def by_wrapper(net: nn.Module, graphs: Graphs) -> nn.Module:
    return torch.compile(net, backend=graphs)  # type: ignore[return-value]


def within(net: nn.Module, graphs: Graphs) -> nn.Module:
    net.block = torch.compile(net.block, backend=graphs)  # type: ignore[assignment]
    return net


class Straight(nn.Module):
    """Runs its layers as modules, which compiles to one graph."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.last = nn.Linear(3, 2)
        self.block = nn.Sequential(nn.Linear(3, 3), norms.BatchNorm(3), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.block(x))


COMPILED = pytest.mark.parametrize("compiled", [by_method, by_wrapper, within])
STRAIGHT = ["block", "block.0", "block.1", "block.2", "last"]


def assert_unheard(probe: Probe, run: nn.Module, graphs: Graphs) -> None:
    """From the second pass on the graphs run as they are, and the probe knows nothing of it."""
    run(X.float())
    made, ran, seen = graphs.made, graphs.ran, len(probe.visits)
    run(X.float()).sum().backward()
    assert graphs.made == made
    assert graphs.ran > ran
    assert len(probe.visits) == seen


@COMPILED
def test_a_compiled_network_is_read_as_it_is_and_keeps_its_graphs(compiled: Any, graphs: Graphs) -> None:
    run, plain = compiled(Straight(), graphs), Straight()
    expected = plain(X.float())  # which moves running statistics, as the graph does
    torch.testing.assert_close(run(X.float()), expected)
    assert (graphs.made, graphs.ran) == (1, 1)
    with everything(run) as probe, everything(plain) as other:
        assert torch.equal(run(X.float()), plain(X.float()))
        run(X.float()).square().sum().backward()
        plain(X.float()).square().sum().backward()
    assert (graphs.made, graphs.ran) == (1, 1), "the probe runs eagerly"
    assert names(probe) == names(other) == 2 * STRAIGHT
    for a, b in zip(probe.visits, other.visits, strict=True):
        assert torch.equal(a.input, b.input)
        assert torch.equal(a.output, b.output)
        assert (a.call < 1) or torch.equal(a.gradient, b.gradient)
    run(X.float())
    assert (graphs.made, graphs.ran) == (1, 2), "compiled anew"
    assert_unheard(probe, run, graphs)
    assert hooks(run) == 0


@pytest.mark.parametrize("compiled", [by_method, within])
def test_a_network_that_is_compiled_once_the_probe_is_built_is_read_as_well(compiled: Any, graphs: Graphs) -> None:
    net = Straight()
    probe = everything(net)
    run = compiled(net, graphs)
    with probe:
        run(X.float()).sum().backward()
    assert names(probe) == STRAIGHT
    assert graphs.made == 0
    assert_unheard(probe, run, graphs)
    assert graphs.made == 1


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # the compiler's, of readers
def test_a_network_that_is_compiled_while_the_probe_is_attached_is_read_as_well(graphs: Graphs) -> None:
    net = Straight()
    with everything(net, "*.1") as probe:
        run = by_method(net, graphs)
        run(X.float()).sum().backward()
    assert [(visit.name, visit.gradient is not None) for visit in probe.visits] == [("block.1", True)]
    assert_unheard(probe, run, graphs)
    assert hooks(run) == 0


def test_nested_probes_of_a_compiled_network_and_an_error_leave_it_compiled(graphs: Graphs) -> None:
    run = by_method(Straight(), graphs)
    run(X.float())
    with Probe(run, "last") as outer, pytest.raises(Boom), Probe(run, "block.*", output=boom):
        run(X.float())
    with outer:
        run(X.float())
    assert names(outer) == ["last"]
    assert (graphs.made, graphs.ran) == (1, 1)
    assert_unheard(outer, run, graphs)


def test_other_graphs_run_on_while_a_network_that_is_not_compiled_is_read(graphs: Graphs) -> None:
    other, net = by_method(Straight(), graphs), Straight()
    with everything(net) as probe:
        net(X.float())
        other(X.float())
    assert names(probe) == STRAIGHT
    assert graphs.ran == 1


def test_what_lightning_takes_out_of_its_wrapper_is_known_to_be_compiled() -> None:
    net = Straight()
    net._compiler_ctx = {"compiler": "dynamo"}  # type: ignore[assignment]  # with which it marks a LightningModule
    assert is_compiled(net)


def test_names_are_free_of_what_compiling_adds() -> None:
    names = [name for name, _ in named_layers(Straight())]
    nothing = Graphs()
    assert names[0] == ""
    for compiled in (by_method, by_wrapper, within):
        run = compiled(Straight(), nothing)
        assert is_compiled(run)
        assert [name for name, _ in named_layers(run)] == names
        assert all("OptimizedModule" not in type(module).__name__ for _, module in named_layers(run))
        assert list(find(run, "*")) == names[1:]
    twice = by_wrapper(within(Straight(), nothing), nothing)
    assert [name for name, _ in named_layers(twice)] == names
    assert not is_compiled(Straight())
    assert nothing.made == 0


def test_a_module_may_be_called_almost_as_what_compiling_adds() -> None:
    net = nn.ModuleDict({"my_orig_mod": nn.Sequential(nn.ReLU())})
    assert [name for name, _ in named_layers(net)] == ["", "my_orig_mod", "my_orig_mod.0"]


@pytest.mark.slow
@COMPILED
def test_a_network_that_inductor_compiled_is_read_and_stays_compiled(compiled: Any) -> None:
    torch.compiler.reset()
    run, plain = compiled(Straight(), "inductor"), Straight()
    torch.testing.assert_close(run(X.float()), plain(X.float()))
    with everything(run) as probe, everything(plain) as other:
        run(X.float()).square().sum().backward()
        plain(X.float()).square().sum().backward()
    assert names(probe) == STRAIGHT
    for a, b in zip(probe.visits, other.visits, strict=True):
        torch.testing.assert_close((a.output, a.gradient), (b.output, b.gradient))
    with torch.compiler.set_stance("fail_on_recompile"):
        torch.testing.assert_close(run(X.float()), plain(X.float()))
    torch.compiler.reset()


# Several processes


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A group of one process, this one."""
    rendezvous = tmp_path_factory.mktemp("alone") / "rendezvous"
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("order", ["parallel", "compiled, parallel", "parallel, compiled"])
def test_names_are_free_of_what_parallel_training_adds(order: str, graphs: Graphs) -> None:
    run: nn.Module = Straight()
    for wrapper in order.split(", "):
        run = DistributedDataParallel(run) if wrapper == "parallel" else by_wrapper(run, graphs)
    assert [name for name, _ in named_layers(run)] == [name for name, _ in named_layers(Straight())]
    assert list(of_kind(run, is_norm)) == ["block.1"]
    with everything(run) as probe:
        run(X.float()).sum().backward()
    assert names(probe) == STRAIGHT
    assert all(visit.gradient is not None for visit in probe.visits)
    assert hooks(run) == 0
    assert graphs.made == 0


def seen_by(rank: int, x: Tensor) -> tuple[list[str], list[Tensor], list[Tensor]]:
    """What a probe reads on a rank, and the gradients that come of it."""
    run = DistributedDataParallel(Straight())
    with everything(run, ["block.0", Norm]) as probe:
        run(x).square().sum().backward()
    read = [one for visit in probe.visits for one in (visit.input, visit.output, visit.gradient)]
    return names(probe), read, [p.grad for p in run.parameters() if p.grad is not None]


@pytest.mark.slow
def test_each_rank_sees_its_own_data(tmp_path: Path) -> None:
    pool = TwoRanks(tmp_path)
    xs = (X.float(), 1 + 2 * X.float())
    try:
        answers = pool.run(seen_by, (0, 1), xs)
    finally:
        pool.close()
    for x, (named, read, gradients) in zip(xs, answers, strict=True):
        net = Straight()
        with everything(net, ["block.0", Norm]) as probe:
            net(x).square().sum().backward()
        alone = [one for visit in probe.visits for one in (visit.input, visit.output, visit.gradient)]
        assert named == ["block.0", "block.1"]
        assert torch.equal(read[0], x)
        torch.testing.assert_close(read, alone)
        assert all(map(torch.equal, gradients, answers[0][2])), "the ranks' gradients are one"
